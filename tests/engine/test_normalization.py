"""Normalization layers against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hidra_cli.engine.normalization import Episode, EpisodeNorm, Mode, TaskNorm, norm_factory


def test_without_a_reference_it_is_batch_normalization() -> None:
    factory, _ = norm_factory("transductive")
    ours, theirs = factory(5).double(), nn.BatchNorm2d(5).double().train()
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)


def test_with_all_rows_as_reference_it_is_the_same() -> None:
    factory, episode = norm_factory("support")
    layer, x = factory(5).double(), torch.randn(4, 5, 6, 6, dtype=torch.float64)
    whole = layer(x)
    with episode.reference(4):
        assert torch.allclose(layer(x), whole, atol=1e-12)


def test_the_reference_rows_alone_decide_the_statistics() -> None:
    factory, episode = norm_factory("support")
    layer, x = factory(2).double(), torch.randn(6, 2, 3, 3, dtype=torch.float64)
    changed = x.clone()
    changed[4:] += 10
    with episode.reference(4):
        assert torch.equal(layer(x)[:4], layer(changed)[:4])
        assert torch.allclose(layer(x)[:4].mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64))


def test_the_reference_is_forgotten_after_an_error() -> None:
    _, episode = norm_factory("support")
    with pytest.raises(ZeroDivisionError), episode.reference(3):
        raise ZeroDivisionError
    assert episode.reference_rows is None


def test_none_is_a_learned_affine_without_statistics() -> None:
    factory, _ = norm_factory("none")
    layer, x = factory(3), torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), x)
    assert not torch.equal(layer(x + 5), layer(x))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("mode", ["support", "tasknorm"])
def test_recorded_statistics_are_used_from_then_on(mode: Mode) -> None:
    factory, episode = norm_factory(mode)
    layer = factory(3).double()
    assert isinstance(layer, EpisodeNorm)
    support = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    query = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with episode.reference(5):
        expected = layer(torch.cat([support, query]))[5:]
    with episode.record():
        layer(support)
    assert torch.allclose(layer(query), expected, atol=1e-12)


def tasknorm(channels: int, scale: float, offset: float) -> tuple[TaskNorm, Episode]:
    factory, episode = norm_factory("tasknorm")
    layer = factory(channels).double()
    assert isinstance(layer, TaskNorm)
    layer.scale.data.fill_(scale)
    layer.offset.data.fill_(offset)
    return layer, episode


@pytest.mark.parametrize(("scale", "offset"), [(0.0, 0.0), (0.3, -2.0)])
@pytest.mark.parametrize("rows", [1, 4])
def test_tasknorm_blends_the_moments_of_the_support_and_of_the_image(
    scale: float, offset: float, rows: int
) -> None:
    layer, episode = tasknorm(2, scale, offset)
    x = torch.randn(6, 2, 5, 3, dtype=torch.float64) * 3 + 2
    with episode.reference(rows):
        found = layer(x)
    alpha = 1 / (1 + math.exp(-(scale * rows + offset)))
    for image in range(6):
        for channel in range(2):
            support, own = x[:rows, channel], x[image, channel]
            mean = alpha * support.mean() + (1 - alpha) * own.mean()
            second = alpha * support.square().mean() + (1 - alpha) * own.square().mean()
            expected = (own - mean) / (second - mean.square() + 1e-5).sqrt()
            assert torch.allclose(found[image, channel], expected, atol=1e-10)


@pytest.mark.parametrize("offset", [50.0, -50.0])
def test_tasknorm_lies_between_batch_and_instance_normalization(offset: float) -> None:
    layer, episode = tasknorm(3, 0.0, offset)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    ends = nn.BatchNorm2d(3).double() if offset > 0 else nn.InstanceNorm2d(3).double()
    with episode.reference(5):
        assert torch.allclose(layer(x), ends(x), atol=1e-10)


def test_tasknorm_keeps_a_query_from_the_others() -> None:
    layer, episode = tasknorm(2, 0.1, 0.2)
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    changed = x.clone()
    changed[5] += 10
    with episode.reference(4):
        assert torch.equal(layer(x)[:5], layer(changed)[:5])
        assert torch.equal(layer(x[[0, 1, 2, 3, 5]])[4], layer(x)[5])


def test_tasknorm_has_statistics_of_full_precision_for_bfloat16() -> None:
    layer, episode = tasknorm(2, 0.1, 0.2)
    layer.float()
    x = (torch.randn(6, 2, 8, 8) + 30).bfloat16()  # the mean is far larger than the deviation
    with episode.reference(4):
        found, expected = layer(x), layer(x.float())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, rtol=1e-2)


def test_tasknorms_gradient_and_its_gradient_are_exact() -> None:
    layer, episode = tasknorm(2, 0.3, -1.0)
    names = [name for name, _ in layer.named_parameters()]

    def normalized(x: Tensor, *parameters: Tensor) -> Tensor:
        weights = dict(zip(names, parameters, strict=True))
        with episode.reference(3):
            found: Tensor = functional_call(layer, weights, (x,))
        return found

    x = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalized, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(normalized, (x, *layer.parameters()))
