"""Random numbers, each a function of its key."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def stream(*key: int) -> np.random.Generator:
    """The generator of a key, independent of those of all other keys."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def bell(uniform: Floats) -> Floats:
    """Noise of mean 0, deviation 1 and no outliers: the sum of three uniforms (..., 3)."""
    return 2 * (uniform[..., 0] + uniform[..., 1] + uniform[..., 2] - 1.5)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number drawn evenly from a range."""
    return low + (high - low) * rng.random()


def pick(rng: np.random.Generator, weights: Iterable[float]) -> int:
    """An index drawn with the given weights."""
    total = np.cumsum(list(weights))
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
