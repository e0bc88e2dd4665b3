"""Line charts as inline SVG: no script, no raster, colours from the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hidra_cli.reports.html.markup import Html, join, tag

Point = tuple[float, float]

WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 20, 28, 38
# Lines differ in more than colour: in print and for colour-blind readers.
_COLOURS = 6
_DASHES = (None, "7 3", "2 3", "9 3 2 3")
_MARKERS = ("circle", "square", "triangle", "diamond", "cross")
_MOST_POINTS = 300
_MOST_MARKERS = 30


@dataclass(frozen=True)
class Axis:
    """Values on a line of length one, with the ticks that are written."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Line:
    """A series. `half` are half-widths of its band, `faint` is the noise behind a smooth line."""

    label: str
    points: Sequence[Point]
    style: int
    half: Sequence[float] = ()
    faint: Sequence[Point] = field(default=())
    markers: bool = False


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """The mean over up to `window` points around each, fewer at the ends."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    reach = window // 2
    result = []
    for index, (x, _) in enumerate(points):
        first, last = max(0, index - reach), min(len(points), index + reach + 1)
        result.append((x, (sums[last] - sums[first]) / (last - first)))
    return result


def thinned(points: Sequence[Point]) -> list[Point]:
    """The smallest and the largest of each bin, in order: as drawn, the same line."""
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    if size <= 2:
        return list(points)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def linear_axis(
    label: str, values: Iterable[float], *, floor: float | None = None, most: int = 6
) -> Axis:
    """An axis from a round number to a round number around all values."""
    values = list(values)
    low, high = min(values), max(values)
    if floor is not None:
        low = min(low, floor)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(i * step, f"{i * step:,.{decimals}f}") for i in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def ways_axis(ways: Iterable[int]) -> Axis:
    """A logarithmic axis with a tick at each number of ways, where there is room."""
    numbers = sorted(set(ways))
    low, high = numbers[0] / 1.15, numbers[-1] * 1.15
    axis = Axis("ways (classes per task)", low, high, (), log=True)
    ticks: list[tuple[float, str]] = []
    for n in numbers:
        if not ticks or (axis.at(n) - axis.at(ticks[-1][0])) * _inner_width() >= 24:
            ticks.append((n, str(n)))
    return Axis(axis.label, low, high, ticks, log=True)


def chart(key: str, title: str, x: Axis, y: Axis, lines: Sequence[Line], note: str = "") -> Html:
    """The whole figure as one image with a title and a description in words."""
    told = "; ".join(map(_told, lines))
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", f"{y.label} over {x.label}. {told}. {note}".strip(), id=f"{key}-desc"),
        _grid(x, y),
        *(_drawn(line, x, y) for line in lines),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        class_="chart",
    )


def legend(lines: Sequence[Line]) -> Html:
    """What is which line."""
    entries = []
    for line in lines:
        swatch = tag(
            "svg",
            tag("path", d="M1 7H31", class_="line", stroke_dasharray=_dash(line.style)),
            _marker(line.style, 16, 7) if line.markers else "",
            viewBox="0 0 32 14",
            class_=f"swatch {_colour(line.style)}",
            aria_hidden="true",
        )
        entries.append(tag("li", swatch, line.label))
    return tag("ul", *entries, class_="legend")


def bar(share: float) -> Html:
    """A share of one, beside the number that says it."""
    return tag(
        "svg",
        tag("rect", x=0, y=2, width=60, height=8, class_="rail"),
        tag("rect", x=0, y=2, width=_short(60 * share), height=8, class_="filled"),
        viewBox="0 0 60 12",
        class_="bar",
        aria_hidden="true",
    )


def _told(line: Line) -> str:
    (x0, y0), (x1, y1) = line.points[0], line.points[-1]
    if len(line.points) == 1:
        return f"{line.label}: {y0:.3g} at {x0:g}"
    return f"{line.label}: from {y0:.3g} at {x0:g} to {y1:.3g} at {x1:g}"


def _inner_width() -> int:
    return WIDTH - _LEFT - _RIGHT


def _place(x: Axis, y: Axis, point: Point) -> Point:
    height = HEIGHT - _TOP - _BOTTOM
    return _LEFT + x.at(point[0]) * _inner_width(), _TOP + (1 - y.at(point[1])) * height


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{_short(px)} {_short(py)}" for px, py in points)


def _grid(x: Axis, y: Axis) -> Html:
    parts = []
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value, label in y.ticks:
        _, py = _place(x, y, (x.low, value))
        parts.append(tag("path", d=f"M{_LEFT} {_short(py)}H{right}", class_="grid"))
        parts.append(tag("text", label, x=_LEFT - 6, y=_short(py + 4), text_anchor="end"))
    for value, label in x.ticks:
        px, _ = _place(x, y, (value, y.low))
        parts.append(tag("path", d=f"M{_short(px)} {bottom}v4", class_="tick"))
        middle = min(px, WIDTH - 3.3 * len(label))  # a long last label stays in the picture
        parts.append(tag("text", label, x=_short(middle), y=bottom + 17, text_anchor="middle"))
    parts.append(tag("path", d=f"M{_LEFT} {bottom}H{right}", class_="tick"))
    parts.append(tag("text", y.label, x=0, y=13, class_="axis"))
    parts.append(tag("text", x.label, x=right, y=HEIGHT - 4, text_anchor="end", class_="axis"))
    return tag("g", *parts)


def _drawn(line: Line, x: Axis, y: Axis) -> Html:
    places = [_place(x, y, point) for point in line.points]
    parts = []
    if line.half and len(places) > 1:
        parts.append(tag("path", d=_band(line, x, y), class_="band"))
    if line.faint:
        faint = _path(_place(x, y, point) for point in line.faint)
        parts.append(tag("path", d=faint, class_="faint"))
    if line.half and len(places) == 1:  # a band needs two points, a bar one
        (px, py), half = line.points[0], line.half[0]
        ends = [_place(x, y, (px, _within(y, py + sign * half))) for sign in (-1, 1)]
        parts.append(tag("path", d=_path(ends), class_="line"))
    if len(places) > 1:
        dash = _dash(line.style)
        parts.append(tag("path", d=_path(places), class_="line", stroke_dasharray=dash))
    if line.markers or len(places) == 1:
        every = math.ceil(len(places) / _MOST_MARKERS)
        parts += [_marker(line.style, px, py) for px, py in places[::every]]
    return tag("g", *parts, class_=_colour(line.style))


def _band(line: Line, x: Axis, y: Axis) -> str:
    pairs = list(zip(line.points, line.half, strict=True))
    upper = [_place(x, y, (px, _within(y, py + half))) for (px, py), half in pairs]
    lower = [_place(x, y, (px, _within(y, py - half))) for (px, py), half in pairs]
    return _path([*upper, *reversed(lower)]) + "Z"


def _within(axis: Axis, value: float) -> float:
    return min(max(value, axis.low), axis.high)


def _colour(style: int) -> str:
    return "chance" if style < 0 else f"s{style % _COLOURS}"


def _dash(style: int) -> str | None:
    return "1 4" if style < 0 else _DASHES[style % len(_DASHES)]


def _marker(style: int, px: float, py: float) -> Html:
    shapes = {
        "circle": "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0Z",
        "square": "m-3-3h6v6h-6Z",
        "triangle": "m0-4.2l4 7h-8Z",
        "diamond": "m0-4.5l4 4.5l-4 4.5l-4-4.5Z",
        "cross": "m-1.2-4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8Z",
    }
    shape = shapes[_MARKERS[style % len(_MARKERS)]]
    return tag("path", d=f"M{_short(px)} {_short(py)}{shape}", class_="marker")


def side_by_side(*figures: Html) -> Html:
    return tag("div", join(figures), class_="pair")
