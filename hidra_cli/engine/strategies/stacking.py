"""Several tasks as one: the learner's functions with a dimension of tasks in front.

Shapes: T tasks; a stacked weight (T, …), or without T where all tasks share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from hidra_cli.api import FastWeights
from hidra_cli.engine import losses
from hidra_cli.engine.learner import Learner, Weights
from hidra_cli.engine.normalization import adapting, full_precision
from hidra_cli.engine.task_batch import Task, TaskBatch


@dataclass(frozen=True)
class StackedTask(Task):
    """T tasks of one shape: images (T, n, C, H, W), labels and weights (T, n)."""

    generator_keys: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.generator_keys)


def stacked(batch: TaskBatch) -> StackedTask:
    """All tasks of a batch."""
    return StackedTask(
        batch.support.images,
        batch.support.labels,
        batch.query.images,
        batch.query.labels,
        batch.ways,
        generator_key=0,
        support_weights=batch.support.weights,
        generator_keys=batch.generator_keys,
    )


def chunks(batch: TaskBatch, size: int) -> Iterator[TaskBatch]:
    """The batch in parts of `size` tasks; 0 for one part."""
    size = size or len(batch)
    for start in range(0, len(batch), size):
        yield batch.part(slice(start, start + size))


class StackedLearner(Learner):
    """The same modules and meta-parameters as another learner, for `StackedTask`s.

    Losses are sums over tasks, so that each task's weights get their own gradient.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__(
            learner.backbone,
            learner.head,
            learner.episode,
            learner.normalization,
            learner.precision,
            learner.loss_name,
            learner.rates,
        )
        self._shared = {name: p.dim() for name, p in adapting(learner.backbone).items()}

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The sum over tasks of the losses of outputs (T, n, N)."""
        places = (0, 0, None if weights is None else 0)
        each = vmap(lambda o, t, w: losses.loss(self.loss_name, o, t, w), in_dims=places)
        total: Tensor = each(outputs, targets, weights).sum()
        return total

    def initial_weights(self, task: Task) -> Weights:
        """The backbone's weights, shared as yet, and the heads', stacked."""
        assert isinstance(task, StackedTask)
        body: FastWeights = dict(adapting(self.backbone))
        features = None
        if self.head.needs_support:
            features = full_precision(self.support_features(body, task))
        heads = [
            self.head.initialize(
                task.ways,
                None if features is None else features[index],
                task.support_labels[index],
                torch.Generator().manual_seed(key),
            )
            for index, key in enumerate(task.generator_keys)
        ]
        head = {name: torch.stack([h[name] for h in heads]) for name in heads[0]}
        return Weights(body, head).renewed()

    def separated(self, weights: Weights, task: Task) -> Weights:
        """Weights of which every task has its own."""
        body = {
            name: value.expand(task.count, *value.shape) if self._is_shared(name, value) else value
            for name, value in weights.body.items()
        }
        return Weights(body, weights.head)

    def features(
        self,
        body: Mapping[str, Tensor],
        images: Tensor,
        reference_rows: int | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Images (T, n, C, H, W) → features (T, n, F)."""
        weights = dict(body)
        by_name = {name: None if self._is_shared(name, w) else 0 for name, w in weights.items()}
        places = (by_name, 0, None if sample_weights is None else 0)

        def one(weights: dict[str, Tensor], images: Tensor, of_samples: Tensor | None) -> Any:
            with self.episode.reference(reference_rows, of_samples):
                return functional_call(self.backbone, weights, (images,))

        with self.episode.traceable(), self._autocast():
            features: Tensor = vmap(one, in_dims=places)(weights, images, sample_weights)
        return features

    def head_logits(self, weights: Weights, features: Tensor) -> Tensor:
        with self._autocast():
            logits = vmap(self.head.logits)(weights.head, features)
        return full_precision(logits)

    def _is_shared(self, name: str, value: Tensor) -> bool:
        return value.dim() == self._shared[name]
