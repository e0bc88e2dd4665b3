"""The style of an alphabet, and characters in it that are clear and differ from each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .randomness import Floats, between, pick, stream
from .rendering import render
from .strokes import Character, Points, Stroke, box_of, draw_plain, point_at, trace, unit

_ATTEMPTS = 40  # candidates for one character before the best of them is taken
_SIMILAR = 0.80  # correlation of two blurred shapes from which on they count as one
_CLEAR = 0.74  # clarity (see `_shape`) that a character must have
_GRID = 12  # side of the blurred shape, in cells
_LINE = 0.3  # radius of its lines, in cells


@dataclass(frozen=True, eq=False)
class Style:
    """The common style of the characters of one alphabet.

    Attributes:
        curved: how often a segment is an arc, 0 to 1.
        joined: how often two segments join without a corner, 0 to 1.
        clockwise: how often an arc turns clockwise, 0 to 1.
        directions: preferred headings, radians.
        strokes, segments: weights of 1, 2, ... strokes, and of segments in a stroke.
        ties: weights of a further stroke starting at an earlier one, crossing it, joining two
            points, standing apart, and being a dot.
        size: side of a character, as a part of the canvas.
        pool: the strokes that its characters are mostly made of.
    """

    curved: float
    joined: float
    clockwise: float
    directions: Floats
    strokes: tuple[float, ...]
    segments: tuple[float, ...]
    ties: tuple[float, ...]
    size: float
    pool: tuple[Stroke, ...] = ()


_ARCS = (0.5, 0.85, 1.1, 1.5, 1.95)  # turns of an arc, in half turns
_CORNERS = (0.33, 0.5, 0.67, 0.78)  # sharp changes of direction, in half turns


def _new_stroke(style: Style, rng: np.random.Generator) -> Stroke:
    """A stroke of the style, about 1 long."""
    count = 1 + pick(rng, style.segments)
    lengths, turns, bends, corners = np.zeros((4, count))
    for i in range(count):
        lengths[i] = between(rng, 0.4, 1.0)
        if rng.random() < style.curved:
            sign = 1 if rng.random() < style.clockwise else -1
            turns[i] = sign * np.pi * _ARCS[pick(rng, (3, 3, 3, 1.5, 1.5))]
            turns[i] *= between(rng, 0.85, 1.1)
            lengths[i] *= 1 + abs(turns[i]) / np.pi
            bends[i] = between(rng, -0.6, 0.6)
        if i and rng.random() >= style.joined:
            sign = 1 if rng.random() < 0.5 else -1
            corners[i] = sign * np.pi * _CORNERS[pick(rng, (1, 3, 2, 2))]
    heading = style.directions[pick(rng, np.ones(len(style.directions)))]
    return Stroke(heading, lengths / np.sqrt(count), turns, bends, corners)


def _new_style(seed: int, alphabet: int) -> Style:
    rng = stream(seed, 0, alphabet)
    curved = (0.08, 0.35, 0.6, 0.85)[pick(rng, (1, 1, 1, 1))]
    slant = between(rng, -0.12, 0.12)
    compass = np.arange(8) * np.pi / 4 + slant
    # Pens go right and down more than left and up.
    keep = rng.random(8) < np.array([0.95, 0.4, 0.95, 0.35, 0.35, 0.15, 0.35, 0.25])
    cursive = rng.random()
    style = Style(
        curved=curved,
        joined=between(rng, 0.2, 0.8) * (0.4 + 0.6 * curved),
        clockwise=between(rng, 0.25, 0.75),
        directions=compass[keep] if keep.sum() >= 2 else compass[[0, 2]],
        strokes=(0.3 + 1.5 * cursive, 2.0, 2.0 - cursive, 1.2 * (1 - cursive), 0.5 * (1 - cursive)),
        segments=(1.6 * (1 - cursive) + 0.3, 1.2, 0.5 + cursive, 0.9 * cursive),
        ties=(3.0, between(rng, 0.2, 1.2), between(rng, 0.3, 1.5), rng.random(), rng.random()),
        size=between(rng, 0.48, 0.76),
    )
    pool = tuple(_new_stroke(style, rng) for _ in range(5 + int(6 * rng.random())))
    return replace(style, pool=pool)


def _variant(style: Style, rng: np.random.Generator) -> Stroke:
    """A stroke of the pool at another size, sometimes turned or mirrored; now and then a new."""
    if rng.random() < 0.2:
        return _new_stroke(style, rng)
    stroke = style.pool[pick(rng, np.ones(len(style.pool)))]
    stroke = replace(stroke, lengths=stroke.lengths * between(rng, 0.55, 1.2))
    if rng.random() < 0.3:
        heading = style.directions[pick(rng, np.ones(len(style.directions)))]
        return replace(stroke, heading=heading)
    if rng.random() < 0.3:
        heading = np.pi - stroke.heading
        return replace(stroke, heading=heading, turns=-stroke.turns, corners=-stroke.corners)
    return stroke


def _fraction(rng: np.random.Generator) -> float:
    """A place along a stroke: mostly its start, middle or end."""
    return (0.0, 0.5, 1.0, rng.random())[pick(rng, (3, 2, 3, 2))]


def _tied(stroke: Stroke, drawn: list[Points], style: Style, rng: np.random.Generator) -> Stroke:
    """The stroke with its ties to the strokes drawn so far, (1, P) each."""
    kind = pick(rng, style.ties)
    other, fraction = int(len(drawn) * rng.random()), _fraction(rng)
    begun = replace(stroke, tie=(other, fraction, 0.0), offset=0j, end_tie=(-1, 0.0))
    if kind == 0:
        return begun
    if kind == 1:
        place, own = between(rng, 0.3, 0.7), between(rng, 0.35, 0.65)
        return replace(begun, tie=(other, place, own))
    if kind == 2:
        goal, end = int(len(drawn) * rng.random()), _fraction(rng)
        way = complex(point_at(drawn[goal], end)[0] - point_at(drawn[other], fraction)[0])
        return _stretched(begun, way, (goal, end))
    offset = between(rng, 0.3, 0.7) * complex(unit(2 * np.pi * rng.random()))
    if kind == 3:
        return replace(begun, tie=(other, 0.5, 0.5), offset=offset)
    flat = np.zeros(1)
    return Stroke(0.8, flat + 0.06, flat, flat, flat, tie=(other, fraction, 0.5), offset=offset)


def _stretched(stroke: Stroke, way: complex, end_tie: tuple[int, float]) -> Stroke:
    """The stroke turned and resized to end `way` from its start, unless one of them is tiny."""
    chord = complex(trace(stroke, np.zeros((1, 3 * len(stroke.lengths) + 1)))[0, -1])
    if min(abs(way), abs(chord)) < 0.25:
        return stroke
    heading = stroke.heading + float(np.angle(way / chord))
    lengths = stroke.lengths * abs(way / chord)
    return replace(stroke, heading=heading, lengths=lengths, end_tie=end_tie)


def _new_character(style: Style, rng: np.random.Generator) -> Character:
    strokes = [_variant(style, rng)]
    for _ in range(pick(rng, style.strokes)):
        repeat = rng.random() < 0.25  # letters are full of parallel and repeated strokes
        stroke = strokes[-1] if repeat else _variant(style, rng)
        strokes.append(_tied(stroke, draw_plain(strokes), style, rng))
    centre, side = box_of(draw_plain(strokes))
    size = style.size * between(rng, 0.8, 1.2)
    return Character(tuple(strokes), centre, side / size)


def _shape(character: Character) -> tuple[Floats, float]:
    """The blurred noise-free drawing on a grid over its box, (_GRID²,), and its clarity.

    Clarity is the ink on the grid over the ink of lines as long that are nowhere near each
    other: 1 for a clear character, below 0.7 for a knot or for lines drawn twice.
    """
    drawn = draw_plain(character.strokes)
    centre, side = box_of(drawn)
    moved = [(z - centre) / side * (_GRID - 2) + (_GRID / 2) * (1 + 1j) for z in drawn]
    shape = render(moved, np.full(1, _LINE), _GRID).astype(np.float64).ravel()
    length = sum(float(np.abs(np.diff(z)).sum()) for z in moved)
    return shape, float(shape.sum()) / (2 * _LINE * length)


def _candidates(
    style: Style, known: Floats, rng: np.random.Generator
) -> Iterator[tuple[float, Floats, Character]]:
    """Characters with their shapes and faults, up to the first with a fault below 0.

    A fault is likeness to one of the known shapes (M, _GRID²), or lack of clarity.
    """
    for _ in range(_ATTEMPTS):
        character = _new_character(style, rng)
        shape, clarity = _shape(character)
        shape = (shape - shape.mean()) / np.linalg.norm(shape - shape.mean())
        likeness = float((known @ shape).max(initial=0.0))
        fault = max(likeness - _SIMILAR, _CLEAR - clarity)
        yield fault, shape, character
        if fault < 0:
            return


def characters_of(seed: int, alphabet: int, count: int) -> Iterator[Character]:
    """The alphabet's characters; each differs clearly from those before it."""
    style = _new_style(seed, alphabet)
    known = np.zeros((0, _GRID**2))
    for number in range(count):
        rng = stream(seed, 1, alphabet, number)
        candidates = _candidates(style, known, rng)
        _, shape, character = min(candidates, key=lambda candidate: candidate[0])
        known = np.concatenate([known, shape[None]])
        yield character
