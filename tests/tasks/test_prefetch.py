"""Prefetched tasks are the same tasks; here on a CPU, where training itself does not prefetch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.jobs.training.loop import train
from hidra_cli.jobs.training.trainer import MetaTrainer
from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.directory import create_run
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.prefetch import Prefetcher
from hidra_cli.tasks.shape import TaskShape

from ..jobs.test_training import settings_of

CPU = torch.device("cpu")


class Watched(ImageSampler):
    """Remembers what was drawn, and in which thread."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, device=CPU)
        self.drawn: list[tuple[tuple[int, ...], bool]] = []

    def batch(self, episodes: Sequence[int], shape: TaskShape) -> TaskBatch:
        aside = threading.current_thread() is not threading.main_thread()
        self.drawn.append((tuple(episodes), aside))
        return super().batch(episodes, shape)


@pytest.fixture
def watched(tiny_images: PreparedImages) -> Watched:
    return Watched(tiny_images, "train", [2, 3], [1], 3, 0)


def test_prefetched_tasks_are_drawn_once_in_the_thread(watched: Watched) -> None:
    prefetcher, shape = Prefetcher(watched), TaskShape(3, 1)
    prefetcher.prefetch(range(4, 6), shape)
    found = prefetcher.batch(range(4, 6), shape)
    assert watched.drawn == [((4, 5), True)]
    expected = ImageSampler.batch(watched, [4, 5], shape)
    assert torch.equal(found.support.images, expected.support.images)
    assert torch.equal(found.query.images, expected.query.images)
    assert found.generator_keys == expected.generator_keys
    again = prefetcher.batch(range(4, 6), shape)
    assert watched.drawn[1:] == [((4, 5), False)]
    assert torch.equal(again.query.images, expected.query.images)
    assert (prefetcher.ways, prefetcher.shots, prefetcher.queries) == ((2, 3), (1,), 3)
    assert (prefetcher.source, prefetcher.objective) == (watched.source, watched.objective)
    assert [prefetcher.shape(i) for i in range(9)] == [watched.shape(i) for i in range(9)]


@pytest.mark.parametrize("asked", [(range(4, 7), 3), (range(5, 7), 3), (range(4, 6), 2)])
def test_tasks_that_were_not_prefetched_are_drawn_when_asked_for(
    watched: Watched, asked: tuple[range, int]
) -> None:
    episodes, ways = asked
    prefetcher, shape = Prefetcher(watched), TaskShape(ways, 1)
    prefetcher.prefetch(range(4, 6), TaskShape(3, 1))
    found = prefetcher.batch(episodes, shape)
    expected = ImageSampler.batch(watched, episodes, shape)
    assert torch.equal(found.query.images, expected.query.images)
    assert (tuple(episodes), False) in watched.drawn


def test_an_error_of_prefetching_is_raised_where_the_tasks_are_asked_for(
    watched: Watched,
) -> None:
    prefetcher, shape = Prefetcher(watched), TaskShape(99, 1)  # more ways than there are classes
    prefetcher.prefetch(range(2), shape)
    with pytest.raises(ValueError, match=r"."):
        prefetcher.batch(range(2), shape)


@pytest.mark.parametrize("load", [True, False])
@pytest.mark.parametrize("near", [True, False])
def test_training_is_the_same_with_tasks_drawn_ahead_and_images_on_the_device(
    tiny_images: PreparedImages, tmp_path: Path, load: bool, near: bool
) -> None:
    settings = settings_of(outer__iterations=5)
    plain = MetaTrainer(settings, tiny_images, CPU)
    images = open_store(tiny_images.path, "glyphs", load=load)
    other = MetaTrainer(settings, images.on(CPU, 10**9 if near else 0), CPU)
    tasks, seed = settings.tasks, settings.run.seed
    watched = Watched(other.data, "train", tasks.ways, tasks.shots, 3, seed)
    other.train_episodes = Prefetcher(watched)
    found = []
    for name, trainer in (("plain", plain), ("other", other)):
        run = create_run(tmp_path, name, settings)
        train(trainer, run)
        found.append(load_checkpoint(run.last))
    assert found[0].meta == found[1].meta
    for name, tensor in found[0].tensors.items():
        assert torch.equal(tensor, found[1].tensors[name]), name
    steps = [(2 * step, 2 * step + 1) for step in range(5)]
    assert watched.drawn == [(steps[0], False), *((step, True) for step in steps[1:])]
