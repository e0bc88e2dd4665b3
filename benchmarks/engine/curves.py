"""The picture of what a meta-step costs over ways, inner steps and tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from hidra_cli.reports.figures import Line, draw_line, legend_below, plain_axes, png

_LABELS = {"ways": "ways N", "steps": "inner steps", "tasks": "tasks per meta-step"}
_MIB = 2**20


def picture(found: dict[str, Any]) -> bytes:
    """A PNG of three columns, one per axis: time above, memory below, a line per contender.

    Args:
        found: `axes` holds for each axis what was measured at each of its values.
    """
    axes = found["axes"]
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.subplots(2, len(axes), squeeze=False, sharey="row", sharex="col")
    for column, (axis, points) in enumerate(axes.items()):
        above, below = grid[0][column], grid[1][column]
        _lines(above, axis, points, lambda row: row["median"] * 1e3)
        _lines(below, axis, points, lambda row: row["memory"]["growth"] / _MIB)
        below.set_xlabel(_LABELS[axis])
        for place in (above, below):
            place.set_xscale("log")
            place.set_yscale("log")
            values = [point["workload"][axis] for point in points]
            place.set_xticks(values, map(str, values), minor=False)
            place.minorticks_off()
            place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            place.yaxis.set_major_formatter("{x:g}")
            plain_axes(place)
    for row, label in enumerate(("time per meta-step (ms)", "peak memory of a meta-step (MiB)")):
        grid[row][0].set_ylabel(label)
    work = found["workload"]
    figure.suptitle(
        f"{work['images']} {work['ways']}-way {work['shots']}-shot, {work['tasks']} tasks, "
        f"inner steps {work['steps']}, order {work['order']}, {work['filters']} filters, "
        f"head {work['head']}; one of them varied\n"
        f"{found['processor'] if found['device'] == 'cpu' else found['device']}, "
        f"threads: {found['threads']}",
        fontsize=10,
    )
    legend_below(figure, grid[0][0].get_legend_handles_labels()[1])
    return png(figure)


def _lines(
    place: Any, axis: str, points: list[dict[str, Any]], value: Callable[[Any], float]
) -> None:
    names = list(points[0]["contenders"])
    x = [point["workload"][axis] for point in points]
    for index, name in enumerate(names):
        y = [value(point["contenders"][name]) for point in points]
        draw_line(place, Line(name, x, y, index), len(names))
