"""The evaluation protocol: fixed episodes, scores per inner step, intervals, paired differences.

Shapes: E episodes, S inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from hidra_cli.api.data import Split
from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.inner_loop import score
from hidra_cli.engine.task_batch import Task, TaskBatch
from hidra_cli.runs.records import EvaluatedModel
from hidra_cli.runs.scores import Cell
from hidra_cli.system.console import Advance, Console
from hidra_cli.system.distributed import SINGLE, ProcessGroup
from hidra_cli.tasks.objective import CLASSIFICATION
from hidra_cli.tasks.shape import TaskShape
from hidra_cli.tasks.sources import Sampler, TaskSource, feasible_ways, objective_of, sampler_of

if TYPE_CHECKING:
    from hidra_cli.runs.model import TrainedModel


_EPISODES_AT_ONCE = 16


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
    found: list[list[float]] = []
    for start in range(0, len(mine), _EPISODES_AT_ONCE):
        chosen = mine[start : start + _EPISODES_AT_ONCE]
        with memory_errors():
            batch = sampler.batch(chosen, shape)
            found += contender.scores(batch, every_step=every_step)
        if advance is not None:
            advance(round(episodes * len(found) / len(mine)))
    scores = group.gather(found)
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


def _check_same(models: list[TrainedModel], data: TaskSource, group: ProcessGroup) -> None:
    """A run that is being trained may get another checkpoint between two processes' reading."""
    import json

    seen = [[model.name, model.sha256] for model in models]
    group.check_equal("models and data", json.dumps([seen, data.content_hash], sort_keys=True))


def _evaluate_all(
    contenders: list[Contender],
    data: TaskSource,
    split: Split,
    ways: tuple[int, ...],
    shots: tuple[int, ...],
    *,
    queries: int,
    episodes: int,
    seed: int,
    within_groups: bool,
    every_step: bool,
    device: torch.device,
    console: Console,
    group: ProcessGroup,
) -> list[Cell]:
    """Every contender at every number of ways and shots it can do, on the same episodes."""
    plan = _plan(contenders, ways, data.image_shape, console)
    sampler = sampler_of(
        data, split, ways, shots, queries, seed, device=device, within_groups=within_groups
    )
    return evaluate_plan(
        plan,
        sampler,
        episodes=episodes,
        console=console,
        every_step=every_step,
        group=group,
    )


def _describe(model: TrainedModel) -> EvaluatedModel:
    return EvaluatedModel(
        name=model.name,
        checkpoint=str(model.path),
        iteration=model.meta.iteration,
        steps=model.steps,
        normalization=model.normalization,
        settings=model.meta.settings,
    )


def _check_pixels(data: TaskSource) -> None:
    from hidra_cli.errors import UsageError

    if objective_of(data) is not CLASSIFICATION:
        raise UsageError(
            "--pixels needs images", why=f"{data.dataset} has none", fix="leave --pixels out"
        )


def _default_ways(models: list[TrainedModel], data: TaskSource, split: Split) -> tuple[int, ...]:
    """Those of a table as far as the split goes, and every fixed model's own."""
    own = {m.max_ways for m in models if not m.learner.head.any_ways}
    usual: tuple[int, ...] = ()
    if any(m.learner.head.any_ways for m in models):
        usual = feasible_ways(data, split, objective_of(data).default_ways)
    return tuple(sorted({*usual, *own}))


def _distinct(models: list[TrainedModel]) -> list[TrainedModel]:
    """The models, with names that tell them apart."""
    from dataclasses import replace

    names = [model.name for model in models]
    return [
        replace(model, name=f"{model.name} #{index + 1}") if names.count(model.name) > 1 else model
        for index, model in enumerate(models)
    ]


def _plan(
    contenders: list[Contender],
    ways: tuple[int, ...],
    image_shape: tuple[int, int, int],
    console: Console,
) -> list[tuple[Contender, int]]:
    """Who is evaluated at which ways. In company, a fixed-way model does just what it can."""
    from hidra_cli.errors import UsageError

    plan: list[tuple[Contender, int]] = []
    for contender in contenders:
        refusal: UsageError | None = None
        able = []
        for n in ways:
            try:
                contender.check((n,), image_shape)
                able.append((contender, n))
            except UsageError as exc:
                refusal = exc
        if refusal is not None and (len(contenders) == 1 or not able):
            raise refusal
        if refusal is not None:
            console.note(f"{contender.name}: only at {', '.join(str(n) for _, n in able)} ways")
        plan += able
    return plan
