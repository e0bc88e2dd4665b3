"""The backbone `PluginName`.

Shapes: n images, C channels, H × W pixels, F features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from hidra_cli.api import Backbone, NormFactory
from torch import Tensor, nn


class PluginClass(Backbone):
    """Three blocks of 3×3 convolution with stride 2, then the mean over all pixels."""

    api_version = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory,
        *,
        filters: Annotated[int, "channels of every block"] = 32,
    ) -> None:
        super().__init__()
        if filters < 1:
            raise ValueError(f"filters={filters} is not positive")
        channels = [image_shape[0], filters, filters, filters]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                    norm(outputs),  # the run's normalization, in place of nn.BatchNorm2d
                    nn.ReLU(),
                )
                for inputs, outputs in pairwise(channels)
            )
        )
        self.features = filters

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1] → features (n, F)."""
        found: Tensor = self.blocks(images)
        return found.mean(dim=(2, 3))
