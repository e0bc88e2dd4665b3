"""A task learned once: adapted classifiers, saved self-contained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.api import FastWeights
from hidra_cli.checkpoints import incomplete, load_checkpoint, save_checkpoint
from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.inner_loop import adapt, labelled_right
from hidra_cli.engine.learner import Learner, Weights
from hidra_cli.engine.normalization import EpisodeNorm
from hidra_cli.engine.tasks import Task
from hidra_cli.models import TrainedModel, restore_learner

CLASSIFIER_FORMAT = "hidra-classifier"


@dataclass(frozen=True)
class Adapted:
    """One task, learned.

    Attributes:
        weights: after the last step.
        accuracies: of the queries before and after each step, S + 1 numbers in 0..1.
        support_losses: before and after each step, in nats.
        per_class: query accuracy of each class after the last step, N numbers.
    """

    weights: Weights
    accuracies: list[float]
    support_losses: list[float]
    per_class: list[float]


def adapt_task(model: TrainedModel, task: Task) -> Adapted:
    """Learn a task's support set and follow the query accuracy."""
    learner, accuracies, losses = model.learner, [], []
    correct = torch.empty(0)
    with memory_errors():
        for weights in adapt(learner, task, model.inner, meta=False, steps=model.steps):
            with torch.no_grad():
                correct = labelled_right(learner.query_logits(weights, task), task.query_labels)
                support = learner.support_logits(weights, task)
            accuracies.append(correct.double().mean().item())
            losses.append(F.cross_entropy(support, task.support_labels).item())
    per_class = [
        correct[task.query_labels == label].double().mean().item() for label in range(task.ways)
    ]
    return Adapted(weights, accuracies, losses, per_class)


class Classifier:
    """An adapted model that labels images by itself: no support set is needed any more.

    In `support` mode it keeps the normalization statistics of its support images; in
    `transductive` mode predictions depend on the images predicted together.
    """

    def __init__(self, learner: Learner, weights: Weights, classes: Sequence[str]) -> None:
        self.learner = learner
        self.weights = weights
        self.classes = tuple(classes)

    def to(self, device: torch.device) -> Classifier:
        """This classifier on a device."""
        learner = self.learner.to(device)
        head = {name: value.to(device) for name, value in self.weights.head.items()}
        weights = Weights(dict(learner.backbone.named_parameters()), head)
        return Classifier(learner, weights, self.classes)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1] → class probabilities (n, N)."""
        features = self.learner.features(self.weights.body, images)
        return self.learner.head.logits(self.weights.head, features).float().softmax(1)


def save_classifier(
    path: Path, model: TrainedModel, weights: Weights, task: Task, classes: Sequence[str]
) -> None:
    """Write weights, classes, preprocessing and provenance into one file.

    Raises:
        RunError: it cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in model.learner.state_dict().items()}
    tensors |= {f"model.backbone.{name}": value for name, value in weights.body.items()}
    tensors |= {f"head.{name}": value for name, value in weights.head.items()}
    if model.normalization == "support":
        tensors |= _support_statistics(model.learner, weights, task)
    meta: dict[str, Any] = {
        "format": CLASSIFIER_FORMAT,
        "classes": list(classes),
        "settings": model.meta["settings"],
        "plugins": model.meta["plugins"],
        "image_shape": list(model.image_shape),
        "max_ways": model.max_ways,
        "invert": model.meta["invert"],
        "steps": model.steps,
        "made_from": {
            "checkpoint": str(model.path),
            "iteration": model.meta["iteration"],
            "dataset_hash": model.meta["dataset_hash"],
        },
    }
    save_checkpoint(path, tensors, meta)


def load_classifier(path: Path, device: torch.device) -> Classifier:
    """Read a file of `save_classifier`.

    Raises:
        DataError: it is missing, damaged or not a classifier.
        PluginError: a plugin it needs is missing.
        RunError: its weights do not fit.
    """
    checkpoint = load_checkpoint(path, CLASSIFIER_FORMAT)
    _, image_shape, _, learner = restore_learner(checkpoint)
    try:
        classes = [str(name) for name in checkpoint.meta["classes"]]
        statistics = checkpoint.part("statistics")
        if statistics:
            for name, layer in _norm_layers(learner).items():
                layer.mean = statistics[f"{name}.mean"]
                layer.variance = statistics[f"{name}.variance"]
        body: FastWeights = dict(learner.backbone.named_parameters())
        classifier = Classifier(learner, Weights(body, checkpoint.part("head")), classes)
        answer = classifier.probabilities(torch.zeros(2, *image_shape))  # do the shapes fit?
        if answer.shape != (2, len(classes)):
            raise ValueError(f"{len(classes)} classes, but {answer.shape[1]} output neurons")
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise incomplete(checkpoint, exc) from exc
    return classifier.to(device)


@torch.no_grad()
def _support_statistics(learner: Learner, weights: Weights, task: Task) -> dict[str, Tensor]:
    """Every normalization layer's statistics over the support images, with adapted weights."""
    layers = _norm_layers(learner)
    found = {}
    with learner.episode.record():
        learner.features(weights.body, task.support_images)
    for name, layer in layers.items():
        assert layer.mean is not None
        assert layer.variance is not None
        found[f"statistics.{name}.mean"] = layer.mean
        found[f"statistics.{name}.variance"] = layer.variance
        layer.mean = layer.variance = None
    return found


def _norm_layers(learner: Learner) -> dict[str, EpisodeNorm]:
    return {n: m for n, m in learner.backbone.named_modules() if isinstance(m, EpisodeNorm)}
