"""One task, learned: how well, and in how many inner steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hidra_cli.engine.devices import memory_errors, resolve_device
from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.inner_loop import adapt, labelled_right
from hidra_cli.engine.learner import Weights
from hidra_cli.engine.task_batch import Task, class_weights
from hidra_cli.errors import NotFiniteError, UsageError
from hidra_cli.runs.model import TrainedModel
from hidra_cli.tasks.objective import CLASSIFICATION

# Pictures of a class that are needed to hold one out, and the parts they are divided into.
FEWEST_TO_HOLD_OUT = 2
MOST_FOLDS = 3
MOST_FOLDS_OF_FEATURES = 10  # that are computed once: a fold then costs next to nothing
# More inner steps are tried until so many in a row were no better, beyond those of training.
MOST_STEPS = 10
PATIENCE = 2


@dataclass(frozen=True)
class AdaptRequest:
    """What was asked for, whatever the task.

    Attributes:
        device: where the task is learned; by default a GPU where there is one.
        ways, shots, steps: None where they are to be chosen.
        out: folder of the classifier; None for a folder in the run.
        keep: whether the classifier keeps its support images.
        force: whether a classifier in `out` is replaced.
    """

    device: torch.device = field(default_factory=resolve_device)
    ways: int | None = None
    shots: int | None = None
    steps: int | None = None
    out: Path | None = None
    keep: bool = True
    force: bool = False


@dataclass(frozen=True)
class Adapted:
    """One task, learned.

    Attributes:
        weights: after the last step.
        accuracies: of the queries before and after each step, S + 1 numbers in 0..1; NaN where
            the task has no query.
        support_losses: before and after each step, in nats.
        per_class: query accuracy of each class after the last step, N numbers; NaN for a class
            without a query.
    """

    weights: Weights
    accuracies: list[float]
    support_losses: list[float]
    per_class: list[float]


@dataclass(frozen=True)
class HeldOut:
    """What held-out support pictures say about the number of inner steps.

    Attributes:
        accuracies: after 0, 1, … steps, each picture labelled once while it was held out; as far
            as was tried.
        steps: of the most accurate those of training, else the fewest. None at all may be best,
            but not of identical neurons, which answer every picture alike before the first step.
        labels: (n,) of the pictures.
        logits: (n, N) of the pictures while they were held out, after `steps`.
        folds: parts the pictures were divided into.
    """

    accuracies: list[float]
    steps: int
    labels: Tensor
    logits: Tensor
    folds: int

    @property
    def predictions(self) -> Tensor:
        """The labels (n,) that the held-out pictures were given."""
        return self.logits.argmax(1)


def own_task(
    support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor] | None, ways: int
) -> Task:
    """A task of people's own pictures: images (n, C, H, W) and labels (n,), in any numbers."""
    images, labels = support
    query_images, query_labels = query or (images[:0], labels[:0])
    weights = class_weights(labels, ways)
    return Task(images, labels, query_images, query_labels, ways, 0, weights)


def adapt_task(model: TrainedModel, task: Task) -> Adapted:
    """Learn a task's support set and follow the query accuracy."""
    learner, accuracies, losses = model.learner, [], []
    task = task.mapped(learner.precomputed)
    correct = torch.empty(0, dtype=torch.bool)
    with memory_errors("fewer pictures or classes, or --device cpu"):
        for weights in adapt(learner, task, model.inner, meta=False, steps=model.steps):
            with torch.no_grad():
                if len(task.query_labels):
                    correct = labelled_right(learner.query_logits(weights, task), task.query_labels)
                losses.append(learner.support_loss(weights, task).item())
            accuracies.append(correct.double().mean().item())
    labels = task.query_labels
    per_class = [correct[labels == n].double().mean().item() for n in range(task.ways)]
    return Adapted(weights, accuracies, losses, per_class)


def predictions(model: TrainedModel, weights: Weights, task: Task) -> Tensor:
    """The labels (n,) that adapted weights give a task's queries."""
    return _query_logits(model, weights, task).argmax(1)


@torch.no_grad()
def _query_logits(model: TrainedModel, weights: Weights, task: Task) -> Tensor:
    task = task.mapped(model.learner.precomputed)
    return model.learner.query_logits(weights, task).float().cpu()


def hold_out(model: TrainedModel, images: Tensor, labels: Tensor, ways: int) -> HeldOut | None:
    """Choose the inner steps by pictures held out in turn (leave-one-out where there are few).

    Args:
        model: what is adapted.
        images: (n, C, H, W) of the support set, or their features (n, F) of a frozen network.
        labels: (n,).
        ways: N.

    Returns:
        None where a class has too few pictures to hold one out.
    """
    shots = int(torch.bincount(labels, minlength=ways).min())
    if shots < FEWEST_TO_HOLD_OUT:
        return None
    frozen = isinstance(model.learner.backbone, FrozenNetwork)
    folds = min(MOST_FOLDS_OF_FEATURES if frozen else MOST_FOLDS, shots)
    place = place_within_class(labels)
    masks = [place % folds == fold for fold in range(folds)]
    images = model.learner.precomputed(images)
    tasks = [own_task((images[~m], labels[~m]), (images[m], labels[m]), ways) for m in masks]
    truth, most = labels.cpu(), max(MOST_STEPS, model.steps)
    if not model.steps and not model.learner.head.identical_neurons:
        most = 0  # its head starts at the solution
    paths = [adapt(model.learner, t, model.inner, meta=False, steps=most) for t in tasks]
    at_each_step: list[Tensor] = []
    accuracies: list[float] = []
    best = int(model.learner.head.identical_neurons)
    with memory_errors("fewer pictures or classes, or --device cpu"):
        for step, weights in enumerate(zip(*paths, strict=True)):
            logits = torch.empty(len(truth), ways)
            for mask, task, at_step in zip(masks, tasks, weights, strict=True):
                logits[mask.cpu()] = _query_logits(model, at_step, task)
            at_each_step.append(logits)
            accuracies.append((logits.argmax(1) == truth).double().mean().item())
            if step > best and accuracies[step] > accuracies[best]:
                best = step
            if step >= max(best, 1) + PATIENCE and step >= model.steps:
                break
    if model.steps and accuracies[model.steps] == accuracies[best]:
        best = model.steps  # what it was trained for; its probabilities mean more there
    return HeldOut(accuracies, best, truth, at_each_step[best], folds)


def place_within_class(labels: Tensor) -> Tensor:
    """For each picture how many of its class come before it: (n,)."""
    place = torch.zeros_like(labels)
    for label in set(labels.tolist()):
        of_class = labels == label
        place[of_class] = torch.arange(int(of_class.sum()), device=labels.device)
    return place


def confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> list[list[int]]:
    """How often each class (row) was given each label (column): N × N."""
    n = len(classes)
    pairs = labels.cpu() * n + predicted.cpu()
    return torch.bincount(pairs, minlength=n * n).reshape(n, n).tolist()


def check_finite(adapted: Adapted) -> None:
    """Refuse to save a classifier that says nothing.

    Raises:
        NotFiniteError: a support loss is infinite or not a number.
    """
    for step, loss in enumerate(adapted.support_losses):
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"adapting went wrong: the support loss is {loss} after step {step}",
                why="the inner steps are too long for this task, or the model is not finite",
                fix="fewer --steps, or a model trained with a lower --inner-lr",
            )


def check_classifies(model: TrainedModel) -> None:
    """Refuse a model of functions.

    Raises:
        UsageError: it was not trained on classes.
    """
    if model.objective is not CLASSIFICATION:
        raise UsageError(
            f"{model.name} makes no classifiers",
            why=f"it was trained on functions ({model.settings.dataset.name}), not on classes",
            fix=f"measure how it adapts: hidra evaluate {model.path}",
        )
