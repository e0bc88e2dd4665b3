"""Adapted classifiers, each a file of its own: weights, classes, preprocessing and provenance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hidra_cli.api import FastWeights
from hidra_cli.api.decoding import MOST_PIXELS, Picture
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.engine import losses
from hidra_cli.engine.devices import choose_float32, memory_errors, resolve_device
from hidra_cli.engine.learner import Learner, Weights
from hidra_cli.engine.normalization import EpisodeNorm, full_precision, reads_support
from hidra_cli.engine.task_batch import Task
from hidra_cli.errors import DataError, UsageError
from hidra_cli.images.own_pictures import as_image, decoded
from hidra_cli.jobs.familiarity import familiarity, known_probability
from hidra_cli.runs.checkpoint import (
    Checkpoint,
    incomplete,
    load_checkpoint,
    save_checkpoint,
)
from hidra_cli.runs.model import TrainedModel, restore_learner
from hidra_cli.runs.model_records import CalibrationRecord, ClassifierMeta
from hidra_cli.system.files import check_folder

CLASSIFIER_FORMAT = "hidra-classifier"
CLASSIFIER_FILE = "classifier.safetensors"


@dataclass(frozen=True)
class Answer:
    """What a classifier says of a picture.

    Attributes:
        probabilities: (N,).
        known: how likely it is of one of the classes, in 0..1; None where that cannot be said.
    """

    probabilities: Tensor
    known: float | None


@dataclass(frozen=True)
class Classifier:
    """An adapted model that labels images by itself: no support set is needed any more.

    In `support` and `tasknorm` mode it keeps the normalization statistics of its support images;
    in `transductive` mode predictions depend on the images predicted together.

    Attributes:
        classes: N names.
        preprocessing: how a picture becomes an image that it sees.
        calibration: what its answers are worth.
        support: features (m, F) of the support pictures, of length 1; None where it cannot be
            said which pictures are unknown.
        validated: whether its model was tested on unknown pictures.
    """

    learner: Learner
    weights: Weights
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: CalibrationRecord = field(default_factory=CalibrationRecord)
    support: Tensor | None = None
    validated: bool = False

    @property
    def normalization(self) -> str:
        return self.learner.normalization

    def to(self, device: torch.device) -> Classifier:
        """This classifier on a device."""
        learner = self.learner.to(device)
        choose_float32(learner.precision, device)
        head = {name: value.to(device) for name, value in self.weights.head.items()}
        support = None if self.support is None else self.support.to(device)
        weights = Weights(_body(learner), head)
        return replace(self, learner=learner, weights=weights, support=support)

    def probabilities(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1], or features → calibrated class probabilities (n, N)."""
        return self._answers(images)[0]

    @torch.no_grad()
    def _answers(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class probabilities (n, N), and how likely each picture is of one of the classes: (n,).

        The latter is None where it cannot be said.
        """
        features = self.learner.features(self.weights.body, images)
        logits = self.learner.head_logits(self.weights, features)
        calibration, known = self.calibration, None
        if self.support is not None and calibration.middle is not None and calibration.spread:
            share = calibration.logit_share
            score = familiarity(self.support, full_precision(features), logits, share)
            known = known_probability(score, calibration.middle, calibration.spread)
        if calibration.scale != 1:
            logits = calibration.scale * logits
        return losses.probabilities(self.learner.loss_name, logits), known

    def predict(
        self, paths: Sequence[Path], batch: int = 64, max_pixels: int = MOST_PIXELS
    ) -> Iterator[tuple[Path, Picture, Answer] | tuple[Path, DataError, None]]:
        """Each picture with what is said of it, or why it cannot be read."""
        device = self.learner.device
        pictures = zip(paths, decoded(paths, self.preprocessing, max_pixels), strict=True)
        waiting: list[tuple[Path, Picture | DataError]] = []
        for index, pair in enumerate(pictures, start=1):
            waiting.append(pair)
            if len(waiting) < batch and index < len(paths):
                continue
            images = [as_image(picture) for _, picture in waiting if isinstance(picture, Picture)]
            rows: Iterator[Answer] = iter(())
            if images:
                with memory_errors("a smaller --batch, or --device cpu"):
                    seen = self.learner.precomputed(torch.stack(images).to(device))
                    probabilities, known = self._answers(seen)
                of_each = [None] * len(images) if known is None else known.tolist()
                rows = map(Answer, probabilities.cpu(), of_each)
            for path, picture in waiting:
                if isinstance(picture, DataError):
                    yield path, picture, None
                else:
                    yield path, picture, next(rows)
            waiting = []


@dataclass(frozen=True)
class KeptSupport:
    """The support images a classifier was adapted to: pictures (n, C, H, W) in [0, 1]."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def save_classifier(
    path: Path,
    model: TrainedModel,
    weights: Weights,
    task: Task,
    classes: Sequence[str],
    preprocessing: Preprocessing | None = None,
    *,
    calibration: CalibrationRecord | None = None,
    support: Tensor | None = None,
    keep: bool = True,
) -> None:
    """Write weights, classes, preprocessing and provenance into one file.

    Args:
        path: of the file.
        model: what was adapted.
        weights: adapted.
        task: its support images are kept, and the weights it started from, so that classes can be
            added later.
        classes: N names.
        preprocessing: how its pictures were read; None for that of the model.
        calibration: of its answers.
        support: features (n, F) that new pictures are compared with.
        keep: False leaves the images and the starting weights out.

    Raises:
        RunError: it cannot be written.
    """
    preprocessing = preprocessing or model.meta.image_preprocessing
    tensors = {f"model.{name}": value for name, value in model.learner.state_dict().items()}
    if keep:
        tensors |= {f"start.{name}": value for name, value in _body(model.learner).items()}
        tensors["support.images"] = (task.support_images * 255).round().to(torch.uint8)
        tensors["support.labels"] = task.support_labels
    tensors |= {f"model.backbone.{name}": value for name, value in weights.body.items()}
    tensors |= {f"head.{name}": value for name, value in weights.head.items()}
    if support is not None:
        tensors["known.support"] = support
    if reads_support(model.normalization):
        tensors |= _support_statistics(model.learner, weights, task)
    meta = ClassifierMeta(
        classes=tuple(classes),
        settings=model.meta.settings,
        plugins=model.meta.plugins,
        image_shape=model.image_shape,
        max_ways=model.max_ways,
        invert=preprocessing.invert,
        preprocessing=preprocessing,
        network=model.meta.network,
        defaults=model.meta.defaults,
        steps=model.steps,
        iteration=model.meta.iteration,
        dataset_hash=model.meta.dataset_hash,
        made_from=str(model.path),
        calibration=calibration or CalibrationRecord(),
    )
    save_checkpoint(path, tensors, {"format": CLASSIFIER_FORMAT, **meta.to_json()})


def load_classifier(path: Path, device: torch.device | None = None) -> Classifier:
    """Read a file of `save_classifier`.

    Args:
        path: of the file, or its folder.
        device: where it computes; None: a GPU where there is one.

    Raises:
        DataError: it is missing, damaged or not a classifier.
        PluginError: a plugin it needs is missing.
        RunError: its weights do not fit.
    """
    checkpoint = load_checkpoint(find_classifier(path), CLASSIFIER_FORMAT)
    return restore_classifier(checkpoint).to(device or resolve_device())


def find_classifier(path: Path) -> Path:
    """The file of a classifier: itself, or the one in a folder.

    Raises:
        DataError: the folder holds none or several.
    """
    try:
        if not path.is_dir():
            return path
        files = sorted(path.glob("*.safetensors"))
    except OSError:  # such as a name that is too long: reading it will say so
        return path
    if (usual := path / CLASSIFIER_FILE) in files:
        return usual
    if len(files) != 1:
        raise DataError(
            f"{path} is a folder of {len(files)} classifiers",
            why=", ".join(file.name for file in files[:5]) or f"it has no {CLASSIFIER_FILE}",
            fix="name the file of a classifier; hidra adapt writes one",
        )
    return files[0]


def check_no_classifier(out: Path, *, force: bool) -> None:
    """Check before the work that a classifier can be written into a folder.

    Raises:
        UsageError: it is a file, or has a classifier that is not to be replaced.
        RunError: it cannot be written to.
    """
    check_folder(out, "--out")
    if (out / CLASSIFIER_FILE).exists() and not force:
        raise UsageError(
            f"{out} has a classifier already",
            why=f"{out / CLASSIFIER_FILE} would be replaced",
            fix="name another --out, or replace it: --force",
        )


def restore_classifier(checkpoint: Checkpoint) -> Classifier:
    """Build the classifier that a file describes, on the CPU; raises as `load_classifier`."""
    meta = checkpoint.classifier_meta
    learner = restore_learner(checkpoint, meta, meta.settings)
    try:
        if reads_support(learner.normalization):
            statistics = checkpoint.part("statistics")
            for name, layer in _norm_layers(learner).items():
                for key in layer.statistics:
                    setattr(layer, key, statistics[f"{name}.{key}"])
        weights = Weights(_body(learner), checkpoint.part("head"))
        classifier = Classifier(
            learner,
            weights,
            meta.classes,
            meta.image_preprocessing,
            meta.calibration,
            checkpoint.part("known").get("support"),
            meta.defaults is not None,
        )
        answer = classifier.probabilities(torch.zeros(2, *meta.image_shape))  # do the shapes fit?
        if answer.shape != (2, len(meta.classes)):
            raise ValueError(f"{len(meta.classes)} classes, but {answer.shape[1]} output neurons")
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:
        why = f"{type(exc).__name__}: {exc}".split("\n")[0]
        raise incomplete(checkpoint, why) from exc
    return classifier


def load_base(path: Path, device: torch.device) -> tuple[TrainedModel, KeptSupport]:
    """What a classifier was adapted from, and to: so that it can be, with more, again.

    Raises:
        DataError: it is missing, damaged or not a classifier.
        UsageError: it was saved without its support images.
        PluginError, RunError: as `load_classifier`.
    """
    path = find_classifier(path)
    checkpoint = load_checkpoint(path, CLASSIFIER_FORMAT)
    meta = checkpoint.classifier_meta
    start, support = checkpoint.part("start"), checkpoint.part("support")
    if not support or (not start and meta.network is None):  # a frozen network has no start
        raise UsageError(
            f"{path} cannot grow",
            why="it was saved without its support images (--forget)",
            fix="adapt again, to a folder of all classes: hidra adapt --support DIR",
        )
    tensors = {n: t for n, t in checkpoint.tensors.items() if n.startswith("model.")}
    tensors |= {f"model.backbone.{name}": value for name, value in start.items()}
    begun = replace(checkpoint, tensors=tensors)
    learner = restore_learner(begun, meta, meta.settings)
    images, labels = support.get("images", torch.empty(0)), support.get("labels", torch.empty(0))
    if tuple(images.shape[1:]) != meta.image_shape or labels.shape != images.shape[:1]:
        raise incomplete(checkpoint, "its support images and labels do not fit")
    if labels.dtype != torch.int64 or set(labels.tolist()) != set(range(len(meta.classes))):
        raise incomplete(checkpoint, "its labels are not those of its classes")
    kept = KeptSupport(images.float().div(255).to(device), labels.to(device), meta.classes)
    choose_float32(meta.settings.run.precision, device)
    model = TrainedModel(
        name=path.stem,
        path=path,
        settings=meta.settings,
        learner=learner.to(device),
        meta=meta,
        sha256=checkpoint.sha256,
        steps=meta.steps,
    )
    return model, kept


@torch.no_grad()
def _support_statistics(learner: Learner, weights: Weights, task: Task) -> dict[str, Tensor]:
    """Every normalization layer's statistics over the support images, with adapted weights."""
    found = {}
    with learner.episode.record():
        learner.support_features(weights.body, task)
    for name, layer in _norm_layers(learner).items():
        for key in layer.statistics:
            found[f"statistics.{name}.{key}"] = layer.get_buffer(key)
            setattr(layer, key, None)
    return found


def _norm_layers(learner: Learner) -> dict[str, EpisodeNorm]:
    return {n: m for n, m in learner.backbone.named_modules() if isinstance(m, EpisodeNorm)}


def _body(learner: Learner) -> FastWeights:
    return dict(learner.backbone.named_parameters())
