"""Moments and 2×2 pooling of a large activation in one pass, where this machine has them compiled.

    mean = E[x],  variance = E[(x − mean)²],  pooled = max of x over 2×2, or min where gain < 0

Normalization commutes with pooling, so all that follows works on the pooled quarter. The gradient
and its gradient are passes over x of the same kind (`pooled_moments.cpp`):

    dx = g_mean / P + 2 g_variance (x − mean) / P + g_pooled where it was chosen

for P pixels. One thread each: tasks, not pixels, are spread over the cores.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled functions; None where the package was installed without a C++ compiler."""
    spec = importlib.util.find_spec("hidra_cli.engine.kernels._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        return ctypes.CDLL(spec.origin)
    except OSError:  # of another machine or compiler
        return None


def compiled() -> bool:
    """Whether there are compiled kernels here."""
    return _library() is not None


def can_pool(x: Tensor, pool: int) -> bool:
    """Whether `pooled_moments` can be had of an activation (n, c, h, w)."""
    if pool != 2 or x.device.type != "cpu" or x.dtype not in _DTYPES or not x.numel():
        return False
    if type(x) is not Tensor:  # of torch.export: it has no memory
        return False
    return min(x.shape[2:]) >= pool and compiled()


def pooled_moments(x: Tensor, gain: Tensor, rows: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (biased) and pooled values of an activation (n, c, h, w).

    Twice differentiable in x.

    Args:
        x: held channels-last, or it is copied so.
        gain: (c,), by whose sign the largest or the smallest of a window is taken.
        rows: moments (c,) of this many leading images together; None for those of each, (n, c).

    Returns:
        Mean and variance in float32 at least; pooled (n, c, h // 2, w // 2), in x's dtype.
    """
    results = _PooledMoments.apply(_channels_last(x), gain.detach() < 0, rows or 0)
    mean, variance, pooled, _ = results
    return (mean, variance, pooled) if rows is None else (mean[0], variance[0], pooled)


class _PooledMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, negative: Tensor, rows: int) -> tuple[Tensor, ...]:
        n, c, h, w = x.shape
        moments = x.new_empty(2, 1 if rows else n, c, dtype=_wide(x))
        pooled = _like(x, (n, c, h // 2, w // 2))
        choice = _like(pooled, pooled.shape, torch.uint8)
        _call("forward", x, [x, negative], rows, [*moments, pooled, choice])
        mean, variance = moments
        ctx.rows = rows
        ctx.save_for_backward(x, mean, choice)
        ctx.mark_non_differentiable(choice)
        ctx.set_materialize_grads(False)
        return mean, variance, pooled, choice

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        x, mean, choice = ctx.saved_tensors
        to_mean, to_variance, to_pooled, _ = gradients
        if to_pooled is None:
            to_pooled = _like(x, choice.shape).zero_()
        to_mean = torch.zeros_like(mean) if to_mean is None else to_mean
        to_variance = torch.zeros_like(mean) if to_variance is None else to_variance
        dx: Tensor = _Backward.apply(x, mean, choice, to_mean, to_variance, to_pooled, ctx.rows)
        return dx, None, None


class _Backward(torch.autograd.Function):
    """Differentiable in turn: the mean is an output of the forward pass, with its own history."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        choice: Tensor,
        to_mean: Tensor,
        to_variance: Tensor,
        to_pooled: Tensor,
        rows: int,
    ) -> Tensor:
        to_mean, to_variance = to_mean.contiguous(), to_variance.contiguous()
        dx = torch.empty_like(x)
        inputs = [x, mean, choice]
        _call("backward", x, inputs, rows, [to_mean, to_variance, _channels_last(to_pooled), dx])
        ctx.rows = rows
        ctx.save_for_backward(x, mean, choice, to_variance)
        return dx

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, choice, to_variance = ctx.saved_tensors
        by_x = torch.empty_like(x)
        by_mean, by_to_mean, by_to_variance = (torch.empty_like(mean) for _ in range(3))
        by_to_pooled = _like(x, choice.shape)
        results = [by_x, by_mean, by_to_mean, by_to_variance, by_to_pooled]
        inputs = [x, mean, choice]
        _call("twice", x, inputs, ctx.rows, [to_variance, _channels_last(v), *results])
        return by_x, by_mean, None, by_to_mean, by_to_variance, by_to_pooled, None


def _call(what: str, x: Tensor, inputs: list[Tensor], rows: int, more: list[Tensor]) -> None:
    library = _library()
    assert library is not None  # can_pool
    n, c, h, w = x.shape
    sizes = [ctypes.c_int64(size) for size in (n, h, w, c, rows)]
    places = [[ctypes.c_void_p(t.data_ptr()) for t in tensors] for tensors in (inputs, more)]
    library[f"hidra_{what}_{_DTYPES[x.dtype]}"](*places[0], *sizes, *places[1])


def _channels_last(x: Tensor) -> Tensor:
    """Memory as (n, h, w, c), whatever the strides of sides of length one say."""
    last = x.permute(0, 2, 3, 1)
    return x if last.is_contiguous() else last.contiguous().permute(0, 3, 1, 2)


def _like(x: Tensor, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
    """New memory for (n, c, h, w), channels last."""
    n, c, h, w = shape
    return x.new_empty((n, h, w, c), dtype=dtype or x.dtype).permute(0, 3, 1, 2)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
