"""Built-in backbones."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hidra_cli.api import Backbone, NormFactory

_NARROWEST = 1
_WIDEST = 65_536


class Conv4(Backbone):
    """Blocks of 3×3 convolution, normalization, 2×2 max pooling, ReLU.

    The standard network of few-shot learning (Vinyals et al. 2016). Convolutions have no bias,
    because the normalization has one. With strides instead of pooling and a mean over the remaining
    pixels, it is the network of MAML's Omniglot experiments (Finn et al. 2017, section 5.2), with a
    quarter of the work.
    """

    api_version = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory,
        *,
        filters: Annotated[int, "channels of every block"] = 64,
        blocks: Annotated[int, "number of blocks; each halves height and width"] = 4,
        init: Annotated[
            Literal["xavier", "torch"],
            "start of the convolutions: Xavier's range (as in the authors' code), or PyTorch's "
            "smaller one, with which the network learns sooner",
        ] = "xavier",
        downsample: Annotated[
            Literal["pool", "stride"],
            "max pooling, or convolutions of stride 2",
        ] = "pool",
    ) -> None:
        super().__init__()
        _check("filters", filters)
        _check("blocks", blocks)
        channels, height, width = image_shape
        self.strided = downsample == "stride"
        if not self.strided and min(height, width) >> blocks < _NARROWEST:
            raise ValueError(
                f"blocks={blocks} halves a {height}×{width} image to nothing; "
                f"at most {min(height, width).bit_length() - 1} fit"
            )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                _conv(channels if block == 0 else filters, filters, 3, init, 1 + self.strided),
                norm(filters, pool=1 if self.strided else 2, relu=True),
            )
            for block in range(blocks)
        )
        left = 1 if self.strided else (height >> blocks) * (width >> blocks)
        self.features = filters * left

    def forward(self, images: Tensor) -> Tensor:
        for block in self.blocks:
            images = block(images)
        return images.mean((2, 3)) if self.strided else images.flatten(1)


class Mlp(Backbone):
    """Fully connected layers, each followed by normalization and a ReLU.

    For MAML's sinusoids (Finn et al. 2017, section 5.1). MAML's network has no normalization; with
    `--normalization none` this one has a learned affine. `support` takes statistics over the
    support examples. Inputs are D numbers (n, 1, 1, D), or flattened images.
    """

    api_version = 1
    vectors = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory,
        *,
        hidden: Annotated[int, "units of every layer"] = 40,
        layers: Annotated[int, "number of layers"] = 2,
    ) -> None:
        super().__init__()
        _check("hidden", hidden)
        _check("layers", layers)
        sizes = [math.prod(image_shape), *[hidden] * layers]
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.norms = nn.ModuleList(norm(hidden) for _ in range(layers))
        self.features = hidden

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            # A unit is a channel of one pixel.
            x = F.relu(norm(layer(x)[:, :, None, None]).flatten(1))
        return x


class ResNet12(Backbone):
    """Four residual blocks of three 3×3 convolutions, then global average pooling.

    The few-shot ResNet-12 of Oreshkin et al. (2018), in the widths of Lee et al. (2019):
    64, 160, 320 and 640 channels for `width=64`; without DropBlock.
    """

    api_version = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory,
        *,
        width: Annotated[int, "channels of the first block"] = 64,
    ) -> None:
        super().__init__()
        _check("width", width)
        channels, height, width_pixels = image_shape
        if min(height, width_pixels) < 16:
            raise ValueError(
                f"resnet12 needs images of at least 16×16, not {height}×{width_pixels}"
            )
        sizes = [width, width * 5 // 2, width * 5, width * 10]
        inputs = [channels, *sizes[:-1]]
        self.blocks = nn.Sequential(
            *(_ResidualBlock(i, o, norm) for i, o in zip(inputs, sizes, strict=True))
        )
        self.features = sizes[-1]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.blocks(images)
        return features.mean(dim=(2, 3))


class _ResidualBlock(nn.Module):
    """(n, inputs, H, W) → (n, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int, norm: NormFactory) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(inputs, outputs, 3),
            norm(outputs),
            nn.LeakyReLU(0.1),
            _conv(outputs, outputs, 3),
            norm(outputs),
            nn.LeakyReLU(0.1),
            _conv(outputs, outputs, 3),
            norm(outputs),
        )
        self.shortcut = nn.Sequential(_conv(inputs, outputs, 1), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(self.body(x) + self.shortcut(x), 2)
        return F.leaky_relu(pooled, 0.1)


def _conv(
    inputs: int, outputs: int, kernel: int, init: str = "xavier", stride: int = 1
) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    if init == "xavier":
        nn.init.xavier_uniform_(conv.weight)
    return conv


def _check(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} is not positive")
    if value > _WIDEST:
        raise ValueError(f"{name}={value} is more than {_WIDEST}")
