"""A task drawn from a dataset, learned, and the classifier of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidra_cli.api.data import Split
from hidra_cli.errors import UsageError
from hidra_cli.images.open import open_images
from hidra_cli.jobs.classifier import CLASSIFIER_FILE, check_no_classifier, save_classifier
from hidra_cli.jobs.one_task import (
    Adapted,
    AdaptRequest,
    adapt_task,
    check_classifies,
    check_finite,
)
from hidra_cli.runs.locate import results_home
from hidra_cli.runs.model import TrainedModel, load_model
from hidra_cli.settings.layers import another_dataset
from hidra_cli.system.console import Console, Silence
from hidra_cli.system.files import result_folder
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.shape import TaskShape


@dataclass(frozen=True)
class DrawnTask:
    """Which task of a dataset.

    Attributes:
        queries: query images per class.
        episode: its number in the split's stream.
        seed: of the stream.
        dataset: name of a dataset; None: the one that the model was trained on.
        source, dataset_options: of `dataset`.
        cache_dir: where prepared images are kept; None: the usual place.
    """

    split: Split = "test"
    queries: int = 15
    episode: int = 0
    seed: int = 0
    dataset: str | None = None
    source: str | None = None
    dataset_options: Mapping[str, str] = field(default_factory=dict)
    cache_dir: Path | None = None


@dataclass(frozen=True)
class DrawnAdaptation:
    """A drawn task, learned.

    Attributes:
        classes: N names.
        shots: support images per class.
        path: of the classifier.
    """

    model: TrainedModel
    dataset: str
    task: DrawnTask
    classes: tuple[str, ...]
    shots: int
    adapted: Adapted
    path: Path

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoint": str(self.model.path),
            "dataset": self.dataset,
            "split": self.task.split,
            "ways": len(self.classes),
            "shots": self.shots,
            "episode": self.task.episode,
            "seed": self.task.seed,
            "normalization": self.model.normalization,
            "accuracy_per_step": self.adapted.accuracies,
            "support_loss_per_step": self.adapted.support_losses,
            "accuracy_per_class": dict(zip(self.classes, self.adapted.per_class, strict=True)),
            "classifier": str(self.path),
        }


def adapt_drawn(
    which: DrawnTask, checkpoint: Path, request: AdaptRequest, console: Console | None = None
) -> DrawnAdaptation:
    """Draw a task, learn it and save its classifier.

    Args:
        checkpoint: the run or model that adapts.

    Raises:
        DataError: the model or the images are missing or damaged.
        UsageError: no such task can be drawn, or the model cannot learn it.
        NotFiniteError: the inner steps diverged.
        RunError: the classifier cannot be written.
    """
    model = load_model(checkpoint, request.device, steps=request.steps)
    check_classifies(model)
    own, options = model.settings.dataset, which.dataset_options
    settings = another_dataset(own, which.dataset, which.source, options)
    images = open_images(settings, which.cache_dir, console or Silence())
    if request.out is not None:
        check_no_classifier(request.out, force=request.force)
    ways, shots = request.ways, request.shots
    n = ways if ways is not None else (5 if model.learner.head.any_ways else model.max_ways)
    k = shots if shots is not None else min(model.settings.tasks.shots)
    if n < 2 or k < 1:
        raise UsageError(
            f"a task of {n} ways and {k} shots cannot be drawn",
            why="it needs at least 2 ways and 1 shot",
            fix="--ways 2 or more, --shots 1 or more",
        )
    model.check((n,), images.image_shape)
    shape = TaskShape(n, k)
    sampler = ImageSampler(
        images, which.split, (n,), (k,), which.queries, which.seed, device=request.device
    )
    indices = sampler.indices([which.episode], shape)
    task = sampler.batch([which.episode], shape).task(0)
    adapted = adapt_task(model, task)
    check_finite(adapted)
    classes = tuple(sampler.table.names[row] for row in indices.classes[0])
    of = "" if which.split == "test" else f"{which.split}-"
    name = f"{images.dataset}-{of}{n}w{k}s-seed{which.seed}-episode{which.episode}"
    folder = result_folder(request.out or results_home(model.path) / "adapted" / name)
    path = folder / CLASSIFIER_FILE
    save_classifier(path, model, adapted.weights, task, classes, keep=request.keep)
    return DrawnAdaptation(model, images.dataset, which, classes, k, adapted, path)
