"""Validation: the same episodes every time, so that checkpoints can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hidra_cli.api.data import Split
from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.strategies.base import Strategy
from hidra_cli.errors import DataError
from hidra_cli.runs.records import ValidationRecord
from hidra_cli.runs.scores import interval
from hidra_cli.settings.schema import Settings
from hidra_cli.system.distributed import ProcessGroup
from hidra_cli.system.random_streams import stream_key
from hidra_cli.tasks.episodes import fewer_ways
from hidra_cli.tasks.objective import Objective
from hidra_cli.tasks.sources import TaskSource, feasible_ways, sampler_of


@dataclass(frozen=True)
class Validation:
    """Mean score over the fixed validation episodes, and its 95 % half-width."""

    iteration: int
    score: float
    interval: float

    def record(self, objective: Objective) -> ValidationRecord:
        """The score under the name of its metric."""
        return ValidationRecord(
            iteration=self.iteration,
            metric=objective.key,
            score=self.score,
            interval=self.interval,
        )


class Validator:
    """The validation episodes of a run.

    Args:
        settings: of the run.
        data: what tasks are drawn from.
        device: where the tasks' tensors go.
        group: the processes that share the episodes.

    Attributes:
        ways: the numbers of ways of the training that the split has classes for.

    Raises:
        DataError: the split has too few classes or images.
    """

    def __init__(
        self, settings: Settings, data: TaskSource, device: torch.device, group: ProcessGroup
    ) -> None:
        tasks = settings.tasks
        self.settings = settings
        self.group = group
        self.ways = _ways_within(data, "val", tasks.ways)
        self.episodes = sampler_of(
            data, "val", self.ways, tasks.shots, tasks.queries, settings.run.seed, device=device
        )

    def validate(self, strategy: Strategy, inner: InnerLoop, iteration: int) -> Validation:
        """The mean score of the learner after `iteration` outer steps."""
        torch.manual_seed(stream_key(self.settings.run.seed, "validation"))
        size = self.settings.outer.meta_batch
        steps = self.settings.inner.steps_at_test
        scores: list[list[float]] = []
        mine = self.group.share(range(self.settings.outer.validation_episodes))
        for index in sorted({episode // size for episode in mine}):
            shape = self.episodes.shape(index)
            episodes = range(max(index * size, mine.start), min((index + 1) * size, mine.stop))
            with memory_errors():
                batch = self.episodes.batch(episodes, shape)
                of_tasks = strategy.scores(batch, inner, steps)
            scores += [of_task[-1:] for of_task in of_tasks]
        mean, half = interval(self.group.gather(scores)[:, 0])
        return Validation(iteration, mean, half)


def _ways_within(data: TaskSource, split: Split, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of ways that the split has classes for."""
    ways = feasible_ways(data, split, wanted)
    if not ways:
        most = data.most_ways(split) or 0
        raise DataError(
            f"{data.dataset} has too few classes in its {split} split",
            why=f"{most} classes; every number of --ways needs more",
            fix=fewer_ways(data.dataset, most),
        )
    return ways
