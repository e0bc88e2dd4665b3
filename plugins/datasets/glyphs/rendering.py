"""Strokes to grey pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .randomness import Floats
from .strokes import Points


def _coverage(distance: NDArray[np.float32], radius: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey of a pixel whose centre is this far from the middle of a line, in pixels.

    The line's cross-section seen through a tent of half width 1, as bilinear reduction does.
    """

    def below(x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = np.clip(x, -1, 1)
        return 0.5 + x - 0.5 * x * np.abs(x)

    return below(distance + radius) - below(distance - radius)


def render(strokes: list[Points], radius: Floats, size: int) -> NDArray[np.float32]:
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
