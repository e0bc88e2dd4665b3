"""How contenders are scored on fixed episodes: the inner loop of every evaluation.

Shapes: E episodes, S inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.inner_loop import score
from hidra_cli.engine.task_batch import Task, TaskBatch
from hidra_cli.errors import UsageError
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.runs.scores import Cell
from hidra_cli.system.console import Advance, Console
from hidra_cli.system.distributed import SINGLE, ProcessGroup
from hidra_cli.tasks.shape import TaskShape
from hidra_cli.tasks.sources import Sampler

_EPISODES_AT_ONCE = 16
_OF_FEATURES_AT_ONCE = 64  # they take less memory than images


class Contender(Protocol):
    """Something that can be evaluated on tasks."""

    @property
    def name(self) -> str: ...

    @property
    def normalization(self) -> str: ...

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        """Raise UsageError where it cannot do what is asked."""

    def scores(self, batch: TaskBatch, *, every_step: bool) -> list[list[float]]:
        """For each task the query score before and after each step (S + 1), or only the last."""


@dataclass(frozen=True)
class NearestPixels:
    """The baseline that learns nothing: the label of the nearest support image (L2 on pixels)."""

    name: str = "nearest neighbour on pixels"
    normalization: str = "–"

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        """It can do any number of ways and any image."""

    def scores(self, batch: TaskBatch, *, every_step: bool) -> list[list[float]]:
        return [[self._score(task)] for task in batch.tasks()]

    def _score(self, task: Task) -> float:
        distances = torch.cdist(task.query_images.flatten(1), task.support_images.flatten(1))
        return score(-_nearest_by_class(distances, task), task.query_labels)


def _nearest_by_class(distances: torch.Tensor, task: Task) -> torch.Tensor:
    """Distances (n, N·K) to the support images → smallest per class (n, N)."""
    return distances.reshape(len(distances), task.ways, -1).amin(2)


def evaluate_cell(
    contender: Contender,
    sampler: Sampler,
    shape: TaskShape,
    *,
    episodes: int,
    every_step: bool = True,
    advance: Advance | None = None,
    group: ProcessGroup = SINGLE,
) -> Cell:
    """Scores of episodes 0..E−1 of the sampler's stream, all of one shape.

    The processes of a group take a share of the episodes each, and get the scores of all.
    """
    mine = group.share(range(episodes))
    own: list[list[float]] = []
    source = sampler.source
    features = isinstance(source, PreparedImages) and source.has_features
    at_once = _OF_FEATURES_AT_ONCE if features else _EPISODES_AT_ONCE
    for start in range(0, len(mine), at_once):
        indices = mine[start : start + at_once]
        with memory_errors("lower --ways or --queries, or --device cpu"):
            batch = sampler.batch(indices, shape)
            own += contender.scores(batch, every_step=every_step)
        if advance is not None:
            advance(round(episodes * len(own) / len(mine)))
    scores = group.gather(own)
    return Cell(contender.name, contender.normalization, *shape, scores, sampler.objective)


def evaluate_plan(
    plan: Sequence[tuple[Contender, int]],
    sampler: Sampler,
    *,
    episodes: int,
    console: Console,
    every_step: bool = True,
    group: ProcessGroup = SINGLE,
) -> list[Cell]:
    """Each contender at each number of ways, at all shots of the sampler: the same episodes."""
    cells = []
    for contender, ways in plan:
        for shots in sampler.shots:
            what = f"{contender.name}, {ways} ways, {shots} shots"
            with console.progress(what, episodes) as advance:
                cell = evaluate_cell(
                    contender,
                    sampler,
                    TaskShape(ways, shots),
                    episodes=episodes,
                    every_step=every_step,
                    advance=advance,
                    group=group,
                )
            cells.append(cell)
    return cells


def able_ways(
    contender: Contender, ways: Sequence[int], image_shape: tuple[int, int, int]
) -> tuple[list[int], UsageError | None]:
    """The numbers of ways that a contender can do, and why it cannot do another one."""
    able, refusal = [], None
    for n in ways:
        try:
            contender.check((n,), image_shape)
            able.append(n)
        except UsageError as exc:
            refusal = exc
    return able, refusal
