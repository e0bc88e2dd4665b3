"""What the files of a run say. They may come from anyone: every value is checked, none trusted."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hidra_cli.errors import DataError, HidraError
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.records import read_json
from hidra_cli.settings.declarations import MOST_STEPS
from hidra_cli.settings.layers import Resolved, resolve
from hidra_cli.settings.numbers import MOST_WAYS_OR_SHOTS
from hidra_cli.settings.schema import Settings
from hidra_cli.tasks.objective import CLASSIFICATION, REGRESSION, Objective

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
class Row:
    """Accuracy of one model at one number of ways and shots, in 0..1, with its 95 % half-width."""

    model: str
    normalization: str
    ways: int
    shots: int
    episodes: int
    accuracy: float
    interval: float


@dataclass(frozen=True)
class Measurement:
    """Rows that were measured by one protocol."""

    protocol: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class RunFacts:
    """One run, as far as its files can be read; `notes` say what cannot."""

    name: str
    run: RunDir
    settings: Resolved | None
    metrics: Metrics
    finished: bool
    tested: Measurement | None
    best: tuple[int, float, float] | None
    environment: Mapping[str, Any]
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
    result = _object(run.result, notes)
    environment = _object(run.environment, notes) or mapping(result.get("environment"))
    return RunFacts(
        clipped(path.resolve().name),
        run,
        settings,
        metrics,
        _finished(result, metrics, settings),
        _tested(result, settings.settings if settings else None, notes),
        _best(mapping(result.get("best_validation"))),
        environment,
        _evaluations(run, notes),
        notes,
    )


def clipped(value: str) -> str:
    return value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"


def words(value: Any) -> str:
    """Text from a file, of a length to be shown; "" for anything else."""
    return clipped(value) if isinstance(value, str) else ""


def number(value: Any, low: float, high: float) -> float | None:
    """A number from a file, if it is one and within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None


def whole(value: Any, high: int, low: int = 1) -> int | None:
    """A whole number from a file, if it is one and within bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if low <= value <= high else None


def moment(value: Any) -> str:
    """A time from a file, to the minute; "" for anything else."""
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z").strip()
    except (TypeError, ValueError):
        return ""


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping from a file, of a size to be shown; empty for anything else."""
    return dict(list(value.items())[:MOST_ROWS]) if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _object(path: Path, notes: list[str]) -> Mapping[str, Any]:
    found = read_json(path)
    if not found and path.exists():
        notes.append(f"{path.name} is damaged or empty, and left out.")
    return found


def _settings(run: RunDir, notes: list[str]) -> Resolved | None:
    if not run.config.exists():
        notes.append("There is no config.toml: the settings are left out.")
        return None
    try:
        found = resolve({}, environ={}, config=run.config)
    except HidraError as exc:
        notes.append(f"The settings are left out: config.toml cannot be used. {exc.why}")
        return None
    if not found.origins:  # all would be defaults, not what the run was made with
        notes.append("The settings are left out: config.toml is empty.")
        return None
    return found


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
        return whole(int(value), MOST_STEPS)
    return None


def _decimal(value: Any, high: float) -> float | None:
    """A number of metrics.csv; none where it is empty, damaged or not finite."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        return number(float(value), 0, high)
    except ValueError:
        return None


def _finished(result: Mapping[str, Any], metrics: Metrics, settings: Resolved | None) -> bool:
    """A result as long as the run is: one that was prolonged has an old result until its end."""
    done = whole(result.get("iterations"), MOST_STEPS)
    wanted = settings.settings.outer.iterations if settings else done
    return done is not None and done == wanted and metrics.last <= done


def _best(best: Mapping[str, Any]) -> tuple[int, float, float] | None:
    iteration = whole(best.get("iteration"), MOST_STEPS)
    mean, half = number(best.get("accuracy"), 0, 1), number(best.get("interval"), 0, 1)
    return None if iteration is None or mean is None or half is None else (iteration, mean, half)


def _rows(found: Any, where: str, notes: list[str]) -> list[Row]:
    items = [item for item in _items(found) if REGRESSION.key not in mapping(item)]
    if len(items) < len(_items(found)):
        notes.append(f"{where} has mean squared errors, which this page does not show.")
    rows = [row for row in map(_row, items) if row is not None]
    if len(rows) < len(items) or not isinstance(found, list | None):
        notes.append(f"{where} has test results that are damaged, and left out.")
    if len(rows) > MOST_ROWS:
        notes.append(f"{where} has more than {MOST_ROWS} test results: the others are left out.")
    return rows[:MOST_ROWS]


def _row(found: Any) -> Row | None:
    entry = mapping(found)
    sizes = [whole(entry.get(key), MOST_WAYS_OR_SHOTS) for key in ("ways", "shots")]
    sizes.append(whole(entry.get("episodes"), MOST_STEPS))
    shares = [number(entry.get(key), 0, 1) for key in ("accuracy", "interval")]
    names = [words(entry.get(key)) for key in ("model", "normalization")]
    if None in sizes or None in shares or not all(names):
        return None
    return Row(*names, *sizes, *shares)  # type: ignore[arg-type]


def _tested(
    result: Mapping[str, Any], settings: Settings | None, notes: list[str]
) -> Measurement | None:
    """The table that ends a run."""
    rows = _rows(result.get("test"), "result.json", notes)
    if not rows:
        return None
    if settings is None:
        return Measurement(protocol(rows, split="test"), rows)
    told = protocol(
        rows,
        split="test",
        dataset=clipped(settings.dataset.name),
        queries=settings.tasks.queries,
        seed=settings.run.seed,
    )
    return Measurement(told, rows)


def _evaluations(run: RunDir, notes: list[str]) -> list[Measurement]:
    """The newest results of `hidra evaluate` in the run's directory."""
    try:
        files = sorted(run.path.glob("evaluations/*/result.json"), reverse=True)
    except OSError:
        files = []
    if len(files) > MOST_EVALUATIONS:
        notes.append(f"{len(files) - MOST_EVALUATIONS} older evaluations are left out.")
    found = []
    for path in files[:MOST_EVALUATIONS]:
        where = f"evaluations/{path.parent.name}/result.json"
        result = read_json(path)
        if not result:
            notes.append(f"{where} is damaged, and left out.")
        rows = _rows(result.get("results"), where, notes)
        if rows:
            told = protocol(
                rows,
                split=words(result.get("split")),
                dataset=words(result.get("dataset")),
                queries=whole(result.get("queries"), MOST_WAYS_OR_SHOTS),
                seed=whole(result.get("seed"), 2**63, 0),
            )
            found.append(Measurement(told, rows))
    return found


def protocol(
    rows: Iterable[Row],
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
    told = [
        f"{_numbers(row.episodes for row in rows)} episodes of the {split or 'unnamed'} split"
        + (f" of {dataset}" if dataset else ""),
        f"{images} images per class",
        f"{modes} normalization",
    ]
    told += [f"episodes of seed {seed}"] if seed is not None else []
    return ", ".join(told) + "."


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def training_seconds(facts: RunFacts) -> float | None:
    """What the outer steps took together, without validation; None where it is not known."""
    if facts.settings is None or not facts.metrics.rates:
        return None
    seconds = math.fsum(1 / rate for rate in facts.metrics.rates)
    return facts.settings.settings.outer.meta_batch * seconds
