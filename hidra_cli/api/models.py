"""The backbone and head contracts.

Shapes: n images, C channels, H × W pixels, F features, N ways.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

FastWeights = dict[str, Tensor]


def one_hot(labels: Tensor, ways: int) -> Tensor:
    """Labels (n,) in 0..N−1 → (n, N) bool: `F.one_hot` without reading a value from the device.

    So a head that uses it can be traced on any device (`--strategy captured`).
    """
    return labels[:, None] == torch.arange(ways, device=labels.device)


class NormFactory(Protocol):
    """Makes the normalization layers a run asks for."""

    def __call__(self, channels: int, *, pool: int = 1, relu: bool = False) -> nn.Module:
        """A layer (n, channels, H, W) → (n, channels, H // pool, W // pool).

        Args:
            channels: of the activation.
            pool: after normalizing, take the largest of pool × pool pixels (`nn.MaxPool2d(pool)`).
            relu: then apply a ReLU. The three as one layer take a fraction of the time on a CPU.
        """


class Backbone(nn.Module, ABC):
    """Hidden layers: images (n, C, H, W) → features (n, F).

    Built as `Backbone(image_shape, norm, **options)`. `norm(channels)` makes the normalization
    layer the run asks for (a setting of the run, not of the backbone): use it in place of
    `nn.BatchNorm2d`, and `norm(channels, pool=2, relu=True)` where max pooling and a ReLU follow.
    The engine calls the module functionally, with other weights than its own
    (`torch.func.functional_call`), so `forward` must not change any parameter or buffer.
    Raise `ValueError` for a bad option value or an image too small.

    Attributes:
        api_version: the `API_VERSION` the plugin was written for.
        features: F, set by `__init__`.
        vectors: whether inputs may be D numbers of any size, as (n, 1, 1, D), and no images.
        freezable: whether it can be built with `norm` None, as a network with the layers and the
            statistics that it was published with (`--normalization frozen`). `load_pretrained` is
            then called on every new model, because no checkpoint holds its weights.
    """

    api_version: ClassVar[int]
    vectors: ClassVar[bool] = False
    freezable: ClassVar[bool] = False
    features: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W), float in [0, 1], → features (n, F)."""

    def load_pretrained(self) -> None:
        """Read weights from files or downloads, where there are such.

        Called once on a new model, never on one that gets its weights from a checkpoint: a
        checkpoint must do without those files, unless the network is frozen. Raise `ValueError`
        for a bad option value, `DataError` for a file that is missing or damaged.
        """


class Head(nn.Module, ABC):
    """An output layer: how its weights start in a new task, and how they give logits.

    Built as `Head(features, max_ways, **options)`: F and the largest number of ways among the
    training tasks. Its parameters are meta-parameters: the outer loop trains them. The weights
    that adapt within one task are what `initialize` returns. Written for one task; the engine
    runs it over many.

    Attributes, of the class or set by `__init__`:
        api_version: the `API_VERSION` the plugin was written for.
        any_ways: one meta-trained head serves any number of ways; else only `max_ways`.
        needs_support: `initialize` reads the support features.
        identical_neurons: every task starts from N identical output neurons: one function of a
            neuron and z gives every logit. Under softmax the first inner step then has no gradient
            for the backbone.
        common_parameters: names of parameters that move all logits alike, by the same amount.
            Under softmax their meta-gradient is exactly zero, and the outer loop leaves them alone.
    """

    api_version: ClassVar[int]
    any_ways: ClassVar[bool] = True
    needs_support: ClassVar[bool] = False
    identical_neurons: ClassVar[bool] = False
    common_parameters: tuple[str, ...] = ()

    def __init__(self, features: int, max_ways: int) -> None:
        super().__init__()
        self.features = features
        self.max_ways = max_ways

    @abstractmethod
    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        """One task's starting weights, differentiable in the meta-parameters.

        Args:
            ways: N.
            support_features: (n, F), given only where `needs_support` is True.
            support_labels: (n,), integers in 0..N−1; of functions, values (n, N).
            generator: on the CPU, keyed by the episode; the only allowed source of randomness.

        Returns:
            Named tensors, on the head's device, that the inner loop adapts.
        """

    @abstractmethod
    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        """Features (n, F) → logits (n, N)."""

    def before_outer_step(self, ways: int) -> None:
        """Called once per outer step before the tasks, with the ways of the meta-batch."""

    def after_outer_step(self, ways: int) -> None:
        """Called once per outer step after the optimizer, with the ways of the meta-batch."""
