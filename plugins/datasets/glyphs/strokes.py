"""A character's program of strokes, and its drawing with or without noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .randomness import Floats

Points = NDArray[np.complex128]

_STEPS = 10  # straight pieces a segment is drawn with
_SLIP = 0.022  # how far a stroke's ends miss their place, as a part of the canvas


@dataclass(frozen=True, eq=False)
class Stroke:
    """One pen movement: a chain of S segments, and where it is tied to an earlier stroke.

    Attributes:
        heading: direction of the first segment, radians.
        lengths, turns, bends, corners: (S,); a segment's length, its change of direction in
            radians, how unevenly that turn is spread (0: a circle's arc) and the sudden change
            of direction before it.
        tie: (stroke, fraction of it, own fraction): the own point put on an earlier stroke's
            point; the stroke is -1 for the first stroke.
        offset: distance kept from that point; 0 where the two touch.
        end_tie: (stroke, fraction) that the end is drawn to; the stroke is -1 for none.
    """

    heading: float
    lengths: Floats
    turns: Floats
    bends: Floats
    corners: Floats
    tie: tuple[int, float, float] = (-1, 0.0, 0.0)
    offset: complex = 0j
    end_tie: tuple[int, float] = (-1, 0.0)


@dataclass(frozen=True, eq=False)
class Character:
    """A character's program: its strokes, then the box that the noise-free drawing fills.

    Attributes:
        centre: of the noise-free drawing, in its own units.
        scale: side of the canvas in these units, so that point / scale is a part of the canvas.
    """

    strokes: tuple[Stroke, ...]
    centre: complex = 0j
    scale: float = 1.0


def unit(angle: Any) -> Any:
    """The point at distance 1 from the origin in this direction, in radians."""
    return np.cos(angle) + 1j * np.sin(angle)


def point_at(stroke: Points, fraction: float) -> Points:
    """The points (D,) at a fraction of the way along strokes (D, P)."""
    return stroke[:, round(fraction * (stroke.shape[1] - 1))]


def trace(stroke: Stroke, noise: Floats) -> Points:
    """The stroke drawn from the origin, (D, S·_STEPS + 1), for noise (D, 3·S + 1)."""
    drawings, segments = len(noise), len(stroke.lengths)
    long, turn, corner = (noise[:, i * segments : (i + 1) * segments] for i in range(3))
    lengths = stroke.lengths * np.maximum(1 + 0.16 * long, 0.3)
    turns = stroke.turns * (1 + 0.10 * turn) + 0.14 * turn
    corners = stroke.corners + 0.10 * corner
    before = np.cumsum(corners + turns, axis=1) - turns + stroke.heading + 0.06 * noise[:, -1:]
    at = (np.arange(_STEPS) + 0.5) / _STEPS
    uneven = at + stroke.bends[:, None] * at * (1 - at)
    angles = before[..., None] + turns[..., None] * uneven
    steps = (lengths / _STEPS)[..., None] * unit(angles)
    path = np.cumsum(steps.reshape(drawings, -1), axis=1)
    return np.concatenate([np.zeros((drawings, 1)), path], axis=1)


def noise_count(character: Character) -> int:
    """The number of random numbers that `draw` needs for each drawing."""
    return sum(3 * len(stroke.lengths) + 1 + 4 for stroke in character.strokes)


def draw(character: Character, noise: Floats) -> list[Points]:
    """Every stroke as points (D, P) in the character's units, for noise (D, noise_count)."""
    drawn: list[Points] = []
    done = 0
    for stroke in character.strokes:
        count = 3 * len(stroke.lengths) + 1
        own = noise[:, done : done + count]
        slip = _SLIP * character.scale * noise[:, done + count : done + count + 4]
        done += count + 4
        path = trace(stroke, own)
        aim = trace(stroke, np.zeros((1, count)))[:, -1]
        share = np.linspace(0, 1, path.shape[1])
        # The eye corrects the hand: most of the error that has built up is removed.
        path = path + 0.6 * share * (aim - path[:, -1])[:, None]
        start: Points = slip[:, 0] + 1j * slip[:, 1]
        end: Points = slip[:, 2] + 1j * slip[:, 3]
        other, fraction, mine = stroke.tie
        if other >= 0:
            start = start + point_at(drawn[other], fraction) + stroke.offset - point_at(path, mine)
        path = path + start[:, None]
        goal, fraction = stroke.end_tie
        if goal >= 0:
            end = end + point_at(drawn[goal], fraction) - path[:, -1]
        drawn.append(path + share * end[:, None])
    return drawn


def draw_plain(strokes: Iterable[Stroke]) -> list[Points]:
    """The strokes drawn without noise, (1, P) each."""
    character = Character(tuple(strokes))
    return draw(character, np.zeros((1, noise_count(character))))


def box_of(drawn: list[Points]) -> tuple[complex, float]:
    """Centre and longer side of the box around a drawing."""
    ink = np.concatenate(drawn, axis=1)
    low, high = complex(ink.real.min(), ink.imag.min()), complex(ink.real.max(), ink.imag.max())
    return (low + high) / 2, max((high - low).real, (high - low).imag)
