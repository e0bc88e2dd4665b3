"""People's own pictures, read the way a model's images were prepared, and what to say of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hidra_cli.api.data import Fit
from hidra_cli.api.decoding import MOST_PIXELS, TOO_LARGE, Picture, read_picture
from hidra_cli.api.folders import shown
from hidra_cli.api.preprocessing import (
    Preprocessing,
    ValueKind,
    ValueRanges,
    fixed_ranges,
    usual_range,
)
from hidra_cli.errors import DataError

_AHEAD = 128  # pictures that are decoded while those before them are used
# A picture whose values of 0..255 differ by less is of almost one grey.
FEWEST_GREYS = 8
# Of a picture that is cut to the shape of the model's images, the share that matters.
_CUT_SHARE = 0.05
_NAMED = 5  # of several pictures, so many are named in a line
VALUES_OF: dict[ValueKind, str] = {
    "byte": "values of 8 bits", "integer": "integers", "floating": "floating-point numbers",
}  # fmt: skip


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are read, where that is not as the model's images were.

    Attributes:
        fit, background: as in `Preprocessing`; None for the model's.
        value_range: the stored values that mean black and white; None to look at the pictures.
        max_pixels: a larger picture is refused.
        skip_broken: leave out what cannot be read.
    """

    fit: Fit | None = None
    background: str | None = None
    value_range: tuple[float, float] | None = None
    max_pixels: int = MOST_PIXELS
    skip_broken: bool = False

    def applied_to(self, preprocessing: Preprocessing) -> Preprocessing:
        """Raise ValueError for a background that is no colour, or an empty range."""
        changed = replace(
            preprocessing,
            fit=self.fit or preprocessing.fit,
            background=self.background or preprocessing.background,
        )
        if self.value_range is not None:
            changed = replace(changed, ranges=fixed_ranges(*self.value_range))
        return changed


@dataclass(frozen=True)
class ReadPictures:
    """Pictures that were read.

    Attributes:
        paths, pictures: n of them, in order.
        damaged: why the others could not be read.
        preprocessing: how they were read.
    """

    paths: tuple[Path, ...]
    pictures: tuple[Picture, ...]
    damaged: dict[Path, DataError]
    preprocessing: Preprocessing

    @property
    def remarks(self) -> list[str]:
        return remarks(list(zip(self.paths, self.pictures, strict=True)), self.preprocessing)

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) in [0, 1]."""
        shape = self.preprocessing.image_shape
        images = [as_image(picture) for picture in self.pictures]
        return torch.stack(images) if images else torch.empty(0, *shape)


def read_pictures(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    max_pixels: int = MOST_PIXELS,
    skip_broken: bool = False,
) -> ReadPictures:
    """Decode pictures as a model's images were prepared.

    Raises:
        DataError: pictures cannot be read; names them all.
    """
    read: list[tuple[Path, Picture]] = []
    damaged: dict[Path, DataError] = {}
    for path, picture in zip(paths, decoded(paths, preprocessing, max_pixels), strict=True):
        if isinstance(picture, DataError):
            damaged[path] = picture
        else:
            read.append((path, picture))
    if damaged and not skip_broken:
        raise _unreadable(damaged, len(paths))
    names, pictures = tuple(path for path, _ in read), tuple(picture for _, picture in read)
    return ReadPictures(names, pictures, damaged, preprocessing)


def _unreadable(damaged: Mapping[Path, DataError], count: int) -> DataError:
    """One error that names all pictures that cannot be read."""
    fix = "repair, replace or remove them, or leave them out: --skip-broken"
    if any(error.fix == TOO_LARGE for error in damaged.values()):
        fix += "; --max-pixels N allows larger ones"
    if len(damaged) == 1:
        (error,) = damaged.values()
        return DataError(error.what, why=error.why, fix=fix.replace("them", "it"))
    return DataError(
        f"{len(damaged)} of {count} pictures cannot be read",
        why="\n".join(f"{shown(str(path))}: {error.why}" for path, error in damaged.items()),
        fix=fix,
    )


def as_image(picture: Picture) -> Tensor:
    """What a model sees of a picture: (C, H, W) in [0, 1]."""
    return torch.from_numpy(picture.pixels.copy()).float().div_(255)


def decoded(
    paths: Sequence[Path], preprocessing: Preprocessing, max_pixels: int = MOST_PIXELS
) -> Iterator[Picture | DataError]:
    """Decode pictures on all cores, in order; one that is damaged comes as its error."""

    def decode(path: Path) -> Picture | DataError:
        try:
            return read_picture(path, preprocessing, max_pixels=max_pixels)
        except DataError as error:
            return error

    ahead: deque[Future[Picture | DataError]] = deque()
    # Threads: Pillow decodes without holding Python's lock.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for path in paths:
            ahead.append(pool.submit(decode, path))
            if len(ahead) == _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def ranges_of(pictures: Sequence[Picture], usual: ValueRanges) -> ValueRanges:
    """The values that mean black and white in all pictures of a task.

    For each way of storing values, the smallest range in use that holds those of all pictures.
    Files that declare a range of their own have that one.
    """
    if usual.fixed:
        return usual
    ranges: dict[str, Any] = {}
    for kind in VALUES_OF:
        values = [p.values for p in pictures if p.values.kind == kind and p.values.declared is None]
        if values:
            lowest, highest = min(v.lowest for v in values), max(v.highest for v in values)
            ranges[kind] = usual_range(kind, lowest, highest)
    return replace(usual, **ranges)


def remarks(pairs: Sequence[tuple[Path, Picture]], preprocessing: Preprocessing) -> list[str]:
    """What people should know of how their pictures were read, a line for each kind."""
    _, height, width = preprocessing.image_shape
    lines = []
    if blank := [(path, picture) for path, picture in pairs if is_blank(picture)]:
        hints = []
        if any(picture.transparent for _, picture in blank):
            hints.append("--background black shows white ink on transparency")
        if preprocessing.fit == "crop":
            hints.append("--fit pad keeps what is cut off")
        if any(picture.values.kind != "byte" for _, picture in blank):
            hints.append("--value-range LOW:HIGH says which values are black and white")
        hint = f" ({'; '.join(hints)})" if hints else ""
        lines.append(f"{_pictures(blank)} hold almost one grey{hint}")
    if preprocessing.fit == "crop":
        cut = [(path, _share_cut(picture, height, width)) for path, picture in pairs]
        cut = [(path, share) for path, share in cut if share > _CUT_SHARE]
        if cut:
            most = max(share for _, share in cut)
            lines.append(
                f"the ends of {len(cut)} of {len(pairs)} pictures are cut off, up to "
                f"{100 * most:.0f} % of one: --fit pad keeps them"
            )
    if short := [(path, picture) for path, picture in pairs if picture.missing]:
        most = max(picture.missing for _, picture in short)
        lines.append(
            f"{_pictures(short)} lack the end of their JPEG file, up to {100 * most:.0f} % of the "
            "picture; they are used"
        )
    kinds = {picture.values.kind for _, picture in pairs if picture.values.declared is None}
    for kind in sorted(kinds):
        low, high = preprocessing.ranges.of(kind)
        if (low, high) != ValueRanges().of(kind):
            lines.append(f"{VALUES_OF[kind]}: {low:g} is black and {high:g} is white")
    return lines


def without_pixels(picture: Picture) -> Picture:
    """A picture with the least and the greatest value of each channel alone, for `remarks`."""
    pixels = picture.pixels
    ends = np.stack([pixels.min((1, 2)), pixels.max((1, 2))], 1)
    return replace(picture, pixels=ends[:, None])


def is_blank(picture: Picture) -> bool:
    """Whether a picture is of almost one grey as a model sees it."""
    spread = picture.pixels.max((1, 2)).astype(int) - picture.pixels.min((1, 2))
    return bool((spread < FEWEST_GREYS).all())


def _share_cut(picture: Picture, height: int, width: int) -> float:
    """The share of a picture that filling (height, width) cuts off, however it is turned."""
    long, short = max(picture.size), min(picture.size)
    wanted = max(height, width) / min(height, width)
    return max(0.0, 1 - wanted * short / long)


def _pictures(pairs: Sequence[tuple[Path, object]]) -> str:
    """Some pictures, the first of them by name."""
    names = ", ".join(shown(str(path)) for path, _ in pairs[:_NAMED])
    return f"{len(pairs)} pictures ({names}{', …' if len(pairs) > _NAMED else ''})"
