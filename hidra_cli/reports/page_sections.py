"""The sections of numbers: accuracy over ways, differences between runs, learning curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hidra_cli.reports.collect import Report
from hidra_cli.reports.figures import Line, Numbers, chance_line, line_chart
from hidra_cli.reports.run_facts import Measurement, RunFacts
from hidra_cli.runs.records import ScoreRecord
from hidra_cli.tasks.objective import CLASSIFICATION

Floats = NDArray[np.float64]

_SMOOTHED_SHARE = 0.05
_MOST_POINTS = 300
_MOST_VALIDATIONS = 200


@dataclass(frozen=True)
class Table:
    """A table whose first column heads its rows.

    Attributes:
        left: so many columns are text, the others are numbers.
        marked: the rows that stand out.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    marked: Collection[int] = ()


@dataclass(frozen=True)
class Chart:
    """A figure. Pictures are data URIs, `alt` says in words what they show.

    Attributes:
        legend: a swatch and a label for each line; names from files stand here alone.
    """

    picture: str
    alt: str
    caption: str
    legend: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Measured:
    """Scores of one protocol: in numbers, and over ways where there are several."""

    title: str
    protocol: str
    chart: Chart | None
    table: Table


def counted(number: int, what: str) -> str:
    """`(2, "step")` → `2 steps`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def differences(report: Report) -> Table | None:
    """Accuracies minus that of the first model, on the same episodes."""
    if not report.differences:
        return None
    rows = [
        [
            row.model,
            str(row.ways),
            str(row.shots),
            ("−" if row.difference < 0 else "+")
            + CLASSIFICATION.interval(abs(row.difference), row.interval),
            "yes" if abs(row.difference) > row.interval else "no",
        ]
        for row in report.differences
    ]
    first = report.differences[0].minus
    caption = f"Accuracy minus that of {first} in percentage points, with 95 % intervals"
    return Table(caption, ["model", "ways", "shots", "difference", "beyond its interval"], rows)


def accuracy(report: Report) -> list[Measured]:
    """Accuracy measured now, at the end of the runs, and by `hidra evaluate`."""
    parts: list[tuple[str, Measurement | None]] = [("Measured for this report", report.measured)]
    if len(report.runs) == 1:
        (facts,) = report.runs
        parts.append(("At the end of the run", facts.tested))
        parts += [("By hidra evaluate", measurement) for measurement in facts.evaluations]
    else:
        parts.append(("At the end of each run", _together(report)))
    return [_measured(title, each) for title, each in parts if each is not None]


def _together(report: Report) -> Measurement | None:
    """The tables that ended several runs, as one, with the protocol of each."""
    rows: list[ScoreRecord] = []
    named: dict[str, list[str]] = {}
    for name, facts in zip(report.names, report.runs, strict=True):
        if facts.tested is not None:
            rows += [row.model_copy(update={"model": name}) for row in facts.tested.rows]
            named.setdefault(facts.tested.protocol, []).append(name)
    protocols = (f"{', '.join(names)}: {protocol}" for protocol, names in named.items())
    return Measurement(" ".join(protocols), rows) if rows else None


def _measured(title: str, measurement: Measurement) -> Measured:
    several = len({row.model for row in measurement.rows}) > 1
    columns = [*(["model"] if several else []), "ways", "shots", "accuracy, %", "chance, %"]
    rows = [
        [
            *([row.model] if several else []),
            str(row.ways),
            str(row.shots),
            CLASSIFICATION.interval(row.score, row.interval),
            f"{100 / row.ways:.1f}",
        ]
        for row in measurement.rows
    ]
    caption = "Mean over episodes ± half-width of its 95 % interval"
    table = Table(caption, columns, rows, left=int(several))
    several_ways = len({row.ways for row in measurement.rows}) > 1
    chart = _over_ways(title, measurement) if several_ways else None
    return Measured(title, measurement.protocol, chart, table)


def _over_ways(title: str, measurement: Measurement) -> Chart:
    groups: dict[tuple[str, int, str], list[ScoreRecord]] = {}
    for row in measurement.rows:
        groups.setdefault((row.model, row.shots, row.normalization), []).append(row)
    one_mode = len({(model, shots) for model, shots, _ in groups}) == len(groups)
    lines = []
    for index, ((model, shots, mode), rows) in enumerate(groups.items()):
        rows = sorted(rows, key=lambda row: row.ways)
        label = f"{model}, {counted(shots, 'shot')}" + ("" if one_mode else f", {mode}")
        mean, half = 100 * np.array([(row.score, row.interval) for row in rows]).T
        lines.append(_banded(label, [row.ways for row in rows], mean, half, index))
    ways = sorted({row.ways for row in measurement.rows})
    lines.append(chance_line(ways))
    caption = "Bands are 95 % intervals over episodes."
    return _chart(f"Accuracy over ways. {title}", caption, "accuracy, %", lines, ways)


def curves(report: Report) -> tuple[str, list[Chart]] | None:
    """How the curves were made, and the curves; none where no run took a step."""
    runs = list(zip(report.names, report.runs, strict=True))
    if not any(facts.metrics.last for _, facts in runs):
        return None
    charts = _alone(report.runs[0]) if len(runs) == 1 else _overlaid(runs)
    pale = " The pale line behind is the single steps." if len(runs) == 1 else ""
    windows = (f"{_window(len(facts.metrics.loss)):,}" for _, facts in runs if facts.metrics.loss)
    about = (
        "A training step sees a few tasks of different difficulty, so its loss and accuracy are "
        "noisy. The training lines are means over a twentieth of the run’s steps "
        f"({' and '.join(dict.fromkeys(windows))}) around each, fewer at both ends.{pale} "
        "Validation uses the same tasks of the validation classes each time; its band is the 95 % "
        "interval over them."
    )
    return about, charts


def _alone(facts: RunFacts) -> list[Chart]:
    """Loss, and training beside validation accuracy, which is drawn on top."""
    loss = _trained("training", 1, facts.metrics.loss, 1, faint=True)
    right = _trained("training", 1, facts.metrics.accuracy, 100, faint=True)
    checked = _validated("validation", 0, facts)
    return [
        *_curve("Training loss", _loss_label([facts]), [loss]),
        *_curve("Accuracy while training", "accuracy, %", [right, checked]),
    ]


def _overlaid(runs: Sequence[tuple[str, RunFacts]]) -> list[Chart]:
    """Loss, training and validation accuracy, one line per run."""
    named = [(name, index, facts) for index, (name, facts) in enumerate(runs)]
    loss = [_trained(name, index, facts.metrics.loss, 1) for name, index, facts in named]
    right = [_trained(name, index, facts.metrics.accuracy, 100) for name, index, facts in named]
    checked = [_validated(*each) for each in named]
    return [
        *_curve("Training loss", _loss_label([facts for _, facts in runs]), loss),
        *_curve("Training accuracy", "training accuracy, %", right),
        *_curve("Validation accuracy", "validation accuracy, %", checked),
    ]


def _loss_label(runs: Iterable[RunFacts]) -> str:
    """With its unit, where it has one: squared errors are in that of the targets."""
    known = {facts.settings.settings.model.loss for facts in runs if facts.settings}
    return "query loss" if "mse" in known else "query loss, nats"


def _window(steps: int) -> int:
    """An odd number of steps: a twentieth of the run."""
    return 2 * int(_SMOOTHED_SHARE * steps / 2) + 1


def _trained(
    label: str, index: int, points: Sequence[tuple[int, float]], scale: float, faint: bool = False
) -> Line:
    """The mean over a window around each step, shorter at both ends."""
    if not points:
        return Line(label, (), (), index)
    steps, values = np.array(points).T * [[1], [scale]]
    sums = np.concatenate([[0], values.cumsum()])
    places, reach = np.arange(len(values)), _window(len(values)) // 2
    first, last = (places - reach).clip(0), (places + reach + 1).clip(None, len(values))
    mean = (sums[last] - sums[first]) / (last - first)
    kept, noise = _kept(mean), _kept(values)
    pale = (steps[noise], values[noise]) if faint else None
    return Line(label, steps[kept], mean[kept], index, faint=pale)


def _kept(values: Floats) -> NDArray[np.int64]:
    """Places of the smallest and the largest of each part of a series: as drawn, the same line."""
    if len(values) <= _MOST_POINTS:
        return np.arange(len(values))
    parts = np.array_split(np.arange(len(values)), _MOST_POINTS // 2)
    ends = [part[[values[part].argmin(), values[part].argmax()]] for part in parts]
    return np.unique(ends)


def _validated(label: str, index: int, facts: RunFacts) -> Line:
    rows = np.array(facts.metrics.validation).reshape(-1, 3)
    steps, mean, half = rows[:: math.ceil(len(rows) / _MOST_VALIDATIONS) or 1].T
    return _banded(label, steps, 100 * mean, 100 * half, index)


def _banded(label: str, x: Numbers, mean: Floats, half: Floats, index: int) -> Line:
    """Percentages with their intervals, as far as these are percentages."""
    low, high = (mean - half).clip(0, 100), (mean + half).clip(0, 100)
    return Line(label, x, mean, index, low, high)


def _curve(title: str, label: str, lines: Iterable[Line]) -> list[Chart]:
    lines = [line for line in lines if len(line.x)]
    return [_chart(title, f"{title}.", label, lines)] if lines else []


def _chart(
    title: str, caption: str, y: str, lines: Sequence[Line], ways: Sequence[int] = ()
) -> Chart:
    x = "ways (classes per task)" if ways else "iteration"
    alt = f"{title}: {y} over {x}. " + "; ".join(map(_in_words, lines)) + "."
    picture, swatches = line_chart(lines, x, y, ways=ways)
    labels = [line.label for line in lines]
    legend = list(zip(swatches, labels, strict=True)) if len(lines) > 1 else []
    return Chart(picture, alt, caption, legend)


def _in_words(line: Line) -> str:
    first, last = (f"{line.y[i]:.3g} at {line.x[i]:g}" for i in (0, -1))
    return f"{line.label}: " + (first if len(line.x) == 1 else f"from {first} to {last}")
