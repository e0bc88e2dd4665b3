"""The facts in the files of a run. The files may come from anyone: invalid entries are left out."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidra_cli.errors import DataError, HidraError
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.records import (
    Environment,
    EvaluationResult,
    R,
    RunResult,
    ScoreRecord,
    ValidationRecord,
    load_record,
)
from hidra_cli.settings.declarations import MOST_STEPS
from hidra_cli.settings.layers import Resolved, resolve
from hidra_cli.settings.schema import Settings
from hidra_cli.tasks.objective import CLASSIFICATION, Objective

MOST_EVALUATIONS = 4
MOST_ROWS = 100
_LONGEST = 200  # characters of a name


@dataclass(frozen=True)
class Metrics:
    """The series of metrics.csv: (iteration, value) of each step, and (iteration, mean, half-width)
    of each validation. Accuracies are in 0..1."""

    last: int = 0
    loss: Sequence[tuple[int, float]] = ()
    accuracy: Sequence[tuple[int, float]] = ()
    validation: Sequence[tuple[int, float, float]] = ()
    rates: Sequence[float] = ()


@dataclass(frozen=True)
class Measurement:
    """Accuracies that were measured by one protocol."""

    protocol: str
    rows: Sequence[ScoreRecord]


@dataclass(frozen=True)
class RunFacts:
    """One run, as far as its files can be read; `notes` say what cannot."""

    name: str
    run: RunDir
    settings: Resolved | None
    metrics: Metrics
    finished: bool
    tested: Measurement | None
    best: ValidationRecord | None
    environment: Environment | None
    evaluations: Sequence[Measurement] = ()
    notes: list[str] = field(default_factory=list)


def read_run(path: Path) -> RunFacts:
    """Read a run directory, finished or not.

    Raises:
        DataError: it is no run directory.
    """
    run = RunDir(path)
    files = (run.config, run.metrics, run.result, run.environment)
    try:
        known = [file for file in files if file.is_file()]
        why = "it has neither settings nor metrics" if path.is_dir() else "it is no directory"
    except OSError as exc:  # a name too long, or a folder that may not be looked into
        known, why = [], exc.strerror or str(exc)
    if not known:
        raise DataError(
            f"{path} is not a run",
            why=why,
            fix="name a run directory, or train one: hidra meta-train",
        )
    notes: list[str] = []
    settings = _settings(run, notes)
    metrics = read_metrics(run, notes)
    result = _record(run.result, RunResult, run.result.name, notes)
    environment = _record(run.environment, Environment, run.environment.name, notes)
    return RunFacts(
        clipped(path.resolve().name),
        run,
        settings,
        metrics,
        _finished(result, metrics, settings),
        _tested(result, settings.settings if settings else None, notes) if result else None,
        _accuracy(result.best_validation) if result else None,
        environment or (result.environment if result else None),
        _evaluations(run, notes),
        notes,
    )


def clipped(value: str) -> str:
    return value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"


def _record(path: Path, kind: type[R], where: str, notes: list[str]) -> R | None:
    """The record in a file; None if there is none, or if it is damaged, which a note says."""
    if not path.exists():
        return None
    try:
        return load_record(path, kind)
    except DataError as exc:
        notes.append(f"{where} is damaged, and left out: {exc.why}.")
        return None


def _settings(run: RunDir, notes: list[str]) -> Resolved | None:
    if not run.config.exists():
        notes.append("There is no config.toml: the settings are left out.")
        return None
    try:
        resolved = resolve({}, environ={}, config=run.config)
    except HidraError as exc:
        notes.append(f"The settings are left out: config.toml cannot be used. {exc.why}")
        return None
    if not resolved.origins:  # all would be defaults, not what the run was made with
        notes.append("The settings are left out: config.toml is empty.")
        return None
    return resolved


def read_metrics(run: RunDir, notes: list[str], objective: Objective = CLASSIFICATION) -> Metrics:
    """The rows that are whole. A step run twice (a run that was cut off) counts once, the later.

    Args:
        run: the run.
        notes: gets a line for each thing that cannot be read.
        objective: whose metric the validations are of.
    """
    rows: dict[int, dict[str, Any]] = {}
    unreadable = 0
    try:
        with run.metrics.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                iteration = _digits(row.get("iteration"))
                if iteration is None:
                    unreadable += 1
                else:
                    rows[iteration] = row
    except FileNotFoundError:
        notes.append("There is no metrics.csv: the learning curves are left out.")
        return Metrics()
    except (OSError, csv.Error) as exc:
        notes.append(f"metrics.csv could not be read to its end: {exc}.")
    if unreadable:
        notes.append(f"{unreadable} rows of metrics.csv are damaged, and left out.")
    if not rows:
        notes.append("metrics.csv has no rows: the learning curves are left out.")
    return _series({key: rows[key] for key in sorted(rows)}, objective)


def _series(rows: Mapping[int, Mapping[str, Any]], objective: Objective) -> Metrics:
    def column(name: str, high: float) -> list[tuple[int, float]]:
        pairs = ((key, _decimal(row.get(name), high)) for key, row in rows.items())
        return [(key, value) for key, value in pairs if value is not None]

    high = 1 if objective.unit else 1e9
    half = dict(column("validation_interval", high))
    validation = column(f"validation_{objective.key}", high)
    return Metrics(
        max(rows, default=0),
        column("loss", 1e9),
        column("accuracy", 1),
        [(key, mean, half.get(key, 0.0)) for key, mean in validation],
        [rate for _, rate in column("tasks_per_second", 1e9) if rate > 0],
    )


def _digits(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,13}", value):
        return int(value) if 1 <= int(value) <= MOST_STEPS else None
    return None


def _decimal(value: Any, high: float) -> float | None:
    """A number of metrics.csv; none where it is empty, damaged or not finite."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number <= high else None


def _finished(result: RunResult | None, metrics: Metrics, settings: Resolved | None) -> bool:
    """A result as long as the run is: one that was prolonged has an old result until its end."""
    if result is None:
        return False
    wanted = settings.settings.outer.iterations if settings else result.iterations
    return result.iterations == wanted and metrics.last <= result.iterations


def _accuracy(best: ValidationRecord) -> ValidationRecord | None:
    return best if best.metric == CLASSIFICATION.key else None


def _rows(records: Sequence[ScoreRecord], where: str, notes: list[str]) -> list[ScoreRecord]:
    rows = [row for row in records if row.metric == CLASSIFICATION.key]
    if len(rows) < len(records):
        notes.append(f"{where} has mean squared errors, which this page does not show.")
    if len(rows) > MOST_ROWS:
        notes.append(f"{where} has more than {MOST_ROWS} test results: the others are left out.")
    return [
        row.model_copy(
            update={"model": clipped(row.model), "normalization": clipped(row.normalization)}
        )
        for row in rows[:MOST_ROWS]
    ]


def _tested(result: RunResult, settings: Settings | None, notes: list[str]) -> Measurement | None:
    """The table that ends a run."""
    rows = _rows(result.test, "result.json", notes)
    if not rows:
        return None
    if settings is None:
        return Measurement(protocol(rows, split="test"), rows)
    text = protocol(
        rows,
        split="test",
        dataset=clipped(settings.dataset.name),
        queries=settings.tasks.queries,
        seed=settings.run.seed,
    )
    return Measurement(text, rows)


def _evaluations(run: RunDir, notes: list[str]) -> list[Measurement]:
    """The newest results of `hidra evaluate` in the run's directory."""
    try:
        files = sorted(run.path.glob("evaluations/*/result.json"), reverse=True)
    except OSError:
        files = []
    if len(files) > MOST_EVALUATIONS:
        notes.append(f"{len(files) - MOST_EVALUATIONS} older evaluations are left out.")
    measured = []
    for path in files[:MOST_EVALUATIONS]:
        where = f"evaluations/{path.parent.name}/result.json"
        result = _record(path, EvaluationResult, where, notes)
        if result is not None and (rows := _rows(result.results, where, notes)):
            text = protocol(
                rows,
                split=result.split,
                dataset=clipped(result.dataset),
                queries=result.queries,
                seed=result.seed,
            )
            measured.append(Measurement(text, rows))
    return measured


def protocol(
    rows: Iterable[ScoreRecord],
    *,
    split: str,
    dataset: str = "",
    queries: int | None = None,
    seed: int | None = None,
) -> str:
    """How some rows were measured, in one sentence."""
    rows = list(rows)
    modes = ", ".join(sorted({row.normalization for row in rows} - {"–"})) or "no"
    images = f"{_numbers(row.shots for row in rows)} support"
    images += f" and {queries} query" if queries is not None else ""
    parts = [
        f"{_numbers(row.episodes for row in rows)} episodes of the {split} split"
        + (f" of {dataset}" if dataset else ""),
        f"{images} images per class",
        f"{modes} normalization",
    ]
    parts += [f"episodes of seed {seed}"] if seed is not None else []
    return ", ".join(parts) + "."


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def training_seconds(facts: RunFacts) -> float | None:
    """The time of all outer steps, without validation, in seconds; None if it is not known."""
    if facts.settings is None or not facts.metrics.rates:
        return None
    seconds = math.fsum(1 / rate for rate in facts.metrics.rates)
    return facts.settings.settings.outer.meta_batch * seconds
