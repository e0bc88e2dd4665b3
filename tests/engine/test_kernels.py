"""The compiled kernels against PyTorch's own operators, in float64, and their derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.engine.inner_loop import InnerLoop, meta_gradient
from hidra_cli.engine.kernels.pooled_moments import compiled, pooled_moments
from hidra_cli.engine.learner import channels_last
from hidra_cli.engine.normalization import Mode
from tests.engine.tools import MODES, flat, make_batch, make_learner

pytestmark = pytest.mark.skipif(not compiled(), reason="installed without a C++ compiler")

SIDES = [(6, 6), (7, 5), (2, 3)]


def activation(h: int, w: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Four images of five channels: vectors of the machine are longer, so that tails are tested."""
    torch.manual_seed(h * w)
    return channels_last(torch.randn(4, 5, h, w, dtype=dtype))


GAIN = torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0])


def by_operators(x: Tensor, rows: int | None) -> tuple[Tensor, Tensor, Tensor]:
    sign = torch.where(GAIN < 0, -1.0, 1.0).to(x)[:, None, None]
    pooled = F.max_pool2d(x * sign, 2) * sign
    if rows is None:
        variance, mean = torch.var_mean(x.flatten(2), 2, correction=0)
    else:
        variance, mean = torch.var_mean(x[:rows], (0, 2, 3), correction=0)
    return mean, variance, pooled


@pytest.mark.parametrize("rows", [None, 1, 3, 4])
@pytest.mark.parametrize(("h", "w"), SIDES)
def test_moments_and_pooling_are_those_of_the_operators(h: int, w: int, rows: int | None) -> None:
    x = activation(h, w)
    for ours, theirs in zip(pooled_moments(x, GAIN, rows), by_operators(x, rows), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize(("h", "w"), SIDES)
def test_the_gradient_and_its_gradient_are_finite_differences(
    h: int, w: int, rows: int | None
) -> None:
    x = activation(h, w).requires_grad_()

    def of(x: Tensor) -> tuple[Tensor, ...]:
        return pooled_moments(x, GAIN, rows)

    assert torch.autograd.gradcheck(of, (x,))
    assert torch.autograd.gradgradcheck(of, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_of_short_numbers_are_of_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = channels_last((torch.randn(3, 40, 28, 28) + 5).to(dtype))
    mean, variance, pooled = pooled_moments(x, torch.ones(40), 3)
    exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact[1], rtol=2e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact[0], rtol=2e-6, atol=0)
    assert torch.equal(pooled, F.max_pool2d(x, 2))


def test_of_equal_pixels_the_first_is_chosen_and_nan_wins_as_in_pytorch() -> None:
    x = channels_last(torch.zeros(1, 1, 2, 4, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(pooled_moments(x, torch.ones(1), 1)[2].sum(), x)
    assert gradient.flatten().tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    with torch.no_grad():
        x[0, 0, 1, 1] = torch.nan
    assert pooled_moments(x, torch.ones(1), 1)[2].isnan().flatten().tolist() == [True, False]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["hidra", "maml", "protomaml"])
def test_the_meta_gradient_is_the_same_without_kernels(head: str, mode: Mode) -> None:
    """With some gains below zero, where the smallest pixel of a window is the largest after it."""
    batch, found = make_batch(), []
    for kernels in (True, False):
        learner = make_learner(head, normalization=mode)
        with torch.no_grad():
            for name, weight in learner.backbone.named_parameters():
                if name.endswith(".1.weight"):
                    weight[::2] *= -1.5
        learner.episode.kernels = kernels
        meta_gradient(learner, batch, InnerLoop(3, 0.2))
        gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
        found.append(flat(gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)
