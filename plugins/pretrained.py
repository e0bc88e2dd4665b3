"""Shared by the networks of libraries: reading weights safely, and the run's normalization."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from hidra_cli.api import Backbone, DataError, NormFactory

STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"  # of batch normalization; nothing is computed from it
Colour = tuple[float, float, float]


class PublishedNetwork(Backbone):
    """A classification network of a library without its last layer.

    Images of one channel are repeated to three. Dropout and stochastic depth are off. Batch
    normalization becomes what the run's `--normalization` says: of pre-trained weights the scale
    and shift are kept, the running statistics are left out.

    Args:
        image_shape: (C, H, W).
        norm: of the run; None, of a frozen network, keeps its own layers and statistics.
        model: the network without its last layer, with random weights.
        name: of the network.
        weights: what the user gave; "none" keeps the random weights.
        mean, deviation: of the colours of images in 0..1, which pre-trained weights expect to be
            normalized by them.
    """

    api_version = 1
    freezable = True
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory | None,
        model: nn.Module,
        *,
        name: str,
        weights: str,
        mean: Colour,
        deviation: Colour,
    ) -> None:
        super().__init__()
        if image_shape[0] not in (1, 3):
            raise ValueError(f"{name} needs images of 1 or 3 channels, not {image_shape[0]}")
        self.name, self.weights, self.model = name, weights, model
        self._replaced = {} if norm is None else replace_norms(model, norm)
        if norm is None and not self.pretrained:
            raise ValueError(f"weights=none: a frozen {name} with random weights knows nothing")
        if norm is not None and not self._replaced:
            raise ValueError(
                f"{name} has no batch normalization, which --normalization could replace: "
                "take it as it is with --normalization frozen --adapt head"
            )
        self.model.eval()
        for buffer, value in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(buffer, torch.tensor(value)[:, None, None], persistent=False)
        self.features = self._count_features(image_shape)

    @property
    def pretrained(self) -> bool:
        return self.weights != "none"

    def train(self, mode: bool = True) -> Self:
        """Keep the network in evaluation mode, so that nothing in it is random."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1)
        if self.pretrained:
            images = (images - self.mean) / self.deviation
        features: Tensor = self.model(images)
        return features

    def load_pretrained(self) -> None:
        """Take over the weights that the user named.

        Raises:
            ValueError: `weights` is neither a name nor a file.
            DataError: they cannot be downloaded or read, or are of another network.
        """
        if not self.pretrained:
            return
        weights = dict(self._for_model(self.published()))
        own = {k: v for k, v in self.model.state_dict().items() if not k.endswith(COUNTER)}
        for key in sorted(own.keys() | weights.keys()):
            if _size(own.get(key)) != _size(weights.get(key)):
                raise DataError(
                    f"{self.weights} holds no weights of {self.name}",
                    why=f"{key} should be {_size(own.get(key))}, but is {_size(weights.get(key))}",
                    fix="give weights of that network, or the network of the weights: "
                    "--bb-opt name=NAME",
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(weights[key])

    def published(self) -> Mapping[str, Tensor]:
        """The weights that the user named, without the last layer, by the network's own names."""
        raise NotImplementedError

    def _for_model(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """By the names of `model`; without the statistics of replaced normalization layers."""
        renamed = {}
        for key, value in state.items():
            layer, _, name = key.rpartition(".")
            if name == COUNTER or (name in STATISTICS and layer in self._replaced):
                continue
            renamed[f"{self._replaced.get(layer, layer)}.{name}".lstrip(".")] = value
        return renamed

    def _count_features(self, image_shape: tuple[int, int, int]) -> int:
        """Run the network on torch's meta device, which computes shapes only."""
        state = dict(self.named_parameters()) | dict(self.named_buffers())
        shapes = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
        _, height, width = image_shape
        try:
            images = torch.empty(2, *image_shape, device="meta")
            shape = functional_call(self, shapes, (images,)).shape
        except Exception as exc:
            raise ValueError(
                f"{self.name} cannot work on images of {height}×{width} pixels, which are too "
                f"small or of a size it is not made for: {str(exc).splitlines()[0]}"
            ) from exc
        if len(shape) != 2:
            raise ValueError(f"{self.name} cannot be cut: it gives {tuple(shape)} without its end")
        return int(shape[1])


def replace_norms(module: nn.Module, norm: NormFactory, place: str = "") -> dict[str, str]:
    """Replace batch normalization by the run's normalization.

    Returns:
        For each layer that was replaced, its name and the name of the new one.
    """
    replaced = {}
    for name, child in module.named_children():
        path = f"{place}{name}"
        if isinstance(child, nn.BatchNorm2d):
            layer, replaced[path] = norm(child.num_features), path
            activation = getattr(child, "act", None)  # timm's layers have one inside
            if isinstance(activation, nn.Module):
                layer, replaced[path] = nn.Sequential(layer, activation), f"{path}.0"
            setattr(module, name, layer)
        elif isinstance(child, nn.Hardsigmoid):
            setattr(module, name, _Hardsigmoid())
        else:
            replaced |= replace_norms(child, norm, f"{path}.")
    return replaced


class _Hardsigmoid(nn.Module):
    """torch's version has no second derivative, which `--order 2` needs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def nearest_networks(name: str, known: Collection[str], otherwise: str) -> str:
    """A hint for an unknown name."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"such as {otherwise}"


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The state dictionary in a file: safetensors, or a pickle of which tensors alone are loaded.

    Raises:
        DataError: it holds none.
    """
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        for key in ("state_dict", "model"):  # checkpoints hold one beside other things
            content = content[key] if isinstance(content.get(key), dict) else content
        if not all(isinstance(value, Tensor) for value in content.values()):
            raise TypeError("it holds other things than tensors")
    except Exception as exc:  # a damaged or hostile file can raise nearly anything
        raise DataError(
            f"{path} holds no weights that can be loaded",
            why=f"{type(exc).__name__}: {exc}".splitlines()[0],
            fix="give a .safetensors file, or one that torch.save(model.state_dict(), FILE) wrote: "
            "nothing else of a pickle is loaded",
        ) from exc
    return content


def _size(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
