"""The family of functions `PluginName`.

Shapes: n examples, D inputs, N outputs.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from hidra_cli.api import FunctionFamily

Float32 = np.ndarray[Any, np.dtype[np.float32]]


class PluginClass(FunctionFamily):
    """y_k(x) = a_k x + b_k: lines, each output k with a slope and an offset of its own."""

    api_version = 1
    title = "The family of functions PluginName"
    licence = "none needed: drawn as needed"
    inputs = 1  # D

    def __init__(self, *, reach: Annotated[float, "x is uniform in ±reach"] = 5.0) -> None:
        if not reach > 0:
            raise ValueError(f"reach={reach} is not positive")
        self.reach = reach

    def draw(
        self, generator: np.random.Generator, outputs: int, examples: int
    ) -> tuple[Float32, Float32]:
        """One task: x (n, D) and y (n, N). Its first outputs and examples stay when it grows."""
        of_x, *of_outputs = generator.spawn(1 + outputs)
        x = of_x.uniform(-self.reach, self.reach, (examples, 1))
        slopes, offsets = np.array([each.uniform(-1, 1, 2) for each in of_outputs]).T
        return x.astype(np.float32), (x * slopes + offsets).astype(np.float32)
