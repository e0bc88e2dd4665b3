"""Normalization as a setting of the run: where a layer's statistics come from.

- `support`: from the support images; a query's logits do not depend on the other queries.
- `transductive`: from the batch itself, so the queries see each other (what MAML's published
  numbers used).
- `none`: no statistics, a learned affine only (what the authors' HIDRA code does).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidra_cli.api import NormFactory

Mode = Literal["support", "transductive", "none"]
EPSILON = 1e-5


class Episode:
    """What all normalization layers of one backbone share: which rows are the reference.

    Attributes:
        reference_rows: statistics come from this many leading images; None means from all.
        recording: keep each layer's statistics for later predictions.
    """

    def __init__(self) -> None:
        self.reference_rows: int | None = None
        self.recording = False

    @contextmanager
    def reference(self, rows: int | None) -> Iterator[None]:
        """Take statistics from the first `rows` images only."""
        self.reference_rows = rows
        try:
            yield
        finally:
            self.reference_rows = None

    @contextmanager
    def record(self) -> Iterator[None]:
        """Let every layer keep the statistics of the next forward pass."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


class Affine(nn.Module):
    """y = weight · x + bias per channel: (n, channels, H, W) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class EpisodeNorm(Affine):
    """Batch normalization (Ioffe & Szegedy 2015) with the statistics of one episode.

    There are no running averages: statistics of other tasks say nothing about a new one.

    Attributes:
        mean, variance: (channels,), recorded statistics that are used instead once present.
    """

    mean: Tensor | None
    variance: Tensor | None

    def __init__(self, channels: int, episode: Episode) -> None:
        super().__init__(channels)
        self.episode = episode
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.variance is not None:
            return self._normalize(x, self.mean, self.variance)
        rows = self.episode.reference_rows
        if rows is None and not self.episode.recording:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=EPSILON)
        # float32 at least: a variance in bfloat16 has three digits
        reference = x[:rows] if x.dtype == torch.float64 else x[:rows].float()
        variance, mean = torch.var_mean(reference, dim=(0, 2, 3), correction=0)
        if self.episode.recording:
            self.mean, self.variance = mean.detach(), variance.detach()
        return self._normalize(x, mean, variance)

    def _normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(variance + EPSILON)
        shift = self.bias - mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


def norm_factory(mode: Mode) -> tuple[NormFactory, Episode]:
    """What a backbone builds its layers with, and the state those layers share."""
    episode = Episode()
    if mode == "none":
        return Affine, episode
    return (lambda channels: EpisodeNorm(channels, episode)), episode
