"""Tasks as tensors.

Shapes: T tasks, N ways, K shots, Q queries per class, n examples, C channels, H × W pixels.
Of functions of D numbers, "images" are (…, 1, 1, D) and "labels" values (…, N).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Labelled images of T tasks: images (T, n, C, H, W) in [0, 1], labels (T, n)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """One task: images (n, C, H, W), labels (n,), and its key in the random stream."""

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    ways: int
    generator_key: int

    @property
    def count(self) -> int:
        """How many tasks this is."""
        return 1

    def generator(self) -> torch.Generator:
        """Fresh randomness for a head, the same whenever this task is seen."""
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
        return Task(
            self.support.images[index],
            self.support.labels[index],
            self.query.images[index],
            self.query.labels[index],
            self.ways,
            self.generator_keys[index],
        )

    def tasks(self) -> list[Task]:
        """Each task by itself."""
        return [self.task(index) for index in range(len(self))]

    def only(self, index: int) -> TaskBatch:
        """The batch of one of the tasks."""
        return self.part(slice(index, index + 1))

    def part(self, tasks: slice) -> TaskBatch:
        """The batch of some of the tasks."""
        return TaskBatch(
            Examples(self.support.images[tasks], self.support.labels[tasks]),
            Examples(self.query.images[tasks], self.query.labels[tasks]),
            self.ways,
            self.shots,
            self.generator_keys[tasks],
        )
