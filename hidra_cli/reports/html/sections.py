"""Sections of numbers: accuracy over ways, differences between runs, learning curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from hidra_cli.reports.collect import Report
from hidra_cli.reports.html.charts import (
    Line,
    chart,
    legend,
    linear_axis,
    side_by_side,
    smooth,
    thinned,
    ways_axis,
)
from hidra_cli.reports.html.markup import Html, counted, section, table, tag
from hidra_cli.reports.run_facts import Measurement, Row, RunFacts
from hidra_cli.runs.scores import percent

_SMOOTHED_SHARE = 0.05
_MOST_VALIDATIONS = 200


def differences(report: Report) -> list[Html]:
    if not report.differences or report.measured is None:
        return []
    rows = [
        [
            d.model,
            str(d.ways),
            str(d.shots),
            _signed(d.difference, d.interval),
            "yes" if abs(d.difference) > d.interval else "no",
        ]
        for d in report.differences
    ]
    first = report.differences[0].minus
    about = tag(
        "p",
        "All models solve the same tasks, and differences are taken task by task: what makes a "
        "task hard for both cancels, so that the interval is narrower than those of the two "
        f"accuracies. {report.measured.protocol}",
        class_="soft",
    )
    columns = ["model", "ways", "shots", "difference", "beyond its interval"]
    caption = f"Accuracy minus that of {first} in percentage points, with 95 % intervals"
    return section(f"Difference to {first}", about, table(caption, columns, rows))


def _signed(mean: float, half: float) -> str:
    sign = "−" if mean < 0 else "+"
    return f"{sign}{percent(abs(mean), half)}"


def accuracy(report: Report) -> list[Html]:
    parts: list[Html] = []
    keys = (f"ways{i}" for i in itertools.count(1))
    if report.measured is not None:
        parts.append(_measurement(next(keys), "Measured for this report", report.measured))
    if len(report.runs) == 1:
        (facts,) = report.runs
        if facts.tested is not None:
            parts.append(_measurement(next(keys), "At the end of the run", facts.tested))
        parts += [_measurement(next(keys), "By hidra evaluate", m) for m in facts.evaluations]
    else:
        stored = _together(report)
        if stored is not None:
            parts.append(_measurement(next(keys), "At the end of each run", stored))
    return section("Test accuracy", *parts)


def _together(report: Report) -> Measurement | None:
    """The tables that ended several runs, as one, with the protocol of each."""
    rows: list[Row] = []
    told: dict[str, list[str]] = {}
    for name, facts in zip(report.names, report.runs, strict=True):
        if facts.tested is not None:
            rows += [replace(row, model=name) for row in facts.tested.rows]
            told.setdefault(facts.tested.protocol, []).append(name)
    said = (f"{', '.join(names)}: {protocol}" for protocol, names in told.items())
    return Measurement(" ".join(said), rows) if rows else None


def _measurement(key: str, title: str, found: Measurement) -> Html:
    several = len({row.model for row in found.rows}) > 1
    columns = [*(["model"] if several else []), "ways", "shots", "accuracy, %", "chance, %"]
    rows = [
        [
            *([row.model] if several else []),
            str(row.ways),
            str(row.shots),
            percent(row.accuracy, row.interval),
            f"{100 / row.ways:.1f}",
        ]
        for row in found.rows
    ]
    caption = "Mean over episodes ± half-width of its 95 % interval"
    numbers = table(caption, columns, rows, left=int(several))
    about = tag("p", found.protocol, class_="soft")
    picture = [_over_ways(key, title, found)] if len({r.ways for r in found.rows}) > 1 else []
    return tag("div", tag("h3", title), about, side_by_side(*picture, numbers), class_="keep")


def _over_ways(key: str, title: str, found: Measurement) -> Html:
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in found.rows:
        groups.setdefault((row.model, row.shots, row.normalization), []).append(row)
    lines = []
    told_apart = len({(model, shots) for model, shots, _ in groups}) == len(groups)
    for style, ((model, shots, mode), rows) in enumerate(groups.items()):
        rows = sorted(rows, key=lambda row: row.ways)
        lines.append(
            Line(
                f"{model}, {counted(shots, 'shot')}" + ("" if told_apart else f", {mode}"),
                [(row.ways, 100 * row.accuracy) for row in rows],
                style,
                [100 * row.interval for row in rows],
                markers=True,
            )
        )
    ways = sorted({row.ways for row in found.rows})
    lines.append(Line("chance", [(n, 100 / n) for n in ways], -1))
    axis = linear_axis("accuracy, %", [0, 100])
    picture = chart(key, f"Accuracy over ways. {title}", ways_axis(ways), axis, lines)
    caption = "Bands are 95 % intervals over episodes."
    return tag("figure", picture, legend(lines), tag("figcaption", caption))


def curves(report: Report) -> list[Html]:
    runs = list(zip(report.names, report.runs, strict=True))
    if not any(facts.metrics.last for _, facts in runs):
        return []
    if len(runs) == 1:
        figures, pale = _alone(report.runs[0]), " The pale line behind is the single steps."
    else:
        figures, pale = _overlaid(runs), ""
    windows = (f"{_window(facts.metrics.loss):,}" for _, facts in runs if facts.metrics.loss)
    about = (
        "A training step sees a few tasks of different difficulty, so its loss and accuracy are "
        "noisy. The training lines are means over a twentieth of the run’s steps "
        f"({' and '.join(dict.fromkeys(windows))}) around each, fewer at both ends.{pale} "
        "Validation uses the same tasks of the validation classes each time; its band is the 95 % "
        "interval over them."
    )
    drawn = side_by_side(*filter(None, figures))
    return section("Learning curves", tag("p", about, class_="soft"), drawn)


def _alone(facts: RunFacts) -> list[Html | None]:
    """Loss, and training beside validation accuracy."""
    loss = _trained("training", 0, facts.metrics.loss, single_steps=True)
    right = _trained("training", 0, _percents(facts), single_steps=True)
    checked = _validated("validation", 1, facts)
    return [
        _curve("loss", "Training loss", _loss_label([facts]), [loss]),
        _curve("accuracy", "Accuracy while training", "accuracy, %", [right, checked]),
    ]


def _overlaid(runs: Sequence[tuple[str, RunFacts]]) -> list[Html | None]:
    """Loss, training and validation accuracy, one line per run."""
    named = [(style, name, facts) for style, (name, facts) in enumerate(runs)]
    loss = [_trained(name, style, facts.metrics.loss) for style, name, facts in named]
    right = [_trained(name, style, _percents(facts)) for style, name, facts in named]
    checked = [_validated(name, style, facts) for style, name, facts in named]
    return [
        _curve("loss", "Training loss", _loss_label([facts for *_, facts in named]), loss),
        _curve("training", "Training accuracy", "training accuracy, %", right),
        _curve("validation", "Validation accuracy", "validation accuracy, %", checked),
    ]


def _loss_label(runs: Sequence[RunFacts]) -> str:
    """With its unit, where it has one: squared errors are in that of the targets."""
    known = {facts.settings.settings.model.loss for facts in runs if facts.settings}
    return "query loss" if "mse" in known else "query loss, nats"


def _window(points: Sequence[object]) -> int:
    """An odd number of steps: a twentieth of the run."""
    return 2 * int(_SMOOTHED_SHARE * len(points) / 2) + 1


def _percents(facts: RunFacts) -> list[tuple[int, float]]:
    return [(x, 100 * y) for x, y in facts.metrics.accuracy]


def _trained(
    label: str, style: int, points: Sequence[tuple[int, float]], *, single_steps: bool = False
) -> Line:
    smoothed = thinned(smooth(points, _window(points)))
    return Line(label, smoothed, style, faint=thinned(points) if single_steps else ())


def _validated(label: str, style: int, facts: RunFacts) -> Line:
    found = facts.metrics.validation
    found = found[:: math.ceil(len(found) / _MOST_VALIDATIONS) or 1]
    means = [(x, 100 * mean) for x, mean, _ in found]
    return Line(label, means, style, [100 * half for *_, half in found], markers=True)


def _curve(key: str, title: str, label: str, lines: Sequence[Line]) -> Html | None:
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    points = [p for line in lines for p in (*line.points, *line.faint)]
    values = [y for _, y in points]
    halves = [(y, h) for line in lines for (_, y), h in zip(line.points, line.half, strict=False)]
    percentage = "%" in label
    values += [max(y - h, 0) for y, h in halves]
    values += [min(y + h, 100) if percentage else y + h for y, h in halves]
    x = linear_axis("iteration", [x for x, _ in points], floor=0, most=5)
    y = linear_axis(label, values, floor=None if percentage else 0)
    shown = legend(lines) if len(lines) > 1 else ""
    return tag("figure", chart(key, title, x, y, lines), shown, tag("figcaption", title + "."))
