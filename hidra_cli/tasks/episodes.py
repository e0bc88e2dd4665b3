"""Episodes: counter-based sampling of support and query images, the same on every machine.

Shapes: T tasks, N ways, K shots, Q queries per class. Support and query images are ordered by
class, and labels are 0..N−1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hidra_cli.errors import DataError, UsageError
from hidra_cli.images.file_format import Int64
from hidra_cli.images.prepared import ClassTable
from hidra_cli.system.random_streams import stream_key
from hidra_cli.tasks.shape import TaskShape

# A random key that never wins.
_LAST = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class EpisodeIndices:
    """Where the images of T episodes are in the prepared file.

    Attributes:
        classes: (T, N) rows of the class table.
        support: (T, N·K) image indices.
        query: (T, N·Q) image indices.
    """

    classes: Int64
    support: Int64
    query: Int64
    generator_keys: tuple[int, ...]


class EpisodeSampler:
    """Episodes of one split, keyed by (seed, split, episode index).

    The same key gives the same episode whatever the device, the batch size or the number of
    processes. With more ways, an episode keeps its first classes and adds others.

    Args:
        table: the classes of the split.
        ways: the numbers of ways that occur.
        shots: the numbers of support images per class that occur.
        queries: query images per class.
        seed: the run's seed.
        within_groups: all classes of a task belong to one group, such as an Omniglot alphabet. The
            group is the part of a class name before the first slash. It is drawn from the groups
            with enough classes.

    Raises:
        UsageError: a number of ways is below two.
        DataError: the split, or each of its groups, has too few classes, or a class too few images.
    """

    def __init__(
        self,
        table: ClassTable,
        ways: Sequence[int],
        shots: Sequence[int],
        queries: int,
        seed: int,
        *,
        within_groups: bool = False,
    ) -> None:
        check_feasible(table, ways, shots, queries)
        self.table = table
        self.ways = tuple(ways)
        self.shots = tuple(shots)
        self.queries = queries
        self.seed = seed
        self._key = stream_key(seed, "episodes", table.split)
        self._shape_key = stream_key(seed, "shapes", table.split)
        self._groups: Int64 | None = None
        if within_groups:
            self._group_key = stream_key(seed, "groups", table.split)
            self._groups = groups_of(table)
            _check_groups(table, self._groups, max(ways))

    def shape(self, meta_batch: int) -> TaskShape:
        """The shape of a meta-batch, uniform over the ways and shots that occur."""
        return draw_shape(self._shape_key, meta_batch, self.ways, self.shots)

    def indices(self, episodes: Sequence[int], shape: TaskShape) -> EpisodeIndices:
        """Choose classes and images for some episodes, by their indices in the stream."""
        ways, shots = shape
        needed = shots + self.queries
        most = int(self.table.counts.max())
        classes_in_split = len(self.table.names)
        raw = np.stack([draw(self._key, e, classes_in_split + ways * most) for e in episodes])
        # The smallest random keys win: a uniform choice without replacement.
        class_keys = raw[:, :classes_in_split]
        if self._groups is not None:
            class_keys = np.where(self._outside(episodes, ways), _LAST, class_keys)
        classes = _smallest(class_keys, ways)
        keys = raw[:, classes_in_split:].reshape(len(episodes), ways, most)
        beyond = np.arange(most) >= self.table.counts[classes][..., None]
        keys = np.where(beyond, _LAST, keys)
        images = _smallest(keys, needed) + self.table.first[classes][..., None]
        return EpisodeIndices(
            classes,
            images[..., :shots].reshape(len(episodes), -1),
            images[..., shots:].reshape(len(episodes), -1),
            tuple(stream_key(self.seed, "head", self.table.split, e) for e in episodes),
        )

    def _outside(self, episodes: Sequence[int], ways: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The classes outside of each episode's group: (T, C). A group has at least N classes."""
        assert self._groups is not None
        sizes = np.bincount(self._groups)
        keys = np.stack([draw(self._group_key, episode, len(sizes)) for episode in episodes])
        group = np.where(sizes < ways, _LAST, keys).argmin(axis=1)
        outside: np.ndarray[Any, np.dtype[np.bool_]] = self._groups != group[:, None]
        return outside


def check_feasible(
    table: ClassTable, ways: Sequence[int], shots: Sequence[int], queries: int
) -> None:
    """Check that every possible episode can be drawn.

    Raises:
        UsageError: a number of ways is below two.
        DataError: names the split or class, its size and the needed size.
    """
    if min(ways) < 2:
        raise UsageError(
            "a task needs at least 2 ways",
            why=f"--ways includes {min(ways)}",
            fix="--ways 2 or more",
        )
    if max(ways) > len(table.names):
        raise DataError(
            f"{table.dataset} has too few classes in its {table.split} split",
            why=f"{len(table.names)} classes, but --ways asks for {max(ways)}",
            fix=fewer_ways(table.dataset, len(table.names)),
        )
    needed = max(shots) + queries
    smallest = int(np.argmin(table.counts))
    if table.counts[smallest] < needed:
        has = int(table.counts[smallest])
        short = int((table.counts < needed).sum())
        raise DataError(
            f"class '{table.names[smallest]}' of {table.dataset} has too few images",
            why=f"it has {has} and needs {needed}: {max(shots)} for support, {queries} as queries "
            f"({short} of {len(table.names)} classes in the {table.split} split are too small)",
            fix="lower --shots or --queries, or add images to the class",
        )


def fewer_ways(dataset: str, most: int) -> str:
    """A way out where a split has too few classes, `most` of them."""
    if most > 1:
        return f"--ways {most} or fewer"
    if dataset != "folder":
        return "more classes in that split"
    return (
        "with 4 classes or more: --ways 2 --data-opt fractions=0.5,0.5,0 --test-episodes 0, after "
        "hidra prepare folder with these fractions; with fewer classes, without any training: "
        "hidra adapt --support DIR"
    )


def groups_of(table: ClassTable) -> Int64:
    """The number of each class's group, the part of its name before the first slash: (C,)."""
    names = [name.split("/")[0] for name in table.names]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _check_groups(table: ClassTable, groups: Int64, ways: int) -> None:
    most = int(np.bincount(groups).max())
    if most < ways:
        raise DataError(
            f"no group of classes in the {table.split} split of {table.dataset} is large enough",
            why=f"the largest has {most} classes, but --ways asks for {ways}",
            fix=f"--ways {most} or fewer" if most > 1 else "leave --within-groups out",
        )


def draw_shape(key: int, meta_batch: int, ways: Sequence[int], shots: Sequence[int]) -> TaskShape:
    """The shape of a meta-batch, uniform over ways and shots, from the stream of a key."""
    raw = draw(key, meta_batch, 2)
    return TaskShape(ways[int(raw[0] % len(ways))], shots[int(raw[1] % len(shots))])


def _smallest(keys: npt.NDArray[np.uint64], number: int) -> Int64:
    """The indices of the smallest keys of each row (…, n), the smallest first: (…, number)."""
    smallest = np.argpartition(keys, number - 1, axis=-1)[..., :number]
    order = np.argsort(np.take_along_axis(keys, smallest, axis=-1), axis=-1)
    return np.take_along_axis(smallest, order, axis=-1)


def draw(key: int, counter: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """`count` 64-bit numbers of Philox-4×64 (Salmon et al. 2011), at one counter of a stream."""
    # Raw bits: numpy promises them unchanged between versions, unlike its distributions.
    return np.random.Philox(key=key, counter=[0, 0, 0, counter]).random_raw(count)
