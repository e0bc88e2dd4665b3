"""A pre-trained network that is never trained. Only the head learns tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from hidra_cli.api import Backbone


class FrozenNetwork(Backbone):
    """A backbone with the weights and statistics of its publication.

    The network is not a submodule. So it has no meta-parameters, and its weights are neither in a
    checkpoint nor in a copy for a thread or a worker process.

    Args:
        network: the network with its weights, on the CPU.

    Attributes:
        label: the name of the network.
    """

    api_version = 1
    _place: Tensor

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        network.requires_grad_(False).eval()
        # Convolutions are faster with this layout; the values stay the same.
        network.to(memory_format=torch.channels_last)
        self.features = network.features
        self.label = str(getattr(network, "name", type(network).__name__))
        self._hidden: tuple[Backbone, ...] = (network,)
        self.register_buffer("_place", torch.empty(0), persistent=False)  # its device and dtype

    @property
    def network(self) -> Backbone:
        return self._hidden[0]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) → features (n, F). Features pass through unchanged."""
        if images.dim() == 2:
            return images
        features: Tensor = self.network(images)
        return features

    @property
    def device(self) -> torch.device:
        return self._place.device

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all its tensors: names, types, sizes and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters()) | dict(self.network.named_buffers())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moving the backbone to a device moves the network."""
        for network in self._hidden:
            network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies share the network, because nothing changes it."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes get features, and need no network."""
        return self.__dict__ | {"_hidden": ()}
