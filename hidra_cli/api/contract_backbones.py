"""The contract of backbones, checked by building one and calling it.

Shapes: n images, C channels, H × W pixels, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hidra_cli.api.contract import Subject, check_declarations
from hidra_cli.api.contract_tensors import check_result, check_rows, untouched
from hidra_cli.api.models import Backbone

_ARGUMENTS = ("image_shape", "norm")
_IMAGES = 3
_INPUTS = 3  # of a backbone for vectors


def check_backbone_class(
    component: type[Backbone],
    image_shape: tuple[int, int, int],
    options: Mapping[str, Any],
    *,
    pretrained: bool = True,
) -> None:
    """Check a backbone in both types, with normalization layers that see one image alone.

    Args:
        component: the class.
        image_shape: (C, H, W).
        options: as `__init__` takes them.
        pretrained: call `load_pretrained` too.

    Raises:
        ContractError: the first fault.
        ValueError: the class refuses the options or the size of the images.
    """
    subject = Subject(component)
    check_declarations(subject, _ARGUMENTS)
    shapes = [image_shape, (1, 1, _INPUTS)] if component.vectors else [image_shape]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for shape in shapes:
            torch.manual_seed(0)
            built = _built(subject, shape, options)
            if pretrained:
                with subject.calling("load_pretrained", "no arguments", ValueError):
                    built.load_pretrained()
            for dtype in (torch.float32, torch.float64):
                _check_built(subject, copy.deepcopy(built).to(dtype), shape)


def _built(
    subject: Subject, image_shape: tuple[int, int, int], options: Mapping[str, Any]
) -> Backbone:
    made: list[int] = []

    def norm(channels: int, *, pool: int = 1, relu: bool = False) -> nn.Module:
        made.append(channels)
        layer = nn.GroupNorm(1, channels)
        after = [nn.MaxPool2d(pool)] * (pool > 1) + [nn.ReLU()] * relu
        return nn.Sequential(layer, *after) if after else layer  # weights of files have its names

    with subject.calling("__init__", f"images of shape {image_shape}", ValueError):
        built: Backbone = subject.component(image_shape, norm, **options)
    if not made:
        raise subject.fault(
            "__init__",
            "never calls norm(channels): the run's normalization would have no effect",
            "write norm(channels) in place of nn.BatchNorm2d(channels)",
        )
    return built


def check_features(subject: Subject, backbone: Backbone) -> None:
    """Raise `ContractError` where a backbone does not say how many features it gives."""
    features = getattr(backbone, "features", None)
    if not isinstance(features, int) or isinstance(features, bool) or features < 1:
        raise subject.fault(
            "__init__",
            "sets no number of features"
            if features is None
            else f"sets features to {features!r}, not to a whole number",
            "write self.features = F in __init__, as a Python int",
        )


def _check_built(subject: Subject, backbone: Backbone, image_shape: tuple[int, int, int]) -> None:
    check_features(subject, backbone)
    backbone.eval()
    dtype = next((p.dtype for p in backbone.parameters()), torch.get_default_dtype())
    images = torch.rand(_IMAGES, *image_shape, dtype=dtype)
    features = features_of(subject, backbone, images)
    features_of(subject, backbone, torch.rand_like(images))
    if not torch.equal(features_of(subject, backbone, images), features):
        raise subject.fault(
            "forward",
            "is random: the same images give other features",
            "in evaluation draw nothing: nn.Dropout, or F.dropout(x, p, self.training)",
        )
    with torch.no_grad():
        check_rows(subject, "forward", backbone, images, features.detach())
    _check_weights(subject, backbone, images, features)
    backbone.train()
    features_of(subject, backbone, images, may_draw=True)


def features_of(
    subject: Subject, backbone: Backbone, images: Tensor, *, may_draw: bool = False
) -> Tensor:
    """Features of images: of the right shape and type, finite, and with no trace left.

    Raises:
        ContractError: the first fault.
    """
    images = images.clone()
    with untouched(subject, "forward", backbone, {"images": images}, may_draw=may_draw):
        features = backbone(images)
    wanted = (len(images), backbone.features)
    return check_result(subject, "forward", features, wanted, "features (n, F)", images)


def _check_weights(subject: Subject, backbone: Backbone, images: Tensor, features: Tensor) -> None:
    """Every parameter has an effect, which a gradient shows."""
    parameters = dict(backbone.named_parameters())
    moved = {name: value.detach() * 1.5 + 0.1 for name, value in parameters.items()}
    with subject.calling("forward", "other weights than its own"):
        other = torch.func.functional_call(backbone, moved, (images,))
    if not features.requires_grad or torch.equal(other, features):
        raise subject.fault(
            "forward",
            "does not depend on its parameters: nothing of it could adapt",
            "keep layers as attributes of self or in nn.ModuleList, not in a list, and cut no "
            "gradient: no .detach(), numpy or torch.no_grad()",
        )
    for name, value in parameters.items():
        if not value.requires_grad:
            raise subject.fault(
                "__init__",
                f"has the parameter '{name}' without a gradient: it could not adapt",
                f'self.register_buffer("{name}", value) for what does not adapt; '
                "--adapt head leaves the whole backbone as it is",
            )
    gradients = torch.autograd.grad(
        features.square().sum(), list(parameters.values()), allow_unused=True
    )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            raise subject.fault(
                "forward",
                f"does not use the parameter '{name}', or cuts it off: it could not adapt",
                "use it, or leave it out; no .item(), .detach(), .data or numpy on the way",
            )
