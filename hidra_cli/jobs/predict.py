"""Labelling pictures with an adapted classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hidra_cli.api.decoding import MOST_PIXELS, Picture
from hidra_cli.errors import DataError, UsageError
from hidra_cli.images.labelled import pictures_in
from hidra_cli.images.own_pictures import remarks, without_pixels
from hidra_cli.jobs.classifier import Answer, Classifier
from hidra_cli.system.console import Console, Silence

NONE_OF_THESE, UNKNOWN = "none of these", "unknown"
_LEAST_PROBABILITY = 0.5  # of a sigmoid classifier, unless one is given
# A picture is unknown below this: of the classes' own pictures, 1 in 20 to 1 in 10 are.
AUTO_UNKNOWN = 0.25

Unknown = Literal["off", "auto"] | float


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one picture.

    Attributes:
        label: None where no class is probable enough, or the picture is unknown.
        ranks: (class, probability), the most probable first; as many as were asked for.
        known: how likely it is of one of the classes, in 0..1; None where that is not asked, or
            cannot be said.
    """

    image: Path
    label: str | None
    ranks: tuple[tuple[str, float], ...]
    known: float | None = None

    @property
    def shown_label(self) -> str:
        if self.label is not None:
            return self.label
        return NONE_OF_THESE if self.known is None else UNKNOWN

    @property
    def probability(self) -> float:
        return self.ranks[0][1]

    def to_json(self) -> dict[str, Any]:
        first = {"label": self.label, "probability": self.probability}
        row: dict[str, Any] = {"image": str(self.image), **first}
        if self.known is not None:
            row["known"] = self.known
        if len(self.ranks) > 1:
            row["top"] = [{"label": name, "probability": p} for name, p in self.ranks]
        return row


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of all pictures.

    Attributes:
        damaged: why the pictures that are left out could not be read.
        left_out: how many files were left out, by what they are.
        notes: lines that people should read.
    """

    rows: tuple[Prediction, ...]
    damaged: tuple[DataError, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "predictions": [row.to_json() for row in self.rows],
            "damaged": [error.what for error in self.damaged],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }

    def check_complete(self) -> None:
        """Raise DataError where pictures could not be read."""
        if self.damaged:
            raise DataError(
                f"{len(self.damaged)} of {len(self.damaged) + len(self.rows)} pictures could not "
                "be read",
                why=self.damaged[0].what,
                fix="repair or remove them, or add --skip-broken; the others were labelled",
            )


def predict_pictures(
    classifier: Classifier,
    places: Sequence[Path],
    console: Console | None = None,
    *,
    max_pixels: int = MOST_PIXELS,
    top_k: int = 1,
    batch: int = 64,
    none_below: float | None = None,
    unknown: Unknown = "auto",
) -> Predictions:
    """Label pictures; one that cannot be read is warned of and left out.

    Args:
        classifier: what labels them.
        places: files, and folders of them.
        console: of warnings and progress; None: silent.
        max_pixels: a larger picture is damaged.
        top_k: classes per picture.
        batch: pictures per forward pass.
        none_below: the probability below which no class is named; None for the usual one.
        unknown: how likely of one of the classes a picture has to be, in 0..1; "auto" is 0.25 of
            models that were tested on unknown pictures, and "off" of others.

    Raises:
        DataError: a folder holds no picture.
        UsageError: `none_below` of a classifier that always names a class, or `unknown` of one
            that cannot say it.
    """
    console = console or Silence()
    least = _least_probability(none_below, classifier.learner.loss_name)
    least_known = _least_known(unknown, classifier)
    if classifier.normalization == "transductive":
        console.warn("these predictions depend on which pictures are predicted together")
    paths, left_out = pictures_in(places)
    rows: list[Prediction] = []
    damaged: list[DataError] = []
    seen: list[tuple[Path, Picture]] = []
    with console.progress("predicting", len(paths)) as advance:
        answers = classifier.predict(paths, batch, max_pixels)
        for done, (path, picture, answer) in enumerate(answers, start=1):
            if isinstance(picture, DataError):
                damaged.append(picture)
                console.warn(f"{picture.what}: {picture.why}")
            elif answer is not None:
                rows.append(
                    _prediction(path, answer, classifier.classes, top_k, least, least_known)
                )
                seen.append((path, without_pixels(picture)))
            advance(done)
    notes = tuple(remarks(seen, classifier.preprocessing))
    return Predictions(tuple(rows), tuple(damaged), left_out, notes)


def _least_probability(chosen: float | None, loss: str) -> float:
    """Below which no class is named; under softmax one always is."""
    if loss == "sigmoid":
        return _LEAST_PROBABILITY if chosen is None else chosen
    if chosen is not None:
        raise UsageError(
            "--none-below needs a classifier that judges each class by itself",
            why=f"this one's model was trained with --loss {loss}, whose probabilities add up to "
            "1: some class is always likely",
            fix="leave it out, or adapt a model of hidra meta-train --loss sigmoid",
        )
    return 0.0


def _least_known(unknown: Unknown, classifier: Classifier) -> float | None:
    """Below which a picture is unknown; None where that is not asked."""
    able = classifier.calibration.middle is not None
    if unknown == "off" or (unknown == "auto" and not (able and classifier.validated)):
        return None
    if not able:
        raise UsageError(
            f"--unknown {unknown}: this classifier cannot say which pictures are unknown",
            why="its model judges each class by itself, serves one number of classes, or had one "
            "picture of a class",
            fix="adapt again with two pictures of every class or more, or leave --unknown out",
        )
    return AUTO_UNKNOWN if unknown == "auto" else float(unknown)


def _prediction(
    path: Path,
    answer: Answer,
    classes: tuple[str, ...],
    top_k: int,
    least: float,
    least_known: float | None,
) -> Prediction:
    values, places = answer.probabilities.topk(min(top_k, len(classes)))
    pairs = zip(values.tolist(), places.tolist(), strict=True)
    ranks = tuple((classes[place], round(value, 6)) for value, place in pairs)
    label = ranks[0][0] if values[0] >= least else None
    if least_known is None or answer.known is None:
        return Prediction(path, label, ranks)
    return Prediction(
        path, None if answer.known < least_known else label, ranks, round(answer.known, 6)
    )
