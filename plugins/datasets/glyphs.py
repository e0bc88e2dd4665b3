"""`glyphs`: made-up alphabets of handwritten characters, the dataset that needs no download.

As in the motor programs of Lake et al. 2015 ("Human-level concept learning through probabilistic
program induction"), a character is a short list of strokes tied to each other, an alphabet is a
style its characters share, and a drawing is one noisy execution of the character's program.

Points are complex numbers, x + iy with y downwards. Every random number is a function of
(seed, alphabet, character, drawing), so more alphabets, characters or drawings change no earlier
image. Only plain uniform numbers are drawn: their stream does not depend on a maths library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hidra_cli.api import Dataset, ImageClass, Split

Floats = NDArray[np.float64]
Points = NDArray[np.complex128]

# One split per alphabet, repeated: 10 train, 2 val and 3 test in 15, all three in the first 3.
_TURNS: tuple[Split, ...] = ("train", "val", "test", "train", "train", "train", "train", "test")
_TURNS += ("train", "train", "val", "train", "train", "test", "train")

_STEPS = 10  # straight pieces a segment is drawn with
_ATTEMPTS = 40  # candidates for one character before the best of them is taken
_SIMILAR = 0.80  # correlation of two blurred shapes from which on they count as one
_CLEAR = 0.74  # clarity (see `_shape`) that a character must have
_GRID = 12  # side of the blurred shape, in cells
_LINE = 0.3  # radius of its lines, in cells
_SLIP = 0.022  # how far a stroke's ends miss their place, as a part of the canvas


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _bell(uniform: Floats) -> Floats:
    """Noise of mean 0, deviation 1 and no outliers: the sum of three uniforms (..., 3)."""
    return 2 * (uniform[..., 0] + uniform[..., 1] + uniform[..., 2] - 1.5)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _pick(rng: np.random.Generator, weights: Iterable[float]) -> int:
    """An index drawn with the given weights."""
    total = np.cumsum(list(weights))
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def _unit(angle: Any) -> Any:
    return np.cos(angle) + 1j * np.sin(angle)


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


def _point(stroke: Points, fraction: float) -> Points:
    """The points (D,) at a fraction of the way along strokes (D, P)."""
    return stroke[:, round(fraction * (stroke.shape[1] - 1))]


def _trace(stroke: Stroke, noise: Floats) -> Points:
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
    steps = (lengths / _STEPS)[..., None] * _unit(angles)
    path = np.cumsum(steps.reshape(drawings, -1), axis=1)
    return np.concatenate([np.zeros((drawings, 1)), path], axis=1)


def _noise_count(character: Character) -> int:
    return sum(3 * len(stroke.lengths) + 1 + 4 for stroke in character.strokes)


def _draw(character: Character, noise: Floats) -> list[Points]:
    """Every stroke as points (D, P) in the character's units, for noise (D, _noise_count)."""
    drawn: list[Points] = []
    done = 0
    for stroke in character.strokes:
        count = 3 * len(stroke.lengths) + 1
        own = noise[:, done : done + count]
        slip = _SLIP * character.scale * noise[:, done + count : done + count + 4]
        done += count + 4
        path = _trace(stroke, own)
        aim = _trace(stroke, np.zeros((1, count)))[:, -1]
        share = np.linspace(0, 1, path.shape[1])
        # The eye corrects the hand: most of the error gathered on the way is taken back.
        path = path + 0.6 * share * (aim - path[:, -1])[:, None]
        start: Points = slip[:, 0] + 1j * slip[:, 1]
        end: Points = slip[:, 2] + 1j * slip[:, 3]
        other, fraction, mine = stroke.tie
        if other >= 0:
            start = start + _point(drawn[other], fraction) + stroke.offset - _point(path, mine)
        path = path + start[:, None]
        goal, fraction = stroke.end_tie
        if goal >= 0:
            end = end + _point(drawn[goal], fraction) - path[:, -1]
        drawn.append(path + share * end[:, None])
    return drawn


def _plain(strokes: Iterable[Stroke]) -> list[Points]:
    """The strokes drawn without noise, (1, P) each."""
    character = Character(tuple(strokes))
    return _draw(character, np.zeros((1, _noise_count(character))))


def _box(drawn: list[Points]) -> tuple[complex, float]:
    """Centre and longer side of the box around a drawing."""
    ink = np.concatenate(drawn, axis=1)
    low, high = complex(ink.real.min(), ink.imag.min()), complex(ink.real.max(), ink.imag.max())
    return (low + high) / 2, max((high - low).real, (high - low).imag)


@dataclass(frozen=True, eq=False)
class Style:
    """What the characters of one alphabet share.

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
    count = 1 + _pick(rng, style.segments)
    lengths, turns, bends, corners = np.zeros((4, count))
    for i in range(count):
        lengths[i] = _between(rng, 0.4, 1.0)
        if rng.random() < style.curved:
            sign = 1 if rng.random() < style.clockwise else -1
            turns[i] = sign * np.pi * _ARCS[_pick(rng, (3, 3, 3, 1.5, 1.5))]
            turns[i] *= _between(rng, 0.85, 1.1)
            lengths[i] *= 1 + abs(turns[i]) / np.pi
            bends[i] = _between(rng, -0.6, 0.6)
        if i and rng.random() >= style.joined:
            sign = 1 if rng.random() < 0.5 else -1
            corners[i] = sign * np.pi * _CORNERS[_pick(rng, (1, 3, 2, 2))]
    heading = style.directions[_pick(rng, np.ones(len(style.directions)))]
    return Stroke(heading, lengths / np.sqrt(count), turns, bends, corners)


def _new_style(seed: int, alphabet: int) -> Style:
    rng = _stream(seed, 0, alphabet)
    curved = (0.08, 0.35, 0.6, 0.85)[_pick(rng, (1, 1, 1, 1))]
    slant = _between(rng, -0.12, 0.12)
    compass = np.arange(8) * np.pi / 4 + slant
    # Pens go right and down more than left and up.
    keep = rng.random(8) < np.array([0.95, 0.4, 0.95, 0.35, 0.35, 0.15, 0.35, 0.25])
    cursive = rng.random()
    style = Style(
        curved=curved,
        joined=_between(rng, 0.2, 0.8) * (0.4 + 0.6 * curved),
        clockwise=_between(rng, 0.25, 0.75),
        directions=compass[keep] if keep.sum() >= 2 else compass[[0, 2]],
        strokes=(0.3 + 1.5 * cursive, 2.0, 2.0 - cursive, 1.2 * (1 - cursive), 0.5 * (1 - cursive)),
        segments=(1.6 * (1 - cursive) + 0.3, 1.2, 0.5 + cursive, 0.9 * cursive),
        ties=(3.0, _between(rng, 0.2, 1.2), _between(rng, 0.3, 1.5), rng.random(), rng.random()),
        size=_between(rng, 0.48, 0.76),
    )
    pool = tuple(_new_stroke(style, rng) for _ in range(5 + int(6 * rng.random())))
    return replace(style, pool=pool)


def _variant(style: Style, rng: np.random.Generator) -> Stroke:
    """A stroke of the pool at another size, sometimes turned or mirrored; now and then a new."""
    if rng.random() < 0.2:
        return _new_stroke(style, rng)
    stroke = style.pool[_pick(rng, np.ones(len(style.pool)))]
    stroke = replace(stroke, lengths=stroke.lengths * _between(rng, 0.55, 1.2))
    if rng.random() < 0.3:
        heading = style.directions[_pick(rng, np.ones(len(style.directions)))]
        return replace(stroke, heading=heading)
    if rng.random() < 0.3:
        heading = np.pi - stroke.heading
        return replace(stroke, heading=heading, turns=-stroke.turns, corners=-stroke.corners)
    return stroke


def _fraction(rng: np.random.Generator) -> float:
    """A place along a stroke: mostly its start, middle or end."""
    return (0.0, 0.5, 1.0, rng.random())[_pick(rng, (3, 2, 3, 2))]


def _tied(stroke: Stroke, drawn: list[Points], style: Style, rng: np.random.Generator) -> Stroke:
    """The stroke with its ties to the strokes drawn so far, (1, P) each."""
    kind = _pick(rng, style.ties)
    other, fraction = int(len(drawn) * rng.random()), _fraction(rng)
    begun = replace(stroke, tie=(other, fraction, 0.0), offset=0j, end_tie=(-1, 0.0))
    if kind == 0:
        return begun
    if kind == 1:
        place, own = _between(rng, 0.3, 0.7), _between(rng, 0.35, 0.65)
        return replace(begun, tie=(other, place, own))
    if kind == 2:
        goal, end = int(len(drawn) * rng.random()), _fraction(rng)
        way = complex(_point(drawn[goal], end)[0] - _point(drawn[other], fraction)[0])
        return _stretched(begun, way, (goal, end))
    offset = _between(rng, 0.3, 0.7) * complex(_unit(2 * np.pi * rng.random()))
    if kind == 3:
        return replace(begun, tie=(other, 0.5, 0.5), offset=offset)
    flat = np.zeros(1)
    return Stroke(0.8, flat + 0.06, flat, flat, flat, tie=(other, fraction, 0.5), offset=offset)


def _stretched(stroke: Stroke, way: complex, end_tie: tuple[int, float]) -> Stroke:
    """The stroke turned and resized to end `way` from its start, unless one of them is tiny."""
    chord = complex(_trace(stroke, np.zeros((1, 3 * len(stroke.lengths) + 1)))[0, -1])
    if min(abs(way), abs(chord)) < 0.25:
        return stroke
    heading = stroke.heading + float(np.angle(way / chord))
    lengths = stroke.lengths * abs(way / chord)
    return replace(stroke, heading=heading, lengths=lengths, end_tie=end_tie)


def _new_character(style: Style, rng: np.random.Generator) -> Character:
    strokes = [_variant(style, rng)]
    for _ in range(_pick(rng, style.strokes)):
        repeat = rng.random() < 0.25  # letters are full of parallel and repeated strokes
        stroke = strokes[-1] if repeat else _variant(style, rng)
        strokes.append(_tied(stroke, _plain(strokes), style, rng))
    centre, side = _box(_plain(strokes))
    size = style.size * _between(rng, 0.8, 1.2)
    return Character(tuple(strokes), centre, side / size)


def _shape(character: Character) -> tuple[Floats, float]:
    """The blurred noise-free drawing on a grid over its box, (_GRID²,), and its clarity.

    Clarity is the ink on the grid over the ink of lines as long that are nowhere near each
    other: 1 for a clear character, below 0.7 for a knot or for lines drawn twice.
    """
    drawn = _plain(character.strokes)
    centre, side = _box(drawn)
    moved = [(z - centre) / side * (_GRID - 2) + (_GRID / 2) * (1 + 1j) for z in drawn]
    shape = _render(moved, np.full(1, _LINE), _GRID).astype(np.float64).ravel()
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


def _characters(seed: int, alphabet: int, count: int) -> Iterator[Character]:
    """The alphabet's characters; each differs clearly from those before it."""
    style = _new_style(seed, alphabet)
    known = np.zeros((0, _GRID**2))
    for number in range(count):
        rng = _stream(seed, 1, alphabet, number)
        candidates = _candidates(style, known, rng)
        _, shape, character = min(candidates, key=lambda candidate: candidate[0])
        known = np.concatenate([known, shape[None]])
        yield character


def _coverage(distance: NDArray[np.float32], radius: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey of a pixel whose centre is this far from the middle of a line, in pixels.

    The line's cross-section seen through a tent of half width 1, as bilinear reduction does.
    """

    def below(x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = np.clip(x, -1, 1)
        return 0.5 + x - 0.5 * x * np.abs(x)

    return below(distance + radius) - below(distance - radius)


def _render(strokes: list[Points], radius: Floats, size: int) -> NDArray[np.float32]:
    """Antialiased lines: strokes (D, P) each, radius (D,), in pixels, to (D, size, size)."""
    start = np.concatenate([s[:, :-1] for s in strokes], axis=1).astype(np.complex64)
    way = np.concatenate([np.diff(s, axis=1) for s in strokes], axis=1).astype(np.complex64)
    thick = radius.astype(np.float32)[:, None, None, None]
    reach = float(radius.max()) + 1
    extent = max(np.abs(way.real).max(), np.abs(way.imag).max())
    patch = np.arange(int(np.ceil(extent + 2 * reach)) + 1)  # pixels that one piece may touch
    left = np.floor(np.minimum(0, way.real) + start.real - reach).astype(np.int64)
    top = np.floor(np.minimum(0, way.imag) + start.imag - reach).astype(np.int64)
    x = (left - start.real + 0.5).astype(np.float32)[..., None, None] + patch.astype(np.float32)
    y = (top - start.imag + 0.5).astype(np.float32)[..., None, None]
    y = y + patch.astype(np.float32)[:, None]
    dx, dy = way.real[..., None, None], way.imag[..., None, None]
    along = np.clip((x * dx + y * dy) / np.maximum(dx * dx + dy * dy, 1e-12), 0, 1)
    grey = _coverage(np.hypot(x - along * dx, y - along * dy), thick)
    side = size + 2 * len(patch)  # a margin wide enough for every patch
    column = np.clip(left + len(patch), 0, side - len(patch))[..., None, None] + patch
    row = np.clip(top + len(patch), 0, side - len(patch))[..., None, None] + patch[:, None]
    which = np.arange(len(start))[:, None, None, None]
    canvas = np.zeros(len(start) * side * side, dtype=np.float32)
    np.maximum.at(canvas, ((which * side + row) * side + column).ravel(), grey.ravel())
    inner = slice(len(patch), len(patch) + size)
    return canvas.reshape(-1, side, side)[:, inner, inner]


# Noise a drawing takes besides its strokes': turn, slant, stretch, zoom, x, y, width, care.
_GLOBAL = 8


@dataclass(frozen=True, eq=False)
class Drawings:
    """The drawings of one character, made when iterated over: uint8 arrays (size, size)."""

    character: Character
    key: tuple[int, int, int]
    count: int
    size: int

    def __len__(self) -> int:
        return self.count

    def __contains__(self, image: object) -> bool:
        return any(np.array_equal(mine, image) for mine in self)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        seed, alphabet, number = self.key
        wanted = (_GLOBAL + _noise_count(self.character), 3)
        streams = (_stream(seed, 2, alphabet, number, drawing) for drawing in range(self.count))
        noise = _bell(np.stack([stream.random(wanted) for stream in streams]))
        strokes, radius = self._placed(noise)
        images = _render(strokes, radius, self.size)
        yield from np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)

    def _placed(self, noise: Floats) -> tuple[list[Points], Floats]:
        """Strokes and line radius in pixels: each drawing slanted, stretched, turned, moved."""
        hand, sloppy = noise[:, :_GLOBAL], 1.1 + 0.3 * noise[:, 7:8]  # some hands are neater
        turn, slant, stretch, zoom = (hand[:, i : i + 1] for i in range(4))
        strokes = _draw(self.character, noise[:, _GLOBAL:] * sloppy)
        high, wide = 1 + 0.08 * stretch, 1 - 0.08 * stretch
        scale = (1 + 0.11 * zoom) / self.character.scale
        placed = []
        for stroke in strokes:
            z = (stroke - self.character.centre) * scale
            z = z.real * wide + 0.13 * slant * z.imag + 1j * z.imag * high
            placed.append(z * _unit(0.09 * turn))
        ink = np.concatenate(placed, axis=1)
        margin = 0.045
        low = ink.real.min(1) + 1j * ink.imag.min(1)
        span = ink.real.max(1) + 1j * ink.imag.max(1) - low
        shrink = (1 - 2 * margin) / np.maximum(np.maximum(span.real, span.imag), 1 - 2 * margin)
        where = 0.47 + 0.05 * hand[:, 4] + 1j * (0.47 + 0.05 * hand[:, 5]) - shrink * span / 2
        room = 1 - margin - shrink * span.real + 1j * (1 - margin - shrink * span.imag)
        where = np.clip(where.real, margin, room.real) + 1j * np.clip(where.imag, margin, room.imag)
        move = (where - shrink * low)[:, None]
        radius = self.size / 28 * (0.73 + 0.06 * hand[:, 6])
        return [(shrink[:, None] * z + move) * self.size for z in placed], radius


# A model from elsewhere names the glyphs it was trained on, and hidra draws them unasked.
MOST_PIXELS = 4 * 10**9


class Glyphs(Dataset):
    """Made-up alphabets, drawn by noisy motor programs; grey, white strokes on black.

    Raises:
        ValueError: a source is given, or an option is out of its range.
    """

    api_version: ClassVar[int] = 1
    title: ClassVar[str] = "Glyphs: generated alphabets of handwritten characters"
    licence: ClassVar[str] = "CC0-1.0"
    citation: ClassVar[str] = (
        "generated; after the motor programs of Lake, Salakhutdinov and Tenenbaum 2015, "
        "Human-level concept learning through probabilistic program induction"
    )
    embedded: ClassVar[bool] = True

    def __init__(
        self,
        source: Path | None,
        *,
        seed: Annotated[int, "another seed gives other alphabets"] = 0,
        alphabets: Annotated[int, "number of alphabets, at least 3 (one per split)"] = 60,
        characters: Annotated[int, "characters in each alphabet"] = 20,
        drawings: Annotated[int, "drawings of each character, at least 2"] = 20,
        size: Annotated[int, "side of the square images in pixels, at least 14"] = 28,
    ) -> None:
        if source is not None:
            raise ValueError("glyphs is generated, it takes no source")
        given = {"seed": seed, "alphabets": alphabets, "characters": characters}
        given |= {"drawings": drawings, "size": size}
        least = {"seed": 0, "alphabets": 3, "characters": 1, "drawings": 2, "size": 14}
        for name, value in given.items():
            if value < least[name]:
                raise ValueError(f"{name} must be at least {least[name]}, not {value}")
        pixels = alphabets * characters * drawings * size**2
        if pixels > MOST_PIXELS:
            raise ValueError(
                f"{alphabets} alphabets of {characters} characters, {drawings} drawings each of "
                f"{size}×{size} pixels are {pixels:.3g} bytes; at most {MOST_PIXELS:.3g} are made"
            )
        self.seed, self.alphabets, self.characters = seed, alphabets, characters
        self.drawings = drawings
        self.image_shape = (1, size, size)

    def classes(self, downloads: Path) -> Iterator[ImageClass]:
        """Every character, alphabet by alphabet; whole alphabets belong to one split."""
        for alphabet in range(self.alphabets):
            split = _TURNS[alphabet % len(_TURNS)]
            plans = _characters(self.seed, alphabet, self.characters)
            for number, character in enumerate(plans):
                key = (self.seed, alphabet, number)
                images = Drawings(character, key, self.drawings, self.image_shape[1])
                name = f"alphabet{alphabet + 1:02d}/character{number + 1:02d}"
                yield ImageClass(name, split, images)
