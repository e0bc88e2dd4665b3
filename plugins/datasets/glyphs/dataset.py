"""The dataset of drawings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from hidra_cli.api import Dataset, ImageClass, Split

from .alphabets import characters_of
from .randomness import Floats, bell, stream
from .rendering import render
from .strokes import Character, Points, draw, noise_count, unit

# One split per alphabet, repeated: 10 train, 2 val and 3 test in 15, all three in the first 3.
_TURNS: tuple[Split, ...] = ("train", "val", "test", "train", "train", "train", "train", "test")
_TURNS += ("train", "train", "val", "train", "train", "test", "train")

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
        wanted = (_GLOBAL + noise_count(self.character), 3)
        generators = (stream(seed, 2, alphabet, number, drawing) for drawing in range(self.count))
        noise = bell(np.stack([rng.random(wanted) for rng in generators]))
        strokes, radius = self._placed(noise)
        images = render(strokes, radius, self.size)
        yield from np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)

    def _placed(self, noise: Floats) -> tuple[list[Points], Floats]:
        """Strokes and line radius in pixels: each drawing slanted, stretched, turned, moved."""
        hand, sloppy = noise[:, :_GLOBAL], 1.1 + 0.3 * noise[:, 7:8]  # some hands are neater
        turn, slant, stretch, zoom = (hand[:, i : i + 1] for i in range(4))
        strokes = draw(self.character, noise[:, _GLOBAL:] * sloppy)
        high, wide = 1 + 0.08 * stretch, 1 - 0.08 * stretch
        scale = (1 + 0.11 * zoom) / self.character.scale
        placed = []
        for stroke in strokes:
            z = (stroke - self.character.centre) * scale
            z = z.real * wide + 0.13 * slant * z.imag + 1j * z.imag * high
            placed.append(z * unit(0.09 * turn))
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
        sizes = {"seed": seed, "alphabets": alphabets, "characters": characters}
        sizes |= {"drawings": drawings, "size": size}
        least = {"seed": 0, "alphabets": 3, "characters": 1, "drawings": 2, "size": 14}
        for name, value in sizes.items():
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
            plans = characters_of(self.seed, alphabet, self.characters)
            for number, character in enumerate(plans):
                key = (self.seed, alphabet, number)
                images = Drawings(character, key, self.drawings, self.image_shape[1])
                name = f"alphabet{alphabet + 1:02d}/character{number + 1:02d}"
                yield ImageClass(name, split, images)
