"""Backbone + head as one function of fast weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hidra_cli.api import Backbone, FastWeights, Head
from hidra_cli.engine import losses
from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.losses import LossName
from hidra_cli.engine.normalization import (
    Episode,
    Normalization,
    adapting,
    full_precision,
    reads_support,
)
from hidra_cli.engine.rates import LearnedRates
from hidra_cli.engine.task_batch import Task

Precision = Literal["float32", "tf32", "bfloat16"]
# Images per pass of a frozen network. On a CPU, more of them take more memory and no less time.
_AT_ONCE = 16


@dataclass(frozen=True)
class Weights:
    """One task's weights at one moment, by name: the backbone (body) and the head."""

    body: FastWeights
    head: FastWeights

    def detached(self) -> Weights:
        """The same values as new leaves of the graph, without their history."""
        return Weights(leaves(self.body), leaves(self.head))

    def renewed(self) -> Weights:
        """The same values as new tensors of the graph.

        A gradient with respect to them is partial. It ignores that other weights may depend on the
        same meta-parameters.
        """
        return Weights(_aliases(self.body), _aliases(self.head))


class Learner(nn.Module):
    """A backbone and a head whose parameters are the meta-parameters.

    Args:
        backbone: images (n, C, H, W) → features (n, F).
        head: features → logits, and the starting weights of a task.
        episode: the state that the backbone's normalization layers share.
        normalization: the mode that those layers were built for.
        precision: "bfloat16" runs forward passes under autocast; weights stay float32. "tf32" is
            float32 here; a switch of the whole process selects how products are computed
            (`devices.choose_float32`).
        loss: the loss of the inner and the outer loop.
        rates: learned inner rates; None if the rates are fixed.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        episode: Episode,
        normalization: Normalization,
        precision: Precision = "float32",
        loss: LossName = "softmax",
        rates: LearnedRates | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.episode = episode
        self.normalization = normalization
        self.precision = precision
        self.loss_name = loss
        self.rates = rates

    @property
    def device(self) -> torch.device:
        return self._some_tensor.device

    @property
    def dtype(self) -> torch.dtype:
        return self._some_tensor.dtype

    @property
    def _some_tensor(self) -> Tensor:
        return next(chain(self.backbone.parameters(), self.backbone.buffers()))

    @property
    def symmetric(self) -> bool:
        """Whether the first inner step cannot change the backbone: identical neurons, softmax."""
        return self.head.identical_neurons and self.loss_name == "softmax"

    def inert_parameters(self) -> Iterator[nn.Parameter]:
        """Meta-parameters whose gradient is exactly zero: they change all logits equally."""
        if self.loss_name == "softmax":
            for name in self.head.common_parameters:
                yield self.head.get_parameter(name)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of outputs (n, N) for labels (n,) or values (n, N); weights (n,) or None."""
        return losses.loss(self.loss_name, outputs, targets, weights)

    def support_loss(self, weights: Weights, task: Task) -> Tensor:
        """The loss of the support images. Every class has the same weight."""
        outputs = self.support_logits(weights, task)
        return self.loss(outputs, task.support_labels, task.support_weights)

    def initial_weights(self, task: Task) -> Weights:
        """The start of a task: the backbone's weights, and the head's weights for N ways."""
        body: FastWeights = dict(adapting(self.backbone))
        features = None
        if self.head.needs_support:
            features = full_precision(self.support_features(body, task))
        head = self.head.initialize(task.ways, features, task.support_labels, task.generator())
        return Weights(body, head).renewed()

    def separated(self, weights: Weights, task: Task) -> Weights:
        """Separate weights for each task. With a single task they always are."""
        return weights

    @torch.no_grad()
    def precomputed(self, images: Tensor) -> Tensor:
        """Images (…, C, H, W) → features (…, F) of a frozen network, which no inner step changes.

        With another backbone, or if the images are features already, nothing changes.
        """
        if not isinstance(self.backbone, FrozenNetwork) or images.dim() < 4:
            return images
        leading = images.shape[:-3]
        if not leading.numel():
            return images.new_empty(*leading, self.backbone.features)
        parts = torch.split(images.flatten(0, -4), _AT_ONCE)
        features = torch.cat([full_precision(self.features({}, part)) for part in parts])
        return features.reshape(*leading, -1)

    def features(
        self,
        body: Mapping[str, Tensor],
        images: Tensor,
        reference_rows: int | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Images (n, C, H, W) → features (n, F), with statistics from the leading rows.

        Args:
            body: the backbone's weights.
            images: the first ones are the reference.
            reference_rows: the number of reference images; None for all.
            sample_weights: the weight of each reference image in the statistics.
        """
        with self.episode.reference(reference_rows, sample_weights), self._autocast():
            features: Tensor = functional_call(self.backbone, dict(body), (channels_last(images),))
        return features

    def logits(self, weights: Weights, images: Tensor) -> Tensor:
        """Images (n, C, H, W) → logits (n, N), in float32 at least."""
        return self.head_logits(weights, self.features(weights.body, images))

    def support_features(self, body: Mapping[str, Tensor], task: Task) -> Tensor:
        """Features (N·K, F) of the support images, with their own statistics."""
        return self.features(body, task.support_images, None, task.support_weights)

    def support_logits(self, weights: Weights, task: Task) -> Tensor:
        """Logits (N·K, N) of the support images."""
        return self.head_logits(weights, self.support_features(weights.body, task))

    def query_logits(self, weights: Weights, task: Task) -> Tensor:
        """Logits (…, N·Q, N) of the query images, with the run's normalization."""
        if not reads_support(self.normalization):
            return self.logits(weights, task.query_images)
        rows = task.support_images.shape[-4]
        images = torch.cat([task.support_images, task.query_images], -4)
        features = self.features(weights.body, images, rows, task.support_weights)
        return self.head_logits(weights, features[..., rows:, :])

    def answers(self, weights: Weights, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Features (m, F) of the support images; features (n, F) and logits (n, N) of the queries.

        Both are normalized as the run says.
        """
        if reads_support(self.normalization):
            rows = len(task.support_images)
            images = torch.cat([task.support_images, task.query_images])
            both = self.features(weights.body, images, rows, task.support_weights)
            support, query = both[:rows], both[rows:]
        else:
            support = self.support_features(weights.body, task)
            query = self.features(weights.body, task.query_images)
        return full_precision(support), full_precision(query), self.head_logits(weights, query)

    def head_logits(self, weights: Weights, features: Tensor) -> Tensor:
        """Features (n, F) → logits (n, N), in float32 at least."""
        with self._autocast():
            logits = self.head.logits(weights.head, features)
        return full_precision(logits)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


@contextmanager
def meta_training(learner: Learner) -> Iterator[None]:
    """Put modules into train() for a meta-gradient (dropout is on), and back into eval()."""
    learner.train()
    try:
        yield
    finally:
        learner.eval()


def channels_last(images: Tensor) -> Tensor:
    """Images (n, C, H, W) in the memory layout (n, H, W, C): pooling is ten times faster on a CPU.

    With one channel, only the stride of its dimension says in which format convolutions answer.
    """
    if images.dim() != 4:  # features
        return images
    n, c, h, w = images.shape
    if c == 1:
        return images.reshape(n, h, w, 1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def _aliases(weights: FastWeights) -> FastWeights:
    return {name: value.view_as(value) for name, value in weights.items()}


def leaves(weights: FastWeights) -> FastWeights:
    """The same values as new leaves of the graph, without their history."""
    return {name: value.detach().requires_grad_() for name, value in weights.items()}
