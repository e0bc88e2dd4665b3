"""Pictures of results."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hidra_cli.console import printable
from hidra_cli.problems import CLASSIFICATION
from hidra_cli.store.decode import decode_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hidra_cli.evaluation import Cell

# Okabe & Ito's palette, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_SHOWN = (96, 96)  # pixels of a picture in a gallery


MOST_IN_GALLERY = 48
_COLUMNS = 8


def predictions_gallery(rows: Sequence[Mapping[str, Any]], side: tuple[int, int, int]) -> bytes:
    """The first pictures with their labels and probabilities: PNG.

    Args:
        rows: with image (a path), label and probability.
        side: (C, H, W) of what the classifier saw; pictures are shown as they are.
    """
    from matplotlib.figure import Figure

    shown = rows[:MOST_IN_GALLERY]
    lines = max(1, -(-len(shown) // _COLUMNS))
    figure = Figure(figsize=(1.5 * _COLUMNS, 1.9 * lines), layout="constrained")
    for axes, row in zip_longest(figure.subplots(lines, _COLUMNS, squeeze=False).flat, shown):
        axes.set_axis_off()
        if row is None:
            continue
        pixels = decode_image(Path(row["image"]), (side[0], *_SHOWN))
        axes.imshow(pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        label = printable(row["label"]).replace("$", r"\$")
        axes.set_title(f"{label[:18]}\n{100 * row['probability']:.0f} %", fontsize=8)
    return _png(figure)


def scores_over_ways(cells: Sequence[Cell], title: str) -> bytes:
    """Test scores over the number of ways with 95 % bands, one line per model and shots: PNG."""
    from matplotlib.figure import Figure

    from hidra_cli.evaluation import interval

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    lines = dict.fromkeys((c.contender, c.shots) for c in cells)
    problem = cells[0].problem
    for index, (name, shots) in enumerate(lines):
        chosen = sorted(
            (c for c in cells if (c.contender, c.shots) == (name, shots)), key=lambda c: c.ways
        )
        ways = np.array([c.ways for c in chosen])
        mean, half = problem.scale * np.array([interval(c.final) for c in chosen]).T
        colour = _COLOURS[index % len(_COLOURS)]
        depth = index / len(lines)
        axes.plot(
            ways,
            mean,
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            # Lines that coincide stay seen: the first is on top, the next reach out under it.
            markersize=5 + 5 * depth,
            linewidth=1.5 + 1.5 * depth,
            zorder=3 - depth,
            label=f"{name}, {shots}-shot",
        )
        axes.fill_between(ways, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        if len(ways) == 1:  # a band needs two points, a bar one
            axes.errorbar(ways, mean, yerr=half, color=colour, capsize=4)
    all_ways = sorted({c.ways for c in cells})
    if problem is CLASSIFICATION:
        chance = [100 / n for n in all_ways]
        axes.plot(all_ways, chance, color="0.5", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xticks(all_ways, [str(n) for n in all_ways])
    axes.minorticks_off()
    # Room for a marker at 100; errors have no end.
    axes.set_ylim(0, 102 if problem is CLASSIFICATION else None)
    axes.set_xlabel(problem.axis)
    axes.set_ylabel(problem.heading)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
