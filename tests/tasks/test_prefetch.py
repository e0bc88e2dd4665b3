"""Tasks drawn ahead are the tasks; here with a CPU as the device, on which training needs none."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.jobs.training.trainer import MetaTrainer
from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.directory import create_run
from hidra_cli.system.console import Console
from hidra_cli.tasks.episodes import EpisodeSampler
from hidra_cli.tasks.prefetch import Ahead

from ..jobs.test_training import settings_of

CPU = torch.device("cpu")


class Watched(EpisodeSampler):
    """Remembers what was drawn, and in which thread."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.drawn: list[tuple[tuple[int, ...], bool]] = []

    def batch(self, images: Any, episodes: Sequence[int], *others: Any) -> TaskBatch:
        aside = threading.current_thread() is not threading.main_thread()
        self.drawn.append((tuple(episodes), aside))
        return super().batch(images, episodes, *others)


@pytest.fixture
def watched(tiny_images: PreparedImages) -> Watched:
    return Watched(tiny_images.table("train"), [2, 3], [1], 3, 0)


def test_what_is_expected_is_drawn_once_in_the_thread(
    watched: Watched, tiny_images: PreparedImages
) -> None:
    ahead = Ahead(watched)
    ahead.expect(tiny_images, range(4, 6), 3, 1, CPU)
    found = ahead.batch(tiny_images, range(4, 6), 3, 1, CPU)
    assert watched.drawn == [((4, 5), True)]
    expected = EpisodeSampler.batch(watched, tiny_images, [4, 5], 3, 1, CPU)
    assert torch.equal(found.support.images, expected.support.images)
    assert torch.equal(found.query.images, expected.query.images)
    assert found.generator_keys == expected.generator_keys
    again = ahead.batch(tiny_images, range(4, 6), 3, 1, CPU)
    assert watched.drawn[1:] == [((4, 5), False)]
    assert torch.equal(again.query.images, expected.query.images)
    assert (ahead.ways, ahead.shots, ahead.queries) == ((2, 3), (1,), 3)
    assert [ahead.shape(i) for i in range(9)] == [watched.shape(i) for i in range(9)]


@pytest.mark.parametrize("asked", [(range(4, 7), 3), (range(5, 7), 3), (range(4, 6), 2)])
def test_what_was_not_expected_is_drawn_when_asked_for(
    watched: Watched, tiny_images: PreparedImages, asked: tuple[range, int]
) -> None:
    episodes, ways = asked
    ahead = Ahead(watched)
    ahead.expect(tiny_images, range(4, 6), 3, 1, CPU)
    found = ahead.batch(tiny_images, episodes, ways, 1, CPU)
    expected = EpisodeSampler.batch(watched, tiny_images, episodes, ways, 1, CPU)
    assert torch.equal(found.query.images, expected.query.images)
    assert (tuple(episodes), False) in watched.drawn


def test_an_error_of_drawing_ahead_comes_where_the_tasks_are_asked_for(
    watched: Watched, tiny_images: PreparedImages
) -> None:
    ahead = Ahead(watched)
    ahead.expect(tiny_images, range(2), 99, 1, CPU)  # more ways than there are classes
    with pytest.raises(ValueError, match=r"."):
        ahead.batch(tiny_images, range(2), 99, 1, CPU)


@pytest.mark.parametrize("load", [True, False])
@pytest.mark.parametrize("near", [True, False])
def test_training_is_the_same_with_tasks_drawn_ahead_and_images_on_the_device(
    tiny_images: PreparedImages, tmp_path: Path, load: bool, near: bool
) -> None:
    settings = settings_of(outer__iterations=5)
    plain = MetaTrainer(settings, tiny_images, CPU)
    images = open_store(tiny_images.path, "glyphs", load=load)
    other = MetaTrainer(settings, images.on(CPU, 10**9 if near else 0), CPU)
    table = images.table("train")
    watched = Watched(table, settings.tasks.ways, settings.tasks.shots, 3, settings.run.seed)
    other.train_episodes = Ahead(watched)
    found = []
    for name, trainer in (("plain", plain), ("other", other)):
        run = create_run(tmp_path, name, settings)
        trainer.run(run, Console(verbosity=-1))
        found.append(load_checkpoint(run.last))
    assert found[0].meta == found[1].meta
    for name, tensor in found[0].tensors.items():
        assert torch.equal(tensor, found[1].tensors[name]), name
    steps = [(2 * step, 2 * step + 1) for step in range(5)]
    assert watched.drawn == [(steps[0], False), *((step, True) for step in steps[1:])]
