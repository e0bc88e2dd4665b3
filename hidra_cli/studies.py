"""Studies: a TOML file that names models, seeds and an evaluation → trainings, and their table.

Every model is trained with every seed; with `per_way`, once for each number of ways. All are tested
on the same episodes, so that differences are paired.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hidra_cli.errors import DataError, UsageError
from hidra_cli.evaluation import Cell, compare, interval
from hidra_cli.picture import Curve
from hidra_cli.problems import PROBLEMS, Problem
from hidra_cli.report.facts import read_metrics
from hidra_cli.runs import RunDir
from hidra_cli.settings import (
    Numbers,
    Resolved,
    Settings,
    flatten,
    format_numbers,
    lay_over,
    nest,
    resolve,
)

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
        study = Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
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
            for chosen in [(n,) for n in ways] if model.per_way else [ways]:
                settings = flatten(study.settings)
                lay_over(settings, flatten(model.settings))
                settings["run.seed"] = seed
                if model.per_way:
                    settings["tasks.ways"] = chosen[0]
                resolved = resolve(settings, preset=study.preset, environ={})
                suffix = f"-{chosen[0]}w" if model.per_way else ""
                run = f"{name}{suffix}-seed{seed}"
                yield Training(run, name, seed, nest(settings), resolved, chosen)


def read_episodes(path: Path) -> list[Cell]:
    """The scores of single episodes that `hidra evaluate` wrote.

    Raises:
        DataError: the file is missing or not of that form.
    """
    found: dict[tuple[str, str, int, int, Problem], list[float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                shape, problem = (int(row["ways"]), int(row["shots"])), PROBLEMS[row["metric"]]
                key = row["model"], row["normalization"], *shape, problem
                found.setdefault(key, []).append(float(row["score"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as exc:
        raise DataError(
            f"{path} is no list of episodes",
            why=f"{type(exc).__name__}: {exc}",
            fix="remove its folder: the study then evaluates that run again",
        ) from exc
    return [
        Cell(model, normalization, ways, shots, np.array(values)[:, None], problem)
        for (model, normalization, ways, shots, problem), values in found.items()
    ]


def pooled(study: Study, tested: Iterable[tuple[Training, Sequence[Cell]]]) -> list[Cell]:
    """One cell per model, ways and shots: the episodes of all its seeds, one after the other.

    Args:
        study: the study.
        tested: all its trainings, each with its cells.
    """
    parts: dict[tuple[str, int, int], list[Cell]] = {}
    for training, cells in tested:
        for cell in cells:
            parts.setdefault((training.model, cell.ways, cell.shots), []).append(cell)
    return [
        Cell(
            study.models[model].label or model,
            seeds[0].normalization,
            ways,
            shots,
            np.concatenate([cell.scores for cell in seeds]),
            seeds[0].problem,
        )
        for (model, ways, shots), seeds in parts.items()
    ]


def learning(
    study: Study, runs: Iterable[tuple[Training, RunDir]], problem: Problem
) -> list[Curve]:
    """The validations of each training; none of a run that is elsewhere."""
    curves = []
    for training, run in runs:
        if points := read_metrics(run, [], problem).validation:
            ways = format_numbers(training.resolved.settings.tasks.ways)
            label = study.models[training.model].label or training.model
            scores = tuple((step, mean) for step, mean, _ in points)
            curves.append(Curve(label, ways, training.seed, scores))
    return curves


def summary(study: Study, cells: Sequence[Cell]) -> dict[str, Any]:
    """What `study.json` holds of the results: per seed and together."""
    rows = []
    for cell in cells:
        mean, half = interval(cell.final)
        each = [float(part.mean()) for part in np.split(cell.final, len(study.seeds))]
        rows.append(
            {
                "model": cell.contender,
                "normalization": cell.normalization,
                "ways": cell.ways,
                "shots": cell.shots,
                cell.problem.key: mean,
                "interval": half,
                "per_seed": each,
                "seed_deviation": float(np.std(each, ddof=1)) if len(each) > 1 else None,
            }
        )
    differences = compare(cells, _references(study))
    return {"metric": cells[0].problem.key, "results": rows, "differences": differences}


def _references(study: Study) -> dict[str, str]:
    """The label of each model that is compared → that of the model it is compared with."""
    first = next(iter(study.models))
    minus = {name: model.minus or first for name, model in study.models.items()}
    references = {first} | {model.minus for model in study.models.values()}
    label = {name: model.label or name for name, model in study.models.items()}
    return {label[name]: label[minus[name]] for name in minus if name not in references}


def markdown(study: Study, found: Mapping[str, Any]) -> str:
    """The table of a study: a row per model, a column per number of ways."""
    evaluation, problem = study.evaluation, PROBLEMS[found["metric"]]
    lines = [
        f"Test {problem.heading}, mean ± 95 % interval over {evaluation.episodes} episodes of each "
        f"seed ({', '.join(map(str, study.seeds))}), {evaluation.queries} queries {problem.per}; "
        "below it paired differences, on the same tasks.",
    ]
    for shots in evaluation.shots:
        lines += ["", f"| {shots}-shot | {' | '.join(f'{n} ways' for n in evaluation.ways)} |"]
        lines.append("|---|" + "---:|" * len(evaluation.ways))
        here = [row for row in found["results"] if row["shots"] == shots]
        compared = [row for row in found["differences"] if row["shots"] == shots]
        for label in dict.fromkeys(row["model"] for row in here):
            own = [row for row in here if row["model"] == label]
            lines.append(_line(label, own, problem.key, problem, study))
            if own := [row for row in compared if row["model"] == label]:
                minus = f"minus {own[0]['minus']}"
                lines.append(_line(minus, own, "difference", problem, study))
    return "\n".join(lines) + "\n"


def _line(
    label: str, rows: Sequence[Mapping[str, Any]], what: str, problem: Problem, study: Study
) -> str:
    """One row of the table: what a model has at each number of ways."""
    texts = []
    by_ways = {row["ways"]: row for row in rows}
    for n in study.evaluation.ways:
        row = by_ways.get(n)
        sign = "+" if row and what == "difference" and row[what] > 0 else ""
        texts.append(sign + problem.interval(row[what], row["interval"]) if row else "–")
    return f"| {label} | {' | '.join(texts)} |"


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
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return [*given, "--last-step"]


def tested_flags(result: Mapping[str, Any]) -> list[str]:
    """The same flags, of the evaluation that wrote a result.json; none of a damaged one."""
    try:
        given = result["environment"]["command"][3:]
    except (KeyError, TypeError):
        return []
    return [flag for flag in given if not str(flag).startswith(("--out=", "--cache-dir="))]


def tested_settings(result: Mapping[str, Any]) -> Settings | None:
    """The training settings of what an evaluation tested; None of a damaged result.json."""
    try:
        return Settings.model_validate(result["models"][0]["settings"])
    except (KeyError, IndexError, TypeError, ValidationError):
        return None
