"""Probabilities that mean something, and pictures that are of none of the classes.

Both are learned from support pictures that are held out. Shapes: n pictures, N ways, K shots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.inner_loop import adapted
from hidra_cli.engine.learner import Weights
from hidra_cli.engine.task_batch import Task, class_weights
from hidra_cli.jobs.familiarity import familiarity
from hidra_cli.jobs.one_task import HeldOut, own_task, place_within_class
from hidra_cli.runs.model import TrainedModel
from hidra_cli.runs.model_records import CalibrationDefaults, CalibrationRecord

# The default scale counts like so many pictures: ½ · 30 · ln² of its ratio to the scale.
PRIOR_PICTURES = 30.0
_FARTHEST = 3.0  # of the logarithm of that ratio
# Parts that pictures, or classes, are left out in: of a frozen network, and of one that adapts.
_PARTS_OF_FEATURES, _PARTS = 10, 3


def calibrate(
    model: TrainedModel, weights: Weights, task: Task, held_out: HeldOut | None
) -> tuple[CalibrationRecord, Tensor | None]:
    """Learn from the support pictures what a classifier's answers are worth.

    Args:
        model: that was adapted, with its steps.
        weights: adapted.
        task: the support set, of images or of a frozen network's features.
        held_out: what was answered to held-out support pictures; None where there are none.

    Returns:
        The calibration, and the features (n, F) of length 1 that new pictures are compared with;
        None where it cannot be said which pictures are unknown.
    """
    defaults, shots = model.meta.defaults, len(task.support_labels) / task.ways
    scale = default_scale(defaults, task.ways, shots)
    if held_out is not None and model.learner.loss_name == "softmax":
        scale = fitted_scale(held_out.logits, held_out.labels, defaults, held_out.folds)
    record = CalibrationRecord(scale=scale)
    if model.learner.loss_name != "softmax" or not model.learner.head.any_ways:
        return record, None
    task = task.mapped(model.learner.precomputed)
    parts = _PARTS_OF_FEATURES if isinstance(model.learner.backbone, FrozenNetwork) else _PARTS
    foreign = torch.cat(list(_left_out(model, task, _by_class, parts)))
    if held_out is not None:
        own = torch.cat(list(_left_out(model, task, _by_place, parts)))
        middle, spread = (own.mean() + foreign.mean()) / 2, pooled_deviation(own, foreign)
    elif defaults is not None:
        offset, slope = defaults.known_offset
        middle = foreign.mean() + offset + slope * math.log(task.ways)
        spread = torch.tensor(defaults.known_spread)
    else:
        return record, None
    with torch.no_grad():
        features = F.normalize(model.learner.answers(weights, task)[0], dim=1)
    place = {"middle": middle.item(), "spread": max(spread.item(), 1e-6)}
    share = 0.0 if defaults is None else defaults.logit_share
    return record.model_copy(update=place | {"logit_share": share}), features


def default_scale(defaults: CalibrationDefaults | None, ways: int, shots: float) -> float:
    """exp(a + b ln N + c ln K + d ln N ln K) by the model's defaults; 1 where it has none."""
    if defaults is None:
        return 1.0
    n, k = math.log(ways), math.log(shots)
    terms = (1.0, n, k, n * k)
    return math.exp(sum(c * t for c, t in zip(defaults.log_scale, terms, strict=True)))


def fitted_scale(
    logits: Tensor, labels: Tensor, defaults: CalibrationDefaults | None, parts: int
) -> float:
    """The factor of the logits that suits held-out pictures (temperature, Guo et al. 2017).

    It minimizes n · cross-entropy + ½ · 30 · ln²(scale / default) on pictures that were held out
    in so many parts. Then it is taken from the shots of what was left to all shots, as the
    defaults differ. Classes of unequal size count alike.

    Args:
        logits: (n, N) of the pictures while they were held out.
        labels: (n,).
        defaults: of the model.
        parts: J; a model learned (1 − 1/J) of the pictures when one was held out.
    """
    n, ways = logits.shape
    before = default_scale(defaults, ways, n / ways * (1 - 1 / parts))
    weights = class_weights(labels, ways)
    z = logits.double() * before

    def cost(log_ratio: float) -> float:
        each = F.cross_entropy(z * math.exp(log_ratio), labels, reduction="none")
        if weights is not None:
            each = each * weights
        return each.sum().item() + PRIOR_PICTURES * log_ratio**2 / 2

    ratio = math.exp(minimum(cost, -_FARTHEST, _FARTHEST))
    return ratio * default_scale(defaults, ways, n / ways)


def minimum(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one number is least: the best of a grid, then golden sections."""
    step = (high - low) / 24
    best = min((low + step * i for i in range(25)), key=cost)
    low, high, golden = best - step, best + step, (math.sqrt(5) - 1) / 2
    for _ in range(30):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    return (low + high) / 2


def pooled_deviation(one: Tensor, other: Tensor) -> Tensor:
    """The root of the mean of two variances."""
    return ((one.var() + other.var()) / 2).sqrt()


def _left_out(
    model: TrainedModel, task: Task, split: Callable[[Task, int], list[Tensor]], parts: int
) -> Iterator[Tensor]:
    """The familiarity of support pictures, each while its part was left out."""
    defaults = model.meta.defaults
    share = 0.0 if defaults is None else defaults.logit_share
    images, labels = task.support_images, task.support_labels
    for mask in split(task, parts):
        classes = sorted(set(labels[~mask].tolist()))
        places = torch.tensor([classes.index(label) for label in labels[~mask].tolist()])
        # Of left-out classes the labels mean nothing: only how familiar the pictures are counts.
        asked = images[mask], labels[mask].clamp(max=len(classes) - 1)
        rest = own_task((images[~mask], places.to(labels.device)), asked, len(classes))
        weights = adapted(model.learner, rest, model.inner, meta=False, steps=model.steps)
        with torch.no_grad():
            support, features, logits = model.learner.answers(weights, rest)
            support = F.normalize(support, dim=1)
            if len(classes) == 1:  # the logit of one class says nothing
                logits = torch.zeros_like(logits)
            yield familiarity(support, features, logits, share).cpu()


def _by_place(task: Task, parts: int) -> list[Tensor]:
    """Pictures of every class at a time."""
    shots = int(task.support_labels.bincount().min())
    folds, place = min(parts, shots), place_within_class(task.support_labels)
    return [place % folds == fold for fold in range(folds)]


def _by_class(task: Task, parts: int) -> list[Tensor]:
    """Whole classes at a time."""
    folds = min(parts, task.ways)
    return [task.support_labels % folds == fold for fold in range(folds)]
