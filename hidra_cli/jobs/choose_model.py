"""Which of the shipped models learns people's own pictures: they compete on held-out ones."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hidra_cli.images.drawings import are_drawings
from hidra_cli.images.labelled import LabelledPictures, labelled_pictures
from hidra_cli.jobs.one_task import HeldOut, hold_out
from hidra_cli.jobs.own_data import OwnPictures, read_support
from hidra_cli.runs.locate import shipped_models
from hidra_cli.runs.model import TrainedModel, load_model

# Pictures that the models compete on, about; of every class at least two.
_PICTURES = 100
_FEWEST = 2
# The expected model loses where the other one is right on so many more of the pictures on which
# only one of them is right: two standard deviations of a fair coin (McNemar 1947).
_DEVIATIONS = 2.0


@dataclass(frozen=True)
class ModelChoice:
    """A shipped model, and why it is used.

    Attributes:
        model: that learns the pictures.
        drawings: whether most of them look like drawings.
        right: of each shipped model, how many pictures it labelled right while they were held out;
            empty where a class has one picture only.
        pictures: how many were held out.
        features: what `Learner.precomputed` makes of all support pictures; None if only a sample of
            them was held out.
    """

    model: TrainedModel
    drawings: bool
    right: dict[str, int]
    pictures: int
    features: Tensor | None = None

    @property
    def line(self) -> str:
        looks = f"the pictures look like {'drawings' if self.drawings else 'photographs'}"
        if self.right:
            own = self.right[self.model.name]
            others = ", ".join(f"{n} {r}" for n, r in self.right.items() if n != self.model.name)
            looks += f"; of {self.pictures} held out it labels {own} right, {others}"
        return f"{self.model.name} learns them: {looks} (--checkpoint takes another model)"

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "drawings": self.drawings,
            "held_out": self.pictures,
            "right": self.right,
        }


def choose_model(pictures: OwnPictures, device: torch.device) -> ModelChoice:
    """Take the shipped model that suits people's own pictures.

    What the pictures look like says which one is expected to. Where there is more than one picture
    of every class, some are held out in turn, and another model is taken if it is clearly better.

    Args:
        pictures: where they are.
        device: where the models compute.

    Raises:
        DataError: pictures or labels are missing or damaged.
        UsageError: folders or options cannot be right.
    """
    support = labelled_pictures(pictures.support, pictures.labels)
    sample = _sample(support)
    drawings = are_drawings(sample.paths)
    models = {name: load_model(path, device) for name, path in shipped_models().items()}
    expected = next(
        (name for name, model in models.items() if _reads_drawings(model) == drawings),
        next(iter(models)),
    )
    shots = Counter(support.labels)
    if len(shots) < 2 or min(shots.values()) < _FEWEST:
        return ModelChoice(models[expected], drawings, {}, 0)
    features = {name: _features(model, sample, pictures) for name, model in models.items()}
    results = {
        name: hold_out(model, *features[name], len(sample.classes))
        for name, model in models.items()
    }
    held_out = {name: result for name, result in results.items() if result is not None}
    if len(held_out) < len(models):
        return ModelChoice(models[expected], drawings, {}, 0)
    best = expected
    for name, result in held_out.items():
        if _clearly_better(result, held_out[best]):
            best = name
    right = {name: int(_right(result).sum()) for name, result in held_out.items()}
    whole = features[best][0] if len(sample.paths) == len(support.paths) else None
    return ModelChoice(models[best], drawings, right, len(held_out[best].labels), whole)


def _reads_drawings(model: TrainedModel) -> bool:
    """A model of grey images is one of drawings."""
    return model.image_shape[0] == 1


def _sample(support: LabelledPictures) -> LabelledPictures:
    """The first pictures of every class."""
    most = max(_FEWEST, _PICTURES // len(support.classes))
    seen: Counter[int] = Counter()
    rest: set[Path] = set()
    for path, label in zip(support.paths, support.labels, strict=True):
        seen[label] += 1
        if seen[label] > most:
            rest.add(path)
    return support.without(rest)


def _features(
    model: TrainedModel, sample: LabelledPictures, pictures: OwnPictures
) -> tuple[Tensor, Tensor]:
    """What the head sees of the pictures that can be read, or their images; labels (n,)."""
    read = read_support(sample.paths, model.meta.image_preprocessing, pictures.options)
    labels = torch.tensor(sample.without(set(read.damaged)).labels)
    device = model.learner.device
    return model.learner.precomputed(read.images.to(device)), labels.to(device)


def _right(result: HeldOut) -> Tensor:
    return result.predictions == result.labels


def _clearly_better(one: HeldOut, other: HeldOut) -> bool:
    """By the pictures on which exactly one of both is right."""
    ours = int((_right(one) & ~_right(other)).sum())
    theirs = int((_right(other) & ~_right(one)).sum())
    return ours - theirs > _DEVIATIONS * math.sqrt(ours + theirs)
