"""A short audit of people's own pictures: duplicates, sizes, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hidra_cli.api.decoding import Picture

# Two pictures whose pixels correlate as much, as the model sees them, are near duplicates.
NEAR = 0.99
# Near duplicates are looked for among so many pictures at most: the work grows with the square.
MOST_COMPARED = 3000
_ROWS_AT_ONCE = 512
_SIDE = 32  # pixels of a side on which pictures are compared, about

Part = Literal["support", "query"]


@dataclass(frozen=True)
class AuditedPicture:
    """A picture, its class and the part it is in."""

    path: Path
    label: str
    part: Part
    picture: Picture


@dataclass(frozen=True)
class Duplicate:
    """Two pictures that are the same, or nearly.

    Attributes:
        exact: the same file content, or the same pixels as the model sees them.
    """

    first: AuditedPicture
    second: AuditedPicture
    exact: bool

    @property
    def kind(self) -> str:
        """Where the two are, the most harmful first."""
        if self.first.label != self.second.label:
            return "in two classes"
        if self.first.part != self.second.part:
            return "in support and query"
        return f"within a class of {self.first.part}"

    def to_json(self) -> dict[str, Any]:
        pair = (self.first, self.second)
        return {
            "pictures": [str(one.path) for one in pair],
            "classes": [one.label for one in pair],
            "parts": [one.part for one in pair],
            "exact": self.exact,
        }


@dataclass(frozen=True)
class Audit:
    """What an audit says.

    Attributes:
        duplicates: pairs.
        near_compared: whether near duplicates were looked for.
        sizes: (width, height) of the smallest and of the largest picture, by pixels.
        left_out: how many files of each part were left out, by what they are.
        damaged: the pictures that could not be read and were left out, and why.
        notes: lines that people should read.
    """

    duplicates: tuple[Duplicate, ...]
    near_compared: bool
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    left_out: Mapping[Part, Mapping[str, int]]
    damaged: Mapping[Path, str]
    notes: tuple[str, ...]

    @property
    def learned_queries(self) -> set[Path]:
        """The query pictures that are also learned, exactly or nearly."""
        pairs = [(one.first, one.second) for one in self.duplicates]
        return {
            one.path
            for pair in pairs
            if {pair[0].part, pair[1].part} == {"support", "query"}
            for one in pair
            if one.part == "query"
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "duplicates": [one.to_json() for one in self.duplicates],
            "near_duplicates_looked_for": self.near_compared,
            "smallest": list(self.sizes[0]) if self.sizes else None,
            "largest": list(self.sizes[1]) if self.sizes else None,
            "left_out": {part: dict(counts) for part, counts in self.left_out.items()},
            "damaged": {str(path): why for path, why in self.damaged.items()},
            "notes": list(self.notes),
        }


def audit(
    pictures: Sequence[AuditedPicture],
    left_out: Mapping[Part, Mapping[str, int]],
    damaged: Mapping[Path, str],
    notes: Sequence[str],
) -> Audit:
    """Look at the pictures of a task, as the model sees them."""
    sizes = sorted((one.picture.size for one in pictures), key=lambda size: size[0] * size[1])
    compared = len(pictures) <= MOST_COMPARED
    pairs = _exact(pictures)
    if compared:
        pairs |= {pair: exact for pair, exact in _near(pictures).items() if pair not in pairs}
    duplicates = [Duplicate(pictures[i], pictures[j], exact) for (i, j), exact in pairs.items()]
    duplicates.sort(key=lambda one: (one.kind, not one.exact, one.first.path, one.second.path))
    ends = (sizes[0], sizes[-1]) if sizes else None
    return Audit(tuple(duplicates), compared, ends, left_out, damaged, tuple(notes))


def _exact(pictures: Sequence[AuditedPicture]) -> dict[tuple[int, int], bool]:
    """Pairs of equal file content: each picture with the first that equals it."""
    first: dict[bytes, int] = {}
    pairs = {}
    for index, one in enumerate(pictures):
        other = first.setdefault(one.picture.digest, index)
        if other != index:
            pairs[other, index] = True
    return pairs


def _small(picture: Picture) -> npt.NDArray[np.float32]:
    """The means of blocks of its pixels: (C, about 32, about 32)."""
    channels, height, width = picture.pixels.shape
    block = max(1, min(height, width) // _SIDE)
    rows, columns = height // block, width // block
    cut = picture.pixels[:, : rows * block, : columns * block].astype(np.float32)
    means: npt.NDArray[np.float32] = cut.reshape(channels, rows, block, columns, block).mean((2, 4))
    return means


def _near(pictures: Sequence[AuditedPicture]) -> dict[tuple[int, int], bool]:
    """Pairs whose pixels correlate: each picture with the first like it; whether they are equal."""
    if len(pictures) < 2:
        return {}
    flat = np.stack([_small(one.picture).ravel() for one in pictures])
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(length, 1)  # a picture of one grey is like no other
    pairs = {}
    for start in range(0, len(flat), _ROWS_AT_ONCE):
        rows = flat[start : start + _ROWS_AT_ONCE]
        alike: npt.NDArray[np.bool_] = np.tril(rows @ flat.T >= NEAR, start - 1)
        for row in np.flatnonzero(alike.any(1)):
            first, second = int(alike[row].argmax()), start + int(row)
            equal = np.array_equal(pictures[first].picture.pixels, pictures[second].picture.pixels)
            pairs[first, second] = equal
    return pairs
