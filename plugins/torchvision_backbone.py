"""The classification networks of torchvision as backbones, pre-trained or not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
from torch import Tensor, nn

from hidra_cli.api import DataError, NormFactory

from .pretrained import PublishedNetwork, nearest_networks, read_weights

# All these networks halve an image five times.
SMALLEST = 32
# Of the images of ImageNet, in 0..1: what pre-trained weights expect to be taken out.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SECOND_HEADS = ("AuxLogits.", "aux1.", "aux2.")  # of the Inceptions; used for training alone
# As in torchvision: weights of DenseNets are published with names of an early version.
_OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d+)\.")


class Torchvision(PublishedNetwork):
    """A network of torchvision without its last layer; images of one channel are repeated to three.

    Batch normalization becomes what the run's `--normalization` says: of pre-trained weights the
    scale and shift are kept, ImageNet's running statistics are left out. Dropout and stochastic
    depth are off.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory | None,
        *,
        name: Annotated[str, "name in torchvision.models: resnet50, mobilenet_v3_small, …"] = (
            "resnet18"
        ),
        weights: Annotated[
            str,
            "none; DEFAULT or another name of weights in torchvision (downloaded once); or a "
            "file (.safetensors, or .pth with a state dictionary)",
        ] = "none",
    ) -> None:
        _, height, width = image_shape
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"{name} needs images of at least {SMALLEST}×{SMALLEST} pixels, not "
                f"{height}×{width}: --data-opt size={SMALLEST}, larger is better"
            )
        model = _built(name, pretrained=weights != "none")
        last = _cut(model, name)
        super().__init__(
            image_shape, norm, model, name=name, weights=weights, mean=MEAN, deviation=DEVIATION
        )
        self._last = last

    def published(self) -> Mapping[str, Tensor]:
        return {
            _OLD_NAMES.sub(r"\1\2.", key): value
            for key, value in _read(self.name, self.weights).items()
            if not key.startswith((*_SECOND_HEADS, f"{self._last}."))
        }


def _built(name: str, *, pretrained: bool) -> nn.Module:
    """A network of torchvision with random weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest_networks(name, known, "resnet18")
        raise ValueError(f"torchvision has no classification network '{name}': {hint}")
    more: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect values in −1..1, which `transform_input` makes.
        more = {"aux_logits": False, "init_weights": True, "transform_input": pretrained}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **more)
    return model


def _cut(model: nn.Module, name: str) -> str:
    """Remove the last layer, and return its name."""
    linear: list[str] = [k for k, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{name} does not end in a linear layer that could be cut off")
    model.set_submodule(linear[-1], nn.Identity())
    return linear[-1]


def _read(name: str, weights: str) -> Mapping[str, Tensor]:
    """The state dictionary that `weights` names."""
    published = torchvision.models.get_model_weights(name)
    if weights in published.__members__:
        return _published(name, published[weights])
    path = Path(weights).expanduser()
    if not path.is_file():
        names = ", ".join(["none", *published.__members__])
        raise ValueError(f"weights={weights} is no file, and none of {names}")
    return read_weights(path)


def _published(name: str, weights: Any) -> Mapping[str, Tensor]:
    """torchvision's weights, downloaded or from torch's folder of earlier downloads."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as exc:  # of the network, of the disk, or of a damaged file
        raise DataError(
            f"the weights {weights.name} of {name} could not be "
            + ("read" if path.exists() else "downloaded"),
            why=f"{type(exc).__name__}: {exc}".splitlines()[0],
            fix=f"put {weights.url} at {path}, or name a file of them: --bb-opt weights=FILE",
        ) from exc
    return state
