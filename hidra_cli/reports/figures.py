"""Pictures of results."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hidra_cli.api.decoding import read_picture
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.system.console import printable
from hidra_cli.tasks.objective import CLASSIFICATION, Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hidra_cli.runs.scores import Cell

# Okabe & Ito's hues: colour-blind readers can distinguish them, and they are dark enough on white.
COLOURS = ("#0a66a6", "#b84a0b", "#00775a", "#9b3f86", "#80610a", "#4d5560", "#000000")
_MARKERS = "osD^vPX"
CHANCE = -1  # the index of a line of chance
_CHANCE_STYLE = {"color": "0.45", "linestyle": ":", "linewidth": 1.5}
_MOST_MARKERS = 30
Numbers = Sequence[float] | NDArray[np.float64]
_LETTERS_PER_INCH, _LETTERS_OF_A_MARK = 16, 6  # of a legend
_SHOWN = (96, 96)  # pixels of a picture in a gallery


MOST_IN_GALLERY = 48
_COLUMNS = 8


def predictions_gallery(
    rows: Sequence[tuple[Path, str, float]], preprocessing: Preprocessing
) -> bytes:
    """The first pictures with their labels and probabilities: PNG.

    Args:
        rows: of each picture the file, its label and the label's probability in 0..1.
        preprocessing: of the classifier; pictures are shown larger than it saw them.
    """
    from matplotlib.figure import Figure

    shape = (preprocessing.image_shape[0], *_SHOWN)
    larger = replace(preprocessing, image_shape=shape, invert=False)
    shown = rows[:MOST_IN_GALLERY]
    lines = max(1, -(-len(shown) // _COLUMNS))
    figure = Figure(figsize=(1.5 * _COLUMNS, 1.9 * lines), layout="constrained")
    for axes, row in zip_longest(figure.subplots(lines, _COLUMNS, squeeze=False).flat, shown):
        axes.set_axis_off()
        if row is None:
            continue
        path, label, probability = row
        pixels = read_picture(path, larger).pixels
        axes.imshow(pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        label = printable(label).replace("$", r"\$")
        axes.set_title(f"{label[:18]}\n{100 * probability:.0f} %", fontsize=8)
    return png(figure)


@dataclass(frozen=True)
class Line:
    """Values (n,) over x (n,).

    Attributes:
        index: its place among the lines of a figure, which decides its look; CHANCE: dotted, grey.
        low, high: its band (n,); of a single point, an error bar.
        faint: x and values of the noise whose mean the line is, drawn pale behind it.
    """

    label: str
    x: Numbers
    y: Numbers
    index: int
    low: Numbers = ()
    high: Numbers = ()
    faint: tuple[Numbers, Numbers] | None = None


def draw_line(axes: Axes, line: Line, lines: int) -> None:
    """Draw one of several lines with its band."""
    style = _style(line.index, lines)
    every = 1 if len(line.x) <= _MOST_MARKERS else len(line.x) // 8
    axes.plot(line.x, line.y, label=line.label, markevery=every, **style)
    colour = style["color"]
    if line.faint:
        axes.plot(*line.faint, color=colour, alpha=0.3, linewidth=1, zorder=1)
    if len(line.low) == 1:  # a band needs two points, a bar one
        middle, (low,), (high,) = line.y[0], line.low, line.high
        axes.errorbar(line.x, line.y, [[middle - low], [high - middle]], color=colour, capsize=4)
    elif len(line.low):
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)


def line_chart(
    lines: Sequence[Line], x: str, y: str, *, ways: Sequence[int] = ()
) -> tuple[str, list[str]]:
    """Lines with their bands, and a swatch of each: SVG as data URIs, without the lines' labels.

    Args:
        lines: at least one.
        x, y: what the axes are.
        ways: the numbers of ways that the x axis is made for, where it is of ways.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2.5), layout="constrained")
    axes = figure.subplots()
    slim = 2 * max(len(lines), 2)  # it is a small figure
    for line in lines:
        draw_line(axes, line, slim)
    plain_axes(axes)
    percent = "%" in y
    if ways:
        _ways_axis(axes, ways)
        axes.set_ylim(0, 102)
    else:
        axes.set_xlim(left=0)
        axes.locator_params("x", nbins=5, integer=True)
        axes.set_ylim(None if percent else 0, min(axes.get_ylim()[1], 102) if percent else None)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(x, fontsize=8, loc="right")
    axes.set_title(y, fontsize=8, loc="left")
    return _svg(figure), [_swatch(line.index, slim) for line in lines]


@functools.cache
def _swatch(index: int, lines: int) -> str:
    """The look of a line, for a legend."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(0.45, 0.2))
    figure.add_artist(Line2D([0, 0.5, 1], [0.5] * 3, markevery=[1], **_style(index, lines)))
    return _svg(figure)


def scores_over_ways(cells: Sequence[Cell], title: str) -> bytes:
    """Test scores over the number of ways with 95 % bands, one line per model and shots: PNG."""
    from matplotlib.figure import Figure

    from hidra_cli.runs.scores import interval

    names = dict.fromkeys((c.contender, c.shots) for c in cells)
    figure = Figure(figsize=(7.2, 4.4 + 0.1 * len(names)), layout="constrained")
    axes = figure.subplots()
    objective = cells[0].objective
    for index, (name, shots) in enumerate(names):
        own = [c for c in cells if (c.contender, c.shots) == (name, shots)]
        own.sort(key=lambda cell: cell.ways)
        mean, half = objective.scale * np.array([interval(c.final) for c in own]).T
        label, ways = f"{name}, {shots}-shot", [c.ways for c in own]
        draw_line(axes, Line(label, ways, mean, index, mean - half, mean + half), len(names))
    all_ways = sorted({c.ways for c in cells})
    if objective is CLASSIFICATION:
        draw_line(axes, chance_line(all_ways), len(names))
    _ways_axis(axes, all_ways)
    axes.set_xlabel(objective.axis)
    axes.set_ylabel(objective.heading)
    axes.set_title(title, fontsize=10, loc="left")
    _dressed(axes, objective)
    legend_below(figure, axes.get_legend_handles_labels()[1])
    return png(figure)


def differences_over_ways(
    rows: Sequence[Mapping[str, Any]], title: str, objective: Objective
) -> bytes:
    """Differences between models and their references, with 95 % intervals: PNG.

    Args:
        rows: of `compare`, at least one.
        title: above it.
        objective: what the tasks ask for.
    """
    from matplotlib.figure import Figure

    lines, minus = _comparisons(rows)
    all_ways = sorted({row["ways"] for row in rows})
    size = max(7.2, 1.8 * len(all_ways)), 4 + 0.15 * len(lines)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.3", linewidth=1)
    for index, ((model, shots), label) in enumerate(lines.items()):
        own = [row for row in rows if (row["model"], row["shots"]) == (model, shots)]
        # Beside each other, so that no interval hides another: each ways has a unit of the axis.
        aside = 0.7 * ((index + 0.5) / len(lines) - 0.5)
        axes.errorbar(
            [all_ways.index(row["ways"]) + aside for row in own],
            [objective.scale * row["difference"] for row in own],
            yerr=[objective.scale * row["interval"] for row in own],
            label=label,
            linestyle="none",
            capsize=2,
            **_mark(index + 1),
        )
    axes.set_xticks(range(len(all_ways)), [str(n) for n in all_ways])
    axes.set_xlabel(objective.axis)
    axes.set_ylabel(f"difference of {objective.heading}")
    axes.set_title(f"{title}\n{minus}", fontsize=10, loc="left")
    plain_axes(axes)
    legend_below(figure, list(lines.values()))
    return png(figure)


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[tuple[str, int], str], str]:
    """(model, shots) → its entry in the legend; and what the title says is taken away."""
    several = len({row["minus"] for row in rows}) > 1
    lines = {
        (row["model"], row["shots"]): f"{row['model']}, {row['shots']}-shot"
        + (f" − {row['minus']}" if several else "")
        for row in rows
    }
    return lines, "each minus the model named with it" if several else f"minus {rows[0]['minus']}"


@dataclass(frozen=True)
class Curve:
    """How one training went.

    Attributes:
        model: its label; several seeds share it.
        ways: of the training's tasks, as it is set: "2-16".
        seed: of the training.
        points: (outer step, validation score) in order.
    """

    model: str
    ways: str
    seed: int
    points: tuple[tuple[int, float], ...]


def learning_curves(curves: Sequence[Curve], title: str, objective: Objective) -> bytes:
    """Validation over outer steps, a panel for each ways of the training, a line per model: PNG.

    Lines are means over seeds, bands reach from the lowest to the highest of them.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(curve.ways for curve in curves))
    models = list(dict.fromkeys(curve.model for curve in curves))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(7.2, 4 * columns), 3.6 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, ways in zip_longest(grid.flat, panels):
        if ways is None:
            axes.set_axis_off()
            continue
        for index, model in enumerate(models):
            seeds = [dict(c.points) for c in curves if (c.model, c.ways) == (model, ways)]
            if seeds:
                draw_line(axes, _learning_line(model, index, seeds, objective.scale), len(models))
        if objective is CLASSIFICATION and ways.isdigit():
            axes.axhline(100 / int(ways), label="chance", **_CHANCE_STYLE)
        axes.set_xlim(left=0)
        axes.set_xlabel("outer steps")
        axes.set_title(f"trained at {ways} ways", fontsize=9, loc="left")
        _dressed(axes, objective)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"validation {objective.heading}")
    legend_below(figure, (*models, "chance"))
    return png(figure)


def legend_below(figure: Figure, order: Sequence[str]) -> None:
    """One legend of all panels."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= zip(labels, handles, strict=True)
    shown = [label for label in order if label in named]
    lines = [named[label] for label in shown]
    widest = max(map(len, shown), default=0)
    fitting = int(_LETTERS_PER_INCH * figure.get_figwidth()) // (widest + _LETTERS_OF_A_MARK)
    look: dict[str, Any] = {"ncols": min(3, max(1, fitting)), "frameon": False, "fontsize": 8}
    figure.legend(lines, shown, loc="outside lower center", **look)


def _learning_line(
    label: str, index: int, seeds: Sequence[Mapping[int, float]], scale: float
) -> Line:
    steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
    values = scale * np.array([[seed[step] for step in steps] for seed in seeds])
    return Line(label, steps, values.mean(0), index, values.min(0), values.max(0))


def chance_line(ways: Sequence[int]) -> Line:
    """The accuracy in percent of a model that guesses."""
    return Line("chance", ways, [100 / n for n in ways], CHANCE)


def _mark(index: int) -> dict[str, Any]:
    turn, place = divmod(index, len(COLOURS))  # hollow the second time round
    colour = COLOURS[place]
    return {
        "color": colour,
        "marker": _MARKERS[place],
        "markerfacecolor": "white" if turn % 2 else colour,
    }


def _style(index: int, lines: int) -> dict[str, Any]:
    """The style of one of several lines. Lines that coincide stay visible: the first is on top, and
    the next ones reach out under it."""
    if index == CHANCE:
        return _CHANCE_STYLE
    depth = index / lines
    return {
        **_mark(index),
        "markersize": 5 + 5 * depth,
        "linewidth": 1.5 + 1.5 * depth,
        "zorder": 3 - depth,
    }


def _ways_axis(axes: Axes, ways: Sequence[int]) -> None:
    """A logarithmic axis, with numbers where there is room for them."""
    written = list(ways[:1])
    for n in ways:
        if n / written[-1] > (ways[-1] / ways[0]) ** 0.05:
            written.append(n)
    axes.set_xscale("log")
    axes.set_xticks(written, [str(n) for n in written])
    axes.minorticks_off()


def _dressed(axes: Axes, objective: Objective) -> None:
    # Room for a marker at 100; errors have no end.
    axes.set_ylim(0, 102 if objective is CLASSIFICATION else None)
    plain_axes(axes)


def plain_axes(axes: Axes) -> None:
    """A pale grid, and no frame."""
    axes.grid(color="0.5", alpha=0.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    """The figure on no ground as a data URI; the same figure gives the same text."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    unknown = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    fonts = ["DejaVu Sans", "Helvetica Neue", "Arial"]
    # Text stays text, in one of these fonts; names of parts follow from what they are.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hidra", "font.sans-serif": fonts}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=unknown)
    content = buffer.getvalue()
    content = content[content.index(b"<svg") :]  # without the address of its DTD
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()
