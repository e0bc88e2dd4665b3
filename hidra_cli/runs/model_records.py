"""What a file says of the model in it: a checkpoint, or a classifier.

Entries stand in the order in which they are written. A checkpoint's hash depends on it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.api.registry import Kind
from hidra_cli.runs.records import (
    Count,
    Difference,
    Flag,
    Name,
    NotNegative,
    PluginRecord,
    Positive,
    Record,
    Size,
    Text,
    ValidationRecord,
)
from hidra_cli.settings.numbers import MOST_WAYS_OR_SHOTS
from hidra_cli.settings.schema import Settings
from hidra_cli.tasks.objective import CLASSIFICATION, REGRESSION, Objective


def _preprocessing(value: Any) -> Preprocessing:
    if isinstance(value, Preprocessing):
        return value
    try:
        return Preprocessing.from_record(value)
    except (KeyError, TypeError, AttributeError, OverflowError) as exc:
        raise ValueError(f"{type(exc).__name__}: {exc}") from exc


PreprocessingRecord = Annotated[
    Preprocessing,
    PlainValidator(_preprocessing),
    PlainSerializer(Preprocessing.record, return_type=dict[str, Any]),
]


class AveragedRecord(Record):
    """One of the models that a mean was taken of."""

    sha256: Name
    iteration: Count


class NetworkRecord(Record):
    """The frozen network of a model, whose weights are not in the file.

    Attributes:
        sha256: of its tensors.
        size: bytes of its tensors.
    """

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Positive


class CalibrationDefaults(Record):
    """What a model's probabilities are worth before any picture was held out; see `calibration`.

    Attributes:
        log_scale: a, b, c, d of the default scale exp(a + b ln N + c ln K + d ln N ln K).
        logit_share: of the largest logit in how familiar a picture is.
        known_offset: of one picture per class: a + b ln N from how familiar pictures of a class
            are that was left out, to the middle between them and pictures of the classes.
        known_spread: of one picture per class, the deviation of either.
    """

    log_scale: tuple[Difference, Difference, Difference, Difference]
    logit_share: NotNegative
    known_offset: tuple[Difference, Difference]
    known_spread: NotNegative


class CalibrationRecord(Record):
    """What a classifier's answers are worth.

    Attributes:
        scale: factor of its logits.
        logit_share: as in `CalibrationDefaults`.
        middle, spread: of how familiar pictures are, between those of its classes and others; None
            where it cannot be said.
    """

    scale: Annotated[float, Field(strict=True, gt=0)] = 1.0
    logit_share: NotNegative = 0.0
    middle: Difference | None = None
    spread: NotNegative | None = None


class ModelMeta(Record):
    """What a file says of the model in it and of the data it was trained on.

    Attributes:
        image_shape: (C, H, W).
        max_ways: the most classes of a training task.
        invert: whether pictures are stored as 255 − value.
        preprocessing: how pictures became images; None where there are none, and in older files.
        network: what is frozen of the model; None, and not written, where nothing is.
        defaults: of its calibration; None, and not written, where it has none.
        iteration: of the training.
    """

    order: ClassVar[tuple[str, ...]]  # in which entries are written

    settings: Settings
    plugins: Annotated[dict[Kind, PluginRecord], Field(min_length=3)]
    image_shape: tuple[Size, Size, Size]
    max_ways: Size
    dataset_hash: Name
    invert: Flag
    preprocessing: PreprocessingRecord | None = None
    network: NetworkRecord | None = None
    defaults: CalibrationDefaults | None = None
    iteration: Count

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.settings.model.normalization == "frozen") != (self.network is not None):
            raise ValueError("network: a frozen model names it, and no other does")
        return self

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        if self.image_preprocessing.image_shape != self.image_shape:
            raise ValueError("its pictures are read in another shape than its model sees")
        return self

    @property
    def image_preprocessing(self) -> Preprocessing:
        """How a picture becomes an image; older files say the shape and `invert` alone."""
        return self.preprocessing or Preprocessing(self.image_shape, self.invert)

    @property
    def objective(self) -> Objective:
        """What the model was trained for."""
        return CLASSIFICATION

    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        for name in ("network", "defaults"):
            if content[name] is None:
                del content[name]
        return {name: content[name] for name in self.order if name in content}


class CheckpointMeta(ModelMeta):
    """What a checkpoint says: of the training so far, too.

    Attributes:
        problem: the name of an objective.
        store: the name of the prepared file.
        best: the best validation; None before the first, and of an average.
        skipped: steps left out, in all and directly before this checkpoint.
        average_of: the models it is the mean of; None, and not written, for a run's own.
    """

    order = (
        "settings",
        "plugins",
        "problem",
        "image_shape",
        "max_ways",
        "dataset_hash",
        "store",
        "invert",
        "preprocessing",
        "network",
        "defaults",
        "iteration",
        "best",
        "skipped",
        "average_of",
    )

    problem: Literal["classification", "regression"] = "classification"
    store: Text = ""
    best: ValidationRecord | None
    skipped: tuple[Count, Count]
    average_of: tuple[AveragedRecord, ...] | None = None

    @property
    def objective(self) -> Objective:
        return REGRESSION if self.problem == REGRESSION.name else CLASSIFICATION

    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        if self.average_of is None:
            del content["average_of"]
        return content


class ClassifierMeta(ModelMeta):
    """What a classifier says: of its classes, too.

    Attributes:
        classes: N names.
        steps: inner steps that it was adapted with.
        made_from: path of the checkpoint.
        calibration: of its answers.
    """

    order = (
        "classes",
        "settings",
        "plugins",
        "image_shape",
        "max_ways",
        "invert",
        "preprocessing",
        "network",
        "defaults",
        "steps",
        "iteration",
        "dataset_hash",
        "made_from",
        "calibration",
    )

    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_WAYS_OR_SHOTS)]
    steps: Count
    made_from: Text = ""
    calibration: CalibrationRecord = CalibrationRecord()
