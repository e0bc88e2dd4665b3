"""The head `PluginName`.

Shapes: n examples, F features, N ways.
"""

from __future__ import annotations

from typing import Annotated

import torch
from hidra_cli.api import FastWeights, Head
from torch import Tensor, nn


class PluginClass(Head):
    """Neurons drawn for every task around one that all tasks share."""

    api_version = 1
    any_ways = True
    # It moves all logits alike, which softmax cancels: the outer loop leaves it as it is.
    common_parameters = ("mean",)

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        spread: Annotated[float, "standard deviation of a task's neurons"] = 0.01,
    ) -> None:
        super().__init__(features, max_ways)
        if not spread >= 0:
            raise ValueError(f"spread={spread} is negative")
        self.spread = spread
        self.mean = nn.Parameter(torch.zeros(features))  # parameters are meta-parameters

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        """The weights that adapt within one task: weight (N, F)."""
        noise = torch.randn(ways, self.features, generator=generator).to(self.mean)
        return {"weight": self.mean + self.spread * noise}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        """Features (n, F) → logits (n, N)."""
        return features @ fast_weights["weight"].T
