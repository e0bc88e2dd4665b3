"""Pictures of results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hidra_cli.evaluation import Cell

# Okabe & Ito's palette, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def accuracy_over_ways(cells: Sequence[Cell], title: str) -> bytes:
    """Test accuracy over the number of ways with 95 % bands, one line per model and shots: PNG."""
    from matplotlib.figure import Figure

    from hidra_cli.evaluation import interval

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    lines = dict.fromkeys((c.contender, c.shots) for c in cells)
    for index, (name, shots) in enumerate(lines):
        chosen = sorted(
            (c for c in cells if (c.contender, c.shots) == (name, shots)), key=lambda c: c.ways
        )
        ways = np.array([c.ways for c in chosen])
        mean, half = 100 * np.array([interval(c.final) for c in chosen]).T
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(
            ways,
            mean,
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
            label=f"{name}, {shots}-shot",
        )
        axes.fill_between(ways, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        if len(ways) == 1:  # a band needs two points, a bar one
            axes.errorbar(ways, mean, yerr=half, color=colour, capsize=4)
    all_ways = sorted({c.ways for c in cells})
    axes.plot(all_ways, [100 / n for n in all_ways], color="0.5", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xticks(all_ways, [str(n) for n in all_ways])
    axes.minorticks_off()
    axes.set_ylim(0, 102)  # room for a marker at 100
    axes.set_xlabel("ways (classes per task)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
