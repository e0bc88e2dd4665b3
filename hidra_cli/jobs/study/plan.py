"""Studies: a TOML file that names models, seeds and an evaluation → trainings, and their table.

Every model is trained with every seed; with `per_way`, once for each number of ways. All are tested
on the same episodes, so that differences are paired.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hidra_cli.errors import UsageError
from hidra_cli.runs.records import EvaluationProtocol, ProtocolModel
from hidra_cli.settings.layers import Resolved, flatten, lay_over, nest, resolve
from hidra_cli.settings.numbers import Numbers, format_numbers

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StudyEvaluation(_Part):
    """The test: the flags of `hidra evaluate`."""

    ways: Numbers
    shots: Numbers = (1,)
    queries: int = Field(15, ge=1)
    episodes: int = Field(600, ge=2)
    split: Literal["val", "test"] = "test"
    seed: int = Field(0, ge=0)


class StudyModel(_Part):
    """One model: what it has of its own.

    Attributes:
        label: in the table and picture; the model's name in the file, if there is none.
        per_way: one training for each number of ways of the evaluation, tested at its own.
        ways: where it is tested, of the evaluation's; everywhere, if left out.
        minus: the model that it is compared with; the first, if left out.
        steps, normalization: at test, instead of the training's.
        settings: as in a preset, beyond the study's.
    """

    label: str | None = None
    per_way: bool = False
    ways: Numbers | None = None
    minus: str | None = None
    steps: int | None = Field(None, ge=0)
    normalization: str | None = None
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Study(_Part):
    """The whole file.

    Attributes:
        title: of the table and picture.
        preset: what every training starts from.
        settings: of every training, beyond the preset's.
        models: the first is what the others are compared with, unless a model's `minus` names
            another; models that others are compared with are not compared themselves.
    """

    title: str
    preset: str | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    evaluation: StudyEvaluation
    models: dict[str, StudyModel] = Field(min_length=1)

    @field_validator("models")
    @classmethod
    def _named(cls, models: dict[str, StudyModel]) -> dict[str, StudyModel]:
        for name in models:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the model name {name!r} is not made of a-z, 0-9 and -")
        for name, model in models.items():
            if model.minus is not None and model.minus not in models.keys() - {name}:
                raise ValueError(f"{name}.minus: {model.minus!r} is no other model of the study")
        return models


@dataclass(frozen=True)
class Training:
    """One run of a study.

    Attributes:
        settings: nested, over the preset.
        resolved: all of them.
        ways: where it is tested.
    """

    name: str
    model: str
    seed: int
    settings: dict[str, dict[str, Any]]
    resolved: Resolved
    ways: tuple[int, ...]

    @property
    def iterations(self) -> int:
        return self.resolved.settings.outer.iterations


def load_study(path: Path) -> Study:
    """Read and check a study, the settings of all its trainings included.

    Raises:
        UsageError: lists what is wrong.
    """
    try:
        study = Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"the study {path} cannot be read", why=str(exc)) from exc
    except ValidationError as exc:
        problems = (
            ".".join(map(str, error["loc"])) + f": {error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors()
        )
        raise UsageError(f"the study {path} is wrong", why="\n     ".join(problems)) from exc
    list(trainings(study))
    return study


def trainings(study: Study) -> Iterator[Training]:
    """Every run of a study: of the first seed all models, so that they can be compared early.

    Raises:
        UsageError: the settings of one are wrong.
    """
    for seed in study.seeds:
        for name, model in study.models.items():
            ways = model.ways or study.evaluation.ways
            for tested in [(n,) for n in ways] if model.per_way else [ways]:
                settings = flatten(study.settings)
                lay_over(settings, flatten(model.settings))
                settings["run.seed"] = seed
                if model.per_way:
                    settings["tasks.ways"] = tested[0]
                resolved = resolve(settings, preset=study.preset, environ={})
                suffix = f"-{tested[0]}w" if model.per_way else ""
                run = f"{name}{suffix}-seed{seed}"
                yield Training(run, name, seed, nest(settings), resolved, tested)


def evaluate_flags(study: Study, training: Training) -> list[str]:
    """The flags of `hidra evaluate` for one run."""
    evaluation, model = study.evaluation, study.models[training.model]
    flags = {
        "ways": format_numbers(training.ways),
        "shots": format_numbers(evaluation.shots),
        "queries": evaluation.queries,
        "episodes": evaluation.episodes,
        "split": evaluation.split,
        "seed": evaluation.seed,
        "steps": model.steps,
        "normalization": model.normalization,
    }
    return [
        *(f"--{name}={value}" for name, value in flags.items() if value is not None),
        "--last-step",
    ]


def is_wanted(
    study: Study, training: Training, measured: EvaluationProtocol, sha256: str | None
) -> bool:
    """Whether an evaluation is the one that a study asks for, of one run.

    Args:
        measured: the protocol of the evaluation.
        sha256: of the run's model; None where the run is not there any more.
    """
    evaluation, model = study.evaluation, study.models[training.model]
    settings = training.resolved.settings
    steps = settings.inner.steps_at_test if model.steps is None else model.steps
    recorded = measured.models[0].sha256 if measured.models else None
    return measured == EvaluationProtocol(
        models=(
            ProtocolModel(
                sha256=recorded if recorded is None or sha256 is None else sha256,
                steps=steps,
                normalization=model.normalization or settings.model.normalization,
            ),
        ),
        dataset_hash=measured.dataset_hash,  # the run's own data, whatever it is now
        split=evaluation.split,
        within_groups=False,
        ways=training.ways,
        shots=evaluation.shots,
        queries=evaluation.queries,
        episodes=evaluation.episodes,
        seed=evaluation.seed,
        pixels=False,
    )
