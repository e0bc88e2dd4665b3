"""What the JSON files of a run hold: a model for each, with the bounds of every entry.

Entries stand in the order in which they are written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from hidra_cli.api.registry import Kind
from hidra_cli.errors import DataError
from hidra_cli.settings.declarations import MOST_STEPS
from hidra_cli.settings.numbers import MOST_WAYS_OR_SHOTS
from hidra_cli.settings.schema import Settings
from hidra_cli.tasks.objective import OBJECTIVES

# JSON says which kind a value is of: "4" and true are not 4.
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, le=MOST_STEPS)]
Positive = Annotated[int, Field(strict=True, ge=1, le=MOST_STEPS)]
Size = Annotated[int, Field(strict=True, ge=1, le=MOST_WAYS_OR_SHOTS)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Difference = Annotated[float, Field(strict=True)]
Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=10_000)]
Split = Literal["train", "val", "test"]
Texts = Annotated[dict[Name, Text], Field(max_length=100)]


class Record(BaseModel):
    """An object in a file. Entries that it does not know are left out."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )

    def to_json(self) -> dict[str, Any]:
        """The object as it is written."""
        return self.model_dump(by_alias=True)


class _Sparse(Record):
    """An object that is written without the entries that are None."""

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}


class PluginRecord(Record):
    """Where a plugin came from."""

    name: Name
    distribution: Name
    version: Name


class _Scored(Record):
    """An object with a mean score, which is written under the name of its metric.

    Attributes:
        metric: the key of an objective's metric.
        score: an accuracy in 0..1, or a mean squared error.
        interval: the half-width of its 95 % confidence interval.
    """

    metric: str
    score: NotNegative
    interval: NotNegative

    @model_validator(mode="before")
    @classmethod
    def _named(cls, content: Any) -> Any:
        """`"accuracy": 0.9` → `"metric": "accuracy", "score": 0.9`."""
        if not isinstance(content, dict) or "score" in content:
            return content
        metrics = [key for key in OBJECTIVES if key in content]
        if len(metrics) != 1:
            raise ValueError(f"it needs one of {', '.join(OBJECTIVES)}")
        return content | {"metric": metrics[0], "score": content[metrics[0]]}

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.metric not in OBJECTIVES:
            raise ValueError(f"{self.metric} is no metric")
        if OBJECTIVES[self.metric].unit and self.score > 1:
            raise ValueError(f"{self.metric} is a share, of at most 1")
        return self

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        metric, score, interval = (content.pop(key) for key in ("metric", "score", "interval"))
        steps = content.pop("per_step", None)
        content |= {metric: score, "interval": interval}
        return content if steps is None else content | {"per_step": steps}


class ValidationRecord(_Scored):
    """A validation."""

    iteration: Count


class StartRecord(Record):
    """The weights that a run began with."""

    checkpoint: Text
    sha256: Name


class Session(_Sparse):
    """What one process, or several that share a run, brought to it: versions and hardware."""

    hidra_cli: Text | None = Field(None, alias="hidra-cli")
    python: Text | None = None
    packages: Texts | None = None
    plugins: dict[Kind, PluginRecord] | None = None
    platform: Text | None = None
    processor: Text | None = None
    cores: Count | None = None
    threads: Count | None = None
    processes: Count | None = None
    cpu_capability: Text | None = None
    kernels: Flag | None = None
    device: Text | None = None
    command: tuple[Text, ...] | None = None
    started: Text | None = None
    strategy: Text | None = None
    start: StartRecord | None = None
    after_iteration: Count | None = None


class Environment(Session):
    """What a result depends on beside its settings (environment.json).

    Attributes:
        dataset: what the prepared data says of itself.
        resumed: the sessions after the first one.
    """

    dataset: Texts | None = None
    resumed: tuple[Session, ...] | None = None


class StepRecord(_Scored):
    """The score after an inner step."""

    step: Count


class ScoreRecord(_Scored):
    """The score of one model at one number of ways and shots.

    Attributes:
        per_step: before and after each inner step; None where only the last was tested.
    """

    model: Name
    normalization: Name
    ways: Size
    shots: Size
    episodes: Positive
    per_step: tuple[StepRecord, ...] | None = None


class DifferenceRecord(Record):
    """The mean of paired differences of two models on the same episodes."""

    model: Name
    minus: Name
    ways: Size
    shots: Size
    difference: Difference
    interval: NotNegative


class RunResult(Record):
    """What a finished run reports (its result.json).

    Attributes:
        tasks_per_second: None where no step was left to take.
    """

    format_version: Literal[1] = 1
    run: Text
    iterations: Positive
    skipped: Count
    tasks_per_second: NotNegative | None
    best_validation: ValidationRecord
    test: tuple[ScoreRecord, ...]
    environment: Environment


class EvaluatedModel(Record):
    """A model that was evaluated.

    Attributes:
        checkpoint: its path.
        steps, normalization: those of the evaluation.
        settings: those of the training.
    """

    name: Name
    checkpoint: Text
    iteration: Count
    steps: Count
    normalization: Name
    settings: Settings


class ProtocolModel(Record):
    """A model and how it adapts, as a protocol names it.

    Attributes:
        sha256: of its checkpoint; None where an older file does not say it.
    """

    sha256: Name | None
    steps: Count
    normalization: Name


class EvaluationProtocol(Record):
    """All that the scores of an evaluation depend on, but for the machine and versions.

    Two evaluations with equal protocols are the same measurement.

    Attributes:
        models: in order.
        pixels: whether the nearest neighbour on pixels is among them.
    """

    models: tuple[ProtocolModel, ...]
    dataset_hash: Name
    split: Split
    within_groups: Flag
    ways: tuple[Size, ...]
    shots: tuple[Size, ...]
    queries: Positive
    episodes: Positive
    seed: Seed
    pixels: Flag


class EvaluationResult(Record):
    """What `hidra evaluate` reports (its result.json).

    Attributes:
        protocol: None in a file from before it was recorded.
    """

    format_version: Literal[1] = 1
    dataset: Name
    dataset_hash: Name
    split: Split
    within_groups: Flag
    seed: Seed
    queries: Positive
    protocol: EvaluationProtocol | None = None
    models: tuple[EvaluatedModel, ...]
    results: tuple[ScoreRecord, ...]
    comparisons: tuple[DifferenceRecord, ...]
    environment: Environment

    @property
    def measured(self) -> EvaluationProtocol | None:
        """The protocol, or what the other entries of an older file say of it; None without rows."""
        if self.protocol is not None or not self.results:
            return self.protocol
        names = {model.name for model in self.models}
        return EvaluationProtocol(
            models=tuple(
                ProtocolModel(sha256=None, steps=m.steps, normalization=m.normalization)
                for m in self.models
            ),
            dataset_hash=self.dataset_hash,
            split=self.split,
            within_groups=self.within_groups,
            ways=tuple(sorted({row.ways for row in self.results})),
            shots=tuple(sorted({row.shots for row in self.results})),
            queries=self.queries,
            episodes=self.results[0].episodes,
            seed=self.seed,
            pixels=any(row.model not in names for row in self.results),
        )


R = TypeVar("R", bound=Record)


def faults(error: ValidationError) -> str:
    """What is wrong with an object, a line for each entry, the first three."""
    lines = [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in error.errors(include_url=False)
    ]
    lines = [line.replace("Value error, ", "") for line in lines]
    return "\n     ".join(lines[:3])


def load_record(path: Path, kind: type[R]) -> R:
    """Read and check a JSON file that a run wrote.

    Raises:
        DataError: it is missing or damaged; says which entry is wrong.
    """
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as exc:
        why = faults(exc)
    except (OSError, ValueError, RecursionError) as exc:
        why = f"{type(exc).__name__}: {exc}".split("\n")[0]
    raise DataError(f"{path} is damaged", why=why, fix="remove it, and make it again")


def record_or_none(path: Path, kind: type[R]) -> R | None:
    """As `load_record`; None where the file is missing or damaged, which is as good as none."""
    try:
        return load_record(path, kind)
    except DataError:
        return None
