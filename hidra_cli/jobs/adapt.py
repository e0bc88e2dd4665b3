"""Adapting a model to people's own pictures: the pictures, the steps, and the classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hidra_cli.engine.losses import probabilities
from hidra_cli.engine.task_batch import Task
from hidra_cli.errors import DataError, UsageError
from hidra_cli.images.audit import Audit
from hidra_cli.jobs.calibration import calibrate
from hidra_cli.jobs.choose_model import ModelChoice, choose_model
from hidra_cli.jobs.classifier import (
    CLASSIFIER_FILE,
    KeptSupport,
    check_no_classifier,
    load_base,
    save_classifier,
)
from hidra_cli.jobs.one_task import (
    Adapted,
    AdaptRequest,
    HeldOut,
    adapt_task,
    check_classifies,
    check_finite,
    confusion,
    hold_out,
    own_task,
    predictions,
)
from hidra_cli.jobs.own_data import OwnData, OwnPictures, read_own
from hidra_cli.runs.locate import results_home
from hidra_cli.runs.model import TrainedModel, load_model
from hidra_cli.system.files import result_folder

# The probability of another class from which a picture may be mislabelled.
_CONFIDENT = 0.9
_LOSS_TOLERANCE = 1e-3  # nats


@dataclass(frozen=True)
class Confusion:
    """Which classes are taken for which.

    Attributes:
        pictures: of which pictures: "queries", or "held-out support pictures".
        table: N × N counts; rows are the true classes.
    """

    pictures: str
    table: list[list[int]]


@dataclass(frozen=True)
class Suspect:
    """A support picture that was confidently of another class while it was held out.

    Attributes:
        label: of its folder or label file.
        predicted: the class that it was given.
        probability: of that class.
    """

    path: Path
    label: str
    predicted: str
    probability: float

    def to_json(self) -> dict[str, Any]:
        return {
            "picture": str(self.path),
            "class": self.label,
            "predicted": self.predicted,
            "probability": round(self.probability, 6),
        }


@dataclass(frozen=True)
class OwnAdaptation:
    """People's own pictures, learned.

    Attributes:
        choice: why this model; None where a person named it.
        model: what was adapted, with the inner steps that were taken.
        counts: support pictures of each class.
        held_out: None where the steps were given, or where nothing could be held out.
        confusion: None where there was neither a query nor a held-out picture.
        queries: number of query pictures.
        audit: of the pictures.
        suspects: support pictures that may be mislabelled.
        path: of the classifier.
        other: the folder that the classifier would be in, where one was there already.
    """

    choice: ModelChoice | None
    model: TrainedModel
    counts: dict[str, int]
    held_out: HeldOut | None
    adapted: Adapted
    confusion: Confusion | None
    queries: int
    audit: Audit
    suspects: tuple[Suspect, ...]
    path: Path
    other: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.counts)

    @property
    def knows_its_pictures(self) -> bool:
        """Whether it does better on what it learned than equal probabilities would (ln N)."""
        if self.model.learner.loss_name != "softmax":
            return True
        return self.adapted.support_losses[-1] <= math.log(len(self.counts)) + _LOSS_TOLERANCE

    def to_json(self) -> dict[str, Any]:
        per_class = zip(self.counts, self.adapted.per_class, strict=True)
        return {
            "checkpoint": str(self.model.path),
            "choice": self.choice.to_json() if self.choice else None,
            "classes": self.counts,
            "steps": self.model.steps,
            "held_out_accuracy_per_step": self.held_out.accuracies if self.held_out else None,
            "normalization": self.model.normalization,
            "accuracy_per_step": self.adapted.accuracies if self.queries else None,
            "support_loss_per_step": self.adapted.support_losses,
            "accuracy_per_class": {n: None if math.isnan(a) else a for n, a in per_class}
            if self.queries
            else None,
            "confusion": self.confusion.table if self.confusion else None,
            "audit": self.audit.to_json()
            | {"mislabelled": [suspect.to_json() for suspect in self.suspects]},
            "classifier": str(self.path),
        }


def adapt_pictures(
    pictures: OwnPictures,
    checkpoint: Path | None = None,
    request: AdaptRequest | None = None,
) -> OwnAdaptation:
    """Learn pictures, with those that a classifier kept, and save a classifier.

    Args:
        pictures: where they are.
        checkpoint: the run or model that adapts; None where `pictures.base` says it, or where
            the shipped models compete.
        request: what else was asked for.

    Raises:
        DataError: pictures, labels or the model are missing or damaged, or do not fit.
        UsageError: the model cannot learn them.
        NotFiniteError: the inner steps diverged.
        RunError: the classifier cannot be written.
    """
    request = request or AdaptRequest()
    if request.out is not None:
        check_no_classifier(request.out, force=request.force)
    model, kept, choice = _start(pictures, checkpoint, request.device)
    data = read_own(pictures, model.meta.image_preprocessing, request.device, kept)
    classes, counts = data.classes, data.counts
    _check_numbers(counts, request.ways, request.shots)
    model.check((len(classes),), model.image_shape)
    features = _seen(model, data, choice)
    query = None
    if data.query is not None:
        query = (model.learner.precomputed(data.query[0]), data.query[1])
    held_out = None
    if request.steps is None:
        held_out = hold_out(model, features, data.labels, len(classes))
    steps = request.steps if held_out is None else held_out.steps
    model = model if steps is None else replace(model, steps=steps)
    task = own_task((features, data.labels), query, len(classes))
    adapted = adapt_task(model, task)
    check_finite(adapted)
    suspects = () if held_out is None else _suspects(model, held_out, data)
    mistakes = _mistakes(model, task, adapted, held_out, classes)
    path, other = _place(pictures.support, model, len(classes), request.out)
    queries = len(task.query_labels)
    calibration, known = calibrate(model, adapted.weights, task, held_out)
    task = replace(task, support_images=data.images)
    save_classifier(
        path,
        model,
        adapted.weights,
        task,
        classes,
        data.preprocessing,
        calibration=calibration,
        support=known,
        keep=request.keep,
    )
    audit = data.audit
    return OwnAdaptation(
        choice, model, counts, held_out, adapted, mistakes, queries, audit, suspects, path, other
    )


def _start(
    pictures: OwnPictures, checkpoint: Path | None, device: torch.device
) -> tuple[TrainedModel, KeptSupport | None, ModelChoice | None]:
    """The model that adapts; what a classifier kept; why it is this model."""
    if pictures.base is not None:
        return *load_base(pictures.base, device), None
    if checkpoint is None:
        choice = choose_model(pictures, device)
        return choice.model, None, choice
    model = load_model(checkpoint, device)
    check_classifies(model)
    return model, None, None


def _seen(model: TrainedModel, data: OwnData, choice: ModelChoice | None) -> Tensor:
    """What the head sees of the support pictures; a choice of the model has computed it."""
    if choice is not None and choice.features is not None:
        return choice.features
    return model.learner.precomputed(data.images)


def _place(
    support: Path, model: TrainedModel, ways: int, out: Path | None
) -> tuple[Path, Path | None]:
    """The file of the classifier, in a folder that is made; the usual folder, where it is taken."""
    if out is not None:
        return result_folder(out) / CLASSIFIER_FILE, None
    usual = results_home(model.path) / "adapted" / f"{support.resolve().name}-{ways}w"
    folder = result_folder(usual, own=True)
    return folder / CLASSIFIER_FILE, None if folder == usual else usual


def _suspects(model: TrainedModel, held_out: HeldOut, data: OwnData) -> tuple[Suspect, ...]:
    """The new support pictures whose held-out answer is confidently another class."""
    sure = probabilities(model.learner.loss_name, held_out.logits).amax(1).tolist()
    first = len(held_out.labels) - len(data.paths)  # those that a classifier kept have no path
    rows = zip(held_out.labels.tolist(), held_out.predictions.tolist(), sure, strict=True)
    return tuple(
        Suspect(path, data.classes[label], data.classes[predicted], probability)
        for path, (label, predicted, probability) in zip(
            data.paths, list(rows)[first:], strict=True
        )
        if label != predicted and probability >= _CONFIDENT
    )


def _mistakes(
    model: TrainedModel,
    task: Task,
    adapted: Adapted,
    held_out: HeldOut | None,
    classes: Sequence[str],
) -> Confusion | None:
    """The confusions of the queries, else of the held-out pictures."""
    if len(task.query_labels):
        predicted = predictions(model, adapted.weights, task)
        return Confusion("queries", confusion(task.query_labels, predicted, classes))
    if held_out is not None:
        table = confusion(held_out.labels, held_out.predictions, classes)
        return Confusion("held-out support pictures", table)
    return None


def _check_numbers(counts: dict[str, int], ways: int | None, shots: int | None) -> None:
    """Numbers on the command line must be those of the folder."""
    if len(counts) < 2:
        raise DataError(
            "one class alone cannot be told from others",
            why=f"the only class is {next(iter(counts))!r}",
            fix="add a folder of pictures for another class",
        )
    if ways is not None and ways != len(counts):
        raise UsageError(
            f"--ways {ways}, but there are {len(counts)} classes",
            why=", ".join(counts),
            fix="leave --ways out: it is taken from the folder",
        )
    for name, count in counts.items():
        if shots is not None and count != shots:
            raise UsageError(
                f"--shots {shots}, but the class {name!r} has {count} pictures",
                why="classes may differ in size when --shots is left out",
                fix="leave --shots out: it is taken from the folder",
            )
