"""The classification networks of torchvision as backbones, pre-trained or not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from hidra_cli.api import Backbone, DataError, NormFactory

# All these networks halve an image five times.
SMALLEST = 32
# Of the images of ImageNet, in 0..1: what pre-trained weights expect to be taken out.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_SECOND_HEADS = ("AuxLogits.", "aux1.", "aux2.")  # of the Inceptions; used for training alone
# As in torchvision: weights of DenseNets are published with names of an early version.
_OLD_NAMES = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d+)\.")


class Torchvision(Backbone):
    """A network of torchvision without its last layer; images of one channel are repeated to three.

    Batch normalization becomes what the run's `--normalization` says: of pre-trained weights the
    scale and shift are kept, ImageNet's running statistics are left out. Dropout and stochastic
    depth are off.
    """

    api_version = 1
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory,
        *,
        name: Annotated[str, "as torchvision.models calls it: resnet50, mobilenet_v3_small, …"] = (
            "resnet18"
        ),
        weights: Annotated[
            str,
            "none, DEFAULT or another name torchvision has for weights (downloaded once), or a "
            "file of them (.safetensors, or .pth with a state dictionary)",
        ] = "none",
    ) -> None:
        super().__init__()
        self.name, self.weights = name, weights
        channels, height, width = image_shape
        if channels not in (1, 3):
            raise ValueError(f"{name} needs images of 1 or 3 channels, not {channels}")
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"{name} needs images of at least {SMALLEST}×{SMALLEST} pixels, not "
                f"{height}×{width}: --data-opt size={SMALLEST}, larger is better"
            )
        self.model = _built(name, pretrained=self.pretrained)
        if not _replace_norms(self.model, norm):
            raise ValueError(
                f"{name} has no batch normalization, so that --normalization could have no effect: "
                "choose one that has, as resnet18, mobilenet_v3_small, densenet121 or vgg11_bn"
            )
        self._last, self.features = _cut(self.model, name)
        self.model.eval()
        for buffer, value in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(buffer, torch.tensor(value)[:, None, None], persistent=False)
        self._check_size(image_shape)

    @property
    def pretrained(self) -> bool:
        return self.weights != "none"

    def train(self, mode: bool = True) -> Self:
        """The network stays in evaluation mode: nothing of it is random."""
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
        """Take over weights of torchvision or of a file.

        Raises:
            ValueError: `weights` is neither a name nor a file.
            DataError: they cannot be downloaded or read, or are of another network.
        """
        if not self.pretrained:
            return
        found = {
            _OLD_NAMES.sub(r"\1\2.", key): value
            for key, value in _read(self.name, self.weights).items()
            if not key.startswith((*_SECOND_HEADS, f"{self._last}."))
            and key.rpartition(".")[2] not in _STATISTICS
        }
        own = self.model.state_dict()
        for key in sorted(own.keys() | found.keys()):
            if _size(own.get(key)) != _size(found.get(key)):
                raise DataError(
                    f"{self.weights} holds no weights of {self.name}",
                    why=f"{key} should be {_size(own.get(key))}, but is {_size(found.get(key))}",
                    fix="give weights of that network, or the network of the weights: "
                    "--bb-opt name=NAME",
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(found[key])

    def _check_size(self, image_shape: tuple[int, int, int]) -> None:
        """Send images through without computing: on torch's meta device there are only shapes."""
        state = dict(self.named_parameters()) | dict(self.named_buffers())
        shapes = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
        _, height, width = image_shape
        try:
            images = torch.empty(2, *image_shape, device="meta")
            found = functional_call(self, shapes, (images,)).shape
        except Exception as exc:
            raise ValueError(
                f"{self.name} cannot work on images of {height}×{width} pixels, which are too "
                f"small or of a size it is not made for: {str(exc).splitlines()[0]}"
            ) from exc
        if found != (2, self.features):
            raise ValueError(f"{self.name} cannot be cut: it gives {tuple(found)} without its end")


def _built(name: str, *, pretrained: bool) -> nn.Module:
    """A network of torchvision with random weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "such as resnet18"
        raise ValueError(f"torchvision has no classification network '{name}': {hint}")
    more: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect values in −1..1, which `transform_input` makes.
        more = {"aux_logits": False, "init_weights": True, "transform_input": pretrained}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **more)
    return model


def _replace_norms(module: nn.Module, norm: NormFactory) -> int:
    """Put the run's normalization in place of batch normalization; how many there were."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, norm(child.num_features))
            count += 1
        elif isinstance(child, nn.Hardsigmoid):
            setattr(module, name, _Hardsigmoid())
        else:
            count += _replace_norms(child, norm)
    return count


class _Hardsigmoid(nn.Module):
    """torch's own has no second derivative, which `--order 2` needs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def _cut(model: nn.Module, name: str) -> tuple[str, int]:
    """Take the last layer away; its name, and how many features it had been given."""
    linear = [(key, layer) for key, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{name} does not end in a linear layer that could be cut off")
    key, last = linear[-1]
    model.set_submodule(key, nn.Identity())
    return key, last.in_features


def _read(name: str, weights: str) -> Mapping[str, Tensor]:
    """The state dictionary that `weights` names."""
    published = torchvision.models.get_model_weights(name)
    if weights in published.__members__:
        return _published(name, published[weights])
    path = Path(weights).expanduser()
    if not path.is_file():
        names = ", ".join(["none", *published.__members__])
        raise ValueError(f"weights={weights} is no file, and none of {names}")
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
            fix="give a .safetensors file, or what torch.save(model.state_dict(), FILE) wrote: "
            "nothing else of a pickle is loaded",
        ) from exc
    return content


def _published(name: str, weights: Any) -> Mapping[str, Tensor]:
    """Weights of torchvision's, from the network or from where torch keeps what it downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        found: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as exc:  # of the network, of the disk, or of a damaged file
        raise DataError(
            f"the weights {weights.name} of {name} could not be "
            + ("read" if path.exists() else "downloaded"),
            why=f"{type(exc).__name__}: {exc}".splitlines()[0],
            fix=f"put {weights.url} at {path}, or name a file of them: --bb-opt weights=FILE",
        ) from exc
    return found


def _size(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
