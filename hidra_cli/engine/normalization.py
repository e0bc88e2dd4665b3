"""Normalization as a setting of the run: the source of each layer's statistics.

- `support`: the support images. A query's logits do not depend on the other queries.
- `tasknorm`: the support images and each image itself, in learned shares. A query's logits do not
  depend on the other queries.
- `transductive`: the batch itself, so the queries see each other (as in MAML's published numbers).
- `none`: no statistics, only a learned affine (as in the code of HIDRA's authors).
- `frozen`: the layers of a pre-trained network as they were published; see `frozen.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidra_cli.api import NormFactory
from hidra_cli.engine.kernels.pooled_moments import can_pool, pooled_moments

Mode = Literal["support", "tasknorm", "transductive", "none"]
Normalization = Literal[Mode, "frozen"]
EPSILON = 1e-5


def reads_support(mode: str) -> bool:
    """Whether a query is normalized with statistics of the support images."""
    return mode in ("support", "tasknorm")


class Episode:
    """The state that all normalization layers of one backbone share: which rows are the reference.

    Attributes:
        reference_rows: the statistics come from this many leading images; None means from all.
        sample_weights: the weights of these images in the statistics, with mean 1; None if they
            are equal.
        recording: keep each layer's statistics for later predictions.
        kernels: use compiled kernels, which torch.func and torch.compile cannot trace.
    """

    def __init__(self) -> None:
        self.reference_rows: int | None = None
        self.sample_weights: Tensor | None = None
        self.recording = False
        self.kernels = True

    @contextmanager
    def reference(self, rows: int | None, weights: Tensor | None = None) -> Iterator[None]:
        """Take the statistics from the first `rows` images only, each with its weight."""
        self.reference_rows, self.sample_weights = rows, weights
        try:
            yield
        finally:
            self.reference_rows = self.sample_weights = None

    @contextmanager
    def traceable(self) -> Iterator[None]:
        """Use only PyTorch's own operators, which can be batched and traced."""
        before, self.kernels = self.kernels, False
        try:
            yield
        finally:
            self.kernels = before

    @contextmanager
    def record(self) -> Iterator[None]:
        """Let every layer keep the statistics of the next forward pass."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


class Affine(nn.Module):
    """y = weight · x + bias per channel, then max pooling and a ReLU if requested.

    (n, channels, H, W) → (n, channels, H // pool, W // pool).
    """

    def __init__(self, channels: int, *, pool: int = 1, relu: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.relu = relu
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self._finish(x * self.weight[:, None, None] + self.bias[:, None, None])

    def _finish(self, y: Tensor) -> Tensor:
        # Pooling before the ReLU equals pooling after it, on a quarter of the memory.
        return self._activate(F.max_pool2d(y, self.pool) if self.pool > 1 else y)

    def _activate(self, y: Tensor) -> Tensor:
        return F.relu(y) if self.relu else y


class EpisodeNorm(Affine):
    """Batch normalization (Ioffe & Szegedy 2015) with the statistics of one episode.

    There are no running averages, because statistics of other tasks say nothing about a new one.

    Attributes:
        mean, variance: (channels,), recorded statistics. They are used once they are present.
        statistics: the names of the recorded tensors.
    """

    statistics: ClassVar[tuple[str, ...]] = ("mean", "variance")
    mean: Tensor | None
    variance: Tensor | None

    def __init__(
        self, channels: int, episode: Episode, *, pool: int = 1, relu: bool = False
    ) -> None:
        super().__init__(channels, pool=pool, relu=relu)
        self.episode = episode
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.variance is not None:
            return self._finish(self._normalize(x, self.mean, self.variance))
        if self.episode.sample_weights is not None:
            return self._weighted(x, self.episode.sample_weights)
        rows = self.episode.reference_rows
        if self._has_kernel(x):
            mean, variance, pooled = pooled_moments(x, self.weight, rows or len(x))
            return self._activate(self._normalize(pooled, mean, variance))
        if rows is None and not self.episode.recording:
            y = F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=EPSILON)
            return self._finish(y)
        variance, mean = torch.var_mean(full_precision(x[:rows]), dim=(0, 2, 3), correction=0)
        if self.episode.recording:
            self.mean, self.variance = mean.detach(), variance.detach()
        return self._finish(self._normalize(x, mean, variance))

    def _weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        """Normalize with weighted statistics, from the moments of each image."""
        rows = self.episode.reference_rows
        pooled = None
        if self._has_kernel(x):
            means, variances, pooled = pooled_moments(x, self.weight, None)
        else:
            variances, means = torch.var_mean(full_precision(x[:rows]), dim=(2, 3), correction=0)
        mean, variance = _moments_of_all(means[:rows], variances[:rows], weights)
        if self.episode.recording:
            self.mean, self.variance = mean.detach(), variance.detach()
        if pooled is not None:
            return self._activate(self._normalize(pooled, mean, variance))
        return self._finish(self._normalize(x, mean, variance))

    def _has_kernel(self, x: Tensor) -> bool:
        return self.episode.kernels and not self.episode.recording and can_pool(x, self.pool)

    def _normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(variance + EPSILON)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None].to(x.dtype), x, scale[:, None, None].to(x.dtype))


class TaskNorm(EpisodeNorm):
    """TaskNorm-I: a blend of the moments of the support set D and of each image.

        μ = α μ_D + (1−α) μ_x          α = sigmoid(scale · |D| + offset)
        σ² = α (σ_D² + (μ_D − μ)²) + (1−α) (σ_x² + (μ_x − μ)²)

    Bronskill et al. 2020, "TaskNorm: Rethinking Batch Normalization for Meta-Learning", arXiv
    2003.03284, section 4. Scale and offset, one number each, start at zero as in the authors' code:
    α = ½. They are meta-parameters that do not adapt within a task (see `adapting`).

    Attributes:
        count: (), |D|, recorded beside the mean and variance of D.
    """

    statistics = ("mean", "variance", "count")
    count: Tensor | None

    def __init__(
        self, channels: int, episode: Episode, *, pool: int = 1, relu: bool = False
    ) -> None:
        super().__init__(channels, episode, pool=pool, relu=relu)
        self.scale = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))
        self.register_buffer("count", None)

    def forward(self, x: Tensor) -> Tensor:
        if self._has_kernel(x):
            means, variances, pooled = pooled_moments(x, self.weight, None)
            return self._activate(self._blend(pooled, means, variances))
        means, variances = _Moments.apply(full_precision(x).flatten(2))
        return self._finish(self._blend(x, means, variances))

    def _blend(self, x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
        """Activations (n, c, …) normalized, given the moments (n, c) of each image."""
        mean, variance, count = self._support(means, variances)
        alpha = torch.sigmoid(self.scale * count + self.offset)
        gap = mean - means
        # The squares above, combined: α (μ_D − μ)² + (1−α) (μ_x − μ)² = α (1−α) (μ_D − μ_x)².
        blend = alpha * variance + (1 - alpha) * (variances + alpha * gap.square())
        gain = self.weight * torch.rsqrt(blend + EPSILON)
        shift = self.bias - (means + alpha * gap) * gain
        y = torch.addcmul(shift[:, :, None, None], full_precision(x), gain[:, :, None, None])
        return y.to(x.dtype)

    def _support(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and size of D: the recorded ones, or from the moments of its images."""
        if self.mean is not None and self.variance is not None and self.count is not None:
            return self.mean, self.variance, self.count
        rows = self.episode.reference_rows
        means, variances = means[:rows], variances[:rows]
        mean, variance = _moments_of_all(means, variances, self.episode.sample_weights)
        count = means.new_full((), len(means))  # a fill: a copy from the host cannot be captured
        if self.episode.recording:
            self.mean, self.variance, self.count = mean.detach(), variance.detach(), count
        return mean, variance, count


def _moments_of_all(
    means: Tensor, variances: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Moments (n, c) of each of n equal-sized images → moments (c,) of all (total variance)."""
    if weights is None:
        spread, mean = torch.var_mean(means, dim=0, correction=0)
        return mean, variances.mean(0) + spread
    shares = weights.to(means)[:, None] / len(means)
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0)


class _Moments(torch.autograd.Function):
    """Mean and variance of each row: (n, channels, pixels) → two of (n, channels).

    It makes one pass over the rows per gradient and keeps no copy of them. With the gradient of
    the gradient, it takes two thirds of autograd's time for the same formula.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(2, keepdim=True)
        return mean[:, :, 0], (x - mean).square().mean(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """This is differentiable too: the mean is saved as an output with its history."""
        (x, mean), (to_mean, to_variance) = ctx.saved_tensors, gradients
        share = to_variance * (2 / x.shape[2])
        return torch.addcmul(
            (to_mean / x.shape[2] - share * mean)[:, :, None], x, share[:, :, None]
        )


def adapting(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that adapt within a task, by name: all except TaskNorm's scale and offset.

    A gradient step on the scale changes the argument of the sigmoid |D|² times as much as a step
    on the offset. With a hundred support images, one inner step ends at α = 0 or 1, where there is
    no gradient.
    """
    blends = {
        f"{name}.{own}"
        for name, module in backbone.named_modules()
        if isinstance(module, TaskNorm)
        for own in ("scale", "offset")
    }
    return {name: p for name, p in backbone.named_parameters() if name not in blends}


def full_precision(x: Tensor) -> Tensor:
    """At least float32: in bfloat16 a variance, a weight or a loss has only three digits."""
    return x if x.dtype == torch.float64 else x.float()


def norm_factory(mode: Mode) -> tuple[NormFactory, Episode]:
    """The factory that a backbone builds its layers with, and the state those layers share."""
    episode = Episode()
    if mode == "none":
        return Affine, episode
    layer = TaskNorm if mode == "tasknorm" else EpisodeNorm

    def norm(channels: int, *, pool: int = 1, relu: bool = False) -> nn.Module:
        return layer(channels, episode, pool=pool, relu=relu)

    return norm, episode
