"""Sinusoids: the regression tasks of MAML, with any number of outputs.

Shapes: n examples, N outputs.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np

from hidra_cli.api import FunctionFamily

Float32 = np.ndarray[Any, np.dtype[np.float32]]


class Sinusoids(FunctionFamily):
    """y_k(x) = A_k sin(x + φ_k), with another amplitude and phase for each output k.

    Finn et al. 2017, section 5.1, where N = 1: x uniform in ±5, A in 0.1 to 5, φ in 0 to π.
    """

    api_version = 1
    title = "Sinusoids of random amplitude and phase, drawn as needed"
    licence = "none needed: drawn by hidra"
    citation = "Finn, Abbeel and Levine 2017, arXiv 1703.03400, section 5.1"
    inputs = 1

    def __init__(
        self,
        *,
        amplitude: Annotated[float, "the largest amplitude; the least is 0.1"] = 5.0,
        reach: Annotated[float, "x is uniform in ±reach"] = 5.0,
    ) -> None:
        if amplitude < 0.1:
            raise ValueError(f"amplitude={amplitude} is less than the least, 0.1")
        if not reach > 0:
            raise ValueError(f"reach={reach} is not positive")
        self.amplitude = amplitude
        self.reach = reach

    def draw(
        self, generator: np.random.Generator, outputs: int, examples: int
    ) -> tuple[Float32, Float32]:
        of_x, *of_outputs = generator.spawn(1 + outputs)
        x = self.reach * (2 * _uniform(of_x, examples) - 1)
        shares = np.stack([_uniform(each, 2) for each in of_outputs])
        amplitudes = 0.1 + (self.amplitude - 0.1) * shares[:, 0]
        y = amplitudes * np.sin(x[:, None] + math.pi * shares[:, 1])
        return x[:, None].astype(np.float32), y.astype(np.float32)


def _uniform(generator: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers in 0..1 from raw bits. numpy promises the same bits in all versions."""
    bits = np.asarray(generator.bit_generator.random_raw(count), np.uint64) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
