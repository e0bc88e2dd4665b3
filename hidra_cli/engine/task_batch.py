"""Tasks as tensors.

Shapes: T tasks, N ways, K shots, Q queries per class, n examples, C channels, H × W pixels.
For functions of D numbers, "images" are (…, 1, 1, D) and "labels" are values (…, N). For a frozen
network "images" may be features (…, F).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def class_weights(labels: Tensor, ways: int) -> Tensor | None:
    """Weights of labelled examples that give every class the same influence.

    The weight is n / (C · examples of the same class), for n examples of C classes. Its mean is 1.

    Args:
        labels: (n,) in 0..N−1; a class may have no example.
        ways: N.

    Returns:
        (n,) float32, or None if all classes have equally many examples. Results are then those of
        the plain mean, bit for bit.
    """
    counts = torch.bincount(labels, minlength=ways)
    present = counts[counts > 0]
    if not len(present) or bool((present == present[0]).all()):
        return None
    return len(labels) / (len(present) * counts[labels]).float()


@dataclass(frozen=True)
class Examples:
    """Labelled images of T tasks: images (T, n, C, H, W) in [0, 1], labels (T, n).

    Attributes:
        weights: (T, n) of `class_weights`; None where classes are of equal size.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor | None = None

    def part(self, tasks: int | slice) -> Examples:
        """The examples of one task, without the dimension T, or of some tasks."""
        weights = None if self.weights is None else self.weights[tasks]
        return Examples(self.images[tasks], self.labels[tasks], weights)


@dataclass(frozen=True)
class Task:
    """One task: images (n, C, H, W), labels (n,), and its key in the random stream.

    Attributes:
        support_weights: (n,) of `class_weights`; None where classes are of equal size.
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    ways: int
    generator_key: int
    support_weights: Tensor | None = None

    @property
    def count(self) -> int:
        """The number of tasks."""
        return 1

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Task:
        """The task with other images."""
        support, query = change(self.support_images), change(self.query_images)
        return replace(self, support_images=support, query_images=query)

    def generator(self) -> torch.Generator:
        """Random numbers for a head. They are the same whenever this task is drawn."""
        return torch.Generator().manual_seed(self.generator_key)


@dataclass(frozen=True)
class TaskBatch:
    """T tasks of the same ways and shots, as tensors on one device."""

    support: Examples
    query: Examples
    ways: int
    shots: int
    generator_keys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.generator_keys)

    def task(self, index: int) -> Task:
        support, query = self.support.part(index), self.query.part(index)
        return Task(
            support.images,
            support.labels,
            query.images,
            query.labels,
            self.ways,
            self.generator_keys[index],
            support.weights,
        )

    def tasks(self) -> list[Task]:
        """The single tasks."""
        return [self.task(index) for index in range(len(self))]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> TaskBatch:
        """The batch with other images."""
        support = replace(self.support, images=change(self.support.images))
        query = replace(self.query, images=change(self.query.images))
        return replace(self, support=support, query=query)

    def only(self, index: int) -> TaskBatch:
        """The batch of one of the tasks."""
        return self.part(slice(index, index + 1))

    def part(self, tasks: slice) -> TaskBatch:
        """The batch of some of the tasks."""
        return TaskBatch(
            self.support.part(tasks),
            self.query.part(tasks),
            self.ways,
            self.shots,
            self.generator_keys[tasks],
        )
