"""Tasks of images: the episodes of a split, as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from hidra_cli.api.data import Split
from hidra_cli.engine.task_batch import Examples, TaskBatch
from hidra_cli.errors import UsageError
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.settings.declarations import Augment
from hidra_cli.system.random_streams import stream_key
from hidra_cli.tasks.augmentation import MIRRORED, augmented
from hidra_cli.tasks.episodes import EpisodeSampler, draw
from hidra_cli.tasks.objective import CLASSIFICATION, Objective
from hidra_cli.tasks.shape import TaskShape


class ImageSampler(EpisodeSampler):
    """The tasks of one split of prepared images, or of their features.

    Args:
        source: the prepared images.
        split: whose classes make the tasks.
        ways, shots, queries, seed, within_groups: as in `EpisodeSampler`.
        device: where the tasks' tensors go.
        augment: random changes to images, from a separate stream. The choice of a task's images
            does not depend on it.

    Raises:
        UsageError, DataError: as `EpisodeSampler`.
    """

    objective: ClassVar[Objective] = CLASSIFICATION

    def __init__(
        self,
        source: PreparedImages,
        split: Split,
        ways: Sequence[int],
        shots: Sequence[int],
        queries: int,
        seed: int,
        *,
        device: torch.device,
        within_groups: bool = False,
        augment: Augment = "none",
    ) -> None:
        table = source.table(split)
        super().__init__(table, ways, shots, queries, seed, within_groups=within_groups)
        self.source = source
        self.device = device
        self.augment = augment
        if augment != "none" and source.has_features:
            raise UsageError(
                f"features cannot be augmented: --augment {augment}",
                why=f"{source.path} holds features of the images as they are",
                fix="--augment none",
            )
        self._augment_key = stream_key(seed, "augmentation", split)

    def batch(self, episodes: Sequence[int], shape: TaskShape) -> TaskBatch:
        """The images of some episodes, as tensors on the device."""
        indices = self.indices(episodes, shape)
        support, query = self.source.gather(indices.support), self.source.gather(indices.query)
        if self.augment != "none":
            support_keys, query_keys = self.augment_keys(episodes, shape)
            support = augmented(support, support_keys, self.augment)
            query = augmented(query, query_keys, self.augment)
        return TaskBatch(
            _examples(support, shape.ways, self.device),
            _examples(query, shape.ways, self.device),
            shape.ways,
            shape.shots,
            indices.generator_keys,
        )

    def augment_keys(
        self, episodes: Sequence[int], shape: TaskShape
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """A random number for each support and each query image: (T, N·K) and (T, N·Q).

        With "mirror", all images of a class are mirrored if the first one is.
        """
        ways, shots = shape
        count = ways * (shots + self.queries)
        keys = np.stack([draw(self._augment_key, episode, count) for episode in episodes])
        support, query = keys[:, : ways * shots], keys[:, ways * shots :]
        if "mirror" in self.augment:
            mirrored = support[:, ::shots] & MIRRORED
            support = (support & ~MIRRORED) | mirrored.repeat(shots, 1)
            query = (query & ~MIRRORED) | mirrored.repeat(self.queries, 1)
        return support, query


def _examples(gathered: torch.Tensor, ways: int, device: torch.device) -> Examples:
    if device.type == "cuda" and gathered.device.type == "cpu":
        gathered = gathered.pin_memory()  # only a copy from pinned memory is asynchronous
    moved = gathered.to(device, non_blocking=True)
    images = moved.float().div_(255) if moved.dtype == torch.uint8 else moved
    tasks, count = gathered.shape[:2]
    labels = torch.arange(ways, device=device).repeat_interleave(count // ways)
    return Examples(images, labels.expand(tasks, -1))
