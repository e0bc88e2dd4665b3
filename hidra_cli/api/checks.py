"""Contract checks that plugin authors call in their own tests.

    from hidra_cli.api import check_head
    def test_contract():
        check_head(MyHead)

Each raises `AssertionError` with what is wrong, in the words of the contract.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hidra_cli.api.data import SPLITS, Dataset, FunctionFamily

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hidra_cli.api.models import Backbone, Head

_FEATURES, _MAX_WAYS, _SHOTS = 6, 4, 2


def check_head(head: type[Head], **options: Any) -> None:
    """Check a head's shapes, randomness and differentiability at every number of ways it serves."""
    import torch

    _check_version(head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = head(_FEATURES, _MAX_WAYS, **options).double()
        ways_to_try = (2, _MAX_WAYS, _MAX_WAYS + 3) if head.any_ways else (_MAX_WAYS,)
        for ways in ways_to_try:
            _check_task(built, ways)
    for ways in ways_to_try:
        built.before_outer_step(min(ways, _MAX_WAYS))
        built.after_outer_step(min(ways, _MAX_WAYS))


def _check_task(head: Head, ways: int) -> None:
    import torch

    labels = torch.arange(ways).repeat_interleave(_SHOTS)
    # With a history, as the engine's have: weights made from them alone can be differentiated by.
    features = torch.randn(len(labels), _FEATURES, dtype=torch.float64, requires_grad=True)
    given = features if head.needs_support else None

    def start() -> dict[str, torch.Tensor]:
        return head.initialize(ways, given, labels, torch.Generator().manual_seed(7))

    before = torch.random.get_rng_state()
    weights, again = start(), start()
    name = type(head).__name__
    assert torch.equal(before, torch.random.get_rng_state()), (
        f"{name}.initialize draws from torch's global stream; use the generator it is given"
    )
    assert weights, f"{name}.initialize returns no weights: nothing could adapt"
    for key, value in weights.items():
        assert isinstance(value, torch.Tensor), f"fast weight '{key}' of {name} is not a tensor"
        assert value.dtype == torch.float64, f"fast weight '{key}' ignores the module's dtype"
        assert value.requires_grad, f"fast weight '{key}' of {name} cannot be differentiated by"
        assert torch.equal(value, again[key]), f"{name}.initialize differs for one generator state"
    logits = head.logits(weights, features)
    assert logits.shape == (len(labels), ways), (
        f"{name}.logits has shape {tuple(logits.shape)}, not (n, N) = {(len(labels), ways)}"
    )
    loss = torch.nn.functional.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(
        loss, list(weights.values()), create_graph=True, allow_unused=True
    )
    for key, gradient in zip(weights, gradients, strict=True):
        assert gradient is not None, f"fast weight '{key}' of {name} has no effect on its logits"
        assert torch.isfinite(gradient).all(), f"{name} has non-finite gradients"
    parameters = dict(head.named_parameters())
    for key, parameter in parameters.items():
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
        assert gradient is not None, (
            f"the outer loop can never train '{key}' of {name}: its logits are cut off from it"
        )
    if head.identical_neurons:
        row = logits.detach()
        assert torch.allclose(row, row[:, :1].expand_as(row), atol=1e-12), (
            f"{name} declares identical_neurons, but its starting logits differ between classes"
        )


def check_backbone(
    backbone: type[Backbone], image_shape: tuple[int, int, int] = (1, 28, 28), **options: Any
) -> None:
    """Check a backbone's output shape, its use of `norm`, and that calls leave no trace."""
    import torch
    from torch import nn

    _check_version(backbone)
    made: list[int] = []

    def norm(channels: int, *, pool: int = 1, relu: bool = False) -> nn.Module:
        made.append(channels)
        layer = nn.GroupNorm(1, channels)
        after = [nn.MaxPool2d(pool)] * (pool > 1) + [nn.ReLU()] * relu
        return nn.Sequential(layer, *after) if after else layer  # weights of files have its names

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = backbone(image_shape, norm, **options)
        built.load_pretrained()
        images = torch.rand(3, *image_shape)
    name = backbone.__name__
    assert made, f"{name} never calls norm(channels): the run's normalization would have no effect"
    before = {key: value.clone() for key, value in _state(built).items()}
    features = built(images)
    assert features.shape == (3, built.features), (
        f"{name} gives shape {tuple(features.shape)}, not (n, F) = {(3, built.features)}"
    )
    for key, value in _state(built).items():
        assert torch.equal(value, before[key]), f"{name}.forward changes its own '{key}'"
    assert torch.equal(built(images), features), f"{name}.forward is random: runs could not repeat"
    other = {key: value.detach() * 1.5 + 0.1 for key, value in built.named_parameters()}
    moved = torch.func.functional_call(built, other, (images,))
    assert not torch.equal(moved, features), (
        f"{name}.forward does not depend on its parameters: nothing of it could adapt"
    )


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those left out of the state dictionary too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def check_dataset(
    dataset: type[Dataset], source: Path | None, downloads: Path, **options: Any
) -> None:
    """Check a dataset's description, class names, splits and images."""
    from hidra_cli.api.decoding import decode_image

    _check_version(dataset)
    name = dataset.__name__
    assert getattr(dataset, "title", ""), f"{name} has no title"
    built = dataset(source, **options)  # type: ignore[call-arg]
    channels, height, width = built.image_shape
    assert channels in (1, 3), f"{name}: images have 1 or 3 channels, not {channels}"
    assert min(height, width) >= 1, f"{name}: image_shape {built.image_shape} is empty"
    classes = list(built.classes(downloads))
    assert classes, f"{name} yields no class"
    names = [c.name for c in classes]
    assert len(set(names)) == len(names), f"{name} yields a class name twice"
    assert [c.name for c in built.classes(downloads)] == names, f"{name}: the order changes"
    for image_class in classes:
        assert image_class.split in SPLITS, f"{image_class.name}: unknown split"
        assert len(image_class.images) > 0, f"{image_class.name} has no image"
        assert len(list(image_class.images)) == len(image_class.images), (
            f"{image_class.name} gives another number of images than it says"
        )
    pickle.loads(pickle.dumps(classes[0]))
    first = next(iter(classes[0].images))
    assert decode_image(first, built.image_shape).shape == built.image_shape


def check_function_family(family: type[FunctionFamily], **options: Any) -> None:
    """Check a family's shapes and values, and that a task keeps what it has when it grows."""
    import numpy as np

    _check_version(family)
    name = family.__name__
    assert getattr(family, "title", ""), f"{name} has no title"
    built = family(**options)
    assert isinstance(built.inputs, int), f"{name} sets no number of inputs"
    assert built.inputs >= 1, f"{name}: inputs is {built.inputs}, not 1 or more"

    def draw(outputs: int, examples: int, key: int = 7) -> list[Any]:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        return list(built.draw(generator, outputs, examples))

    x, y = draw(3, 6)
    for what, found, columns in (("x", x, built.inputs), ("y", y, 3)):
        assert found.shape == (6, columns), f"{name}.draw: {what} has shape {found.shape}"
        assert found.dtype == np.float32, f"{name}.draw: {what} is {found.dtype}, not float32"
        assert np.isfinite(found).all(), f"{name}.draw: {what} is not finite"
    for outputs, examples in ((3, 6), (5, 6), (3, 9), (8, 20)):
        more_x, more_y = draw(outputs, examples)
        assert np.array_equal(more_x[:6], x), f"{name}.draw: more of a task has other inputs"
        assert np.array_equal(more_y[:6, :3], y), f"{name}.draw: more of a task is another function"
    assert not np.array_equal(draw(3, 6, key=8)[1], y), f"{name}.draw ignores the generator"


def _check_version(component: type[Any]) -> None:
    from hidra_cli.api import API_VERSION

    assert getattr(component, "api_version", None) == API_VERSION, (
        f"{component.__name__} must declare api_version = {API_VERSION}"
    )
