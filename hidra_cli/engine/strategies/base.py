"""The base of all strategies, and the loop. A strategy spreads the tasks of a meta-batch.

All strategies give the gradient of the loop:

- `loop`: one task after another, each operator on all cores; the specification (inner_loop.py).
- `threads`: one task per core; the bits of the loop on one thread, on any number of cores up to the
  number of tasks (cores.py).
- `processes`: as threads, in worker processes that do not wait for each other; the same bits.
- `batched`: all tasks at once; weights are separate only if they differ (stacked.py).
- `captured`: as batched, the whole meta-gradient traced (tracing.py) and replayed as a CUDA graph
  (capture.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import fmean
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from hidra_cli.engine.inner_loop import (
    InnerLoop,
    Outcome,
    adapt,
    adapted,
    leave_alone,
    query_score,
)
from hidra_cli.engine.learner import Learner, meta_training
from hidra_cli.engine.strategies.recomputation import Gradients, outer_gradients
from hidra_cli.engine.task_batch import Task, TaskBatch

T = TypeVar("T")


class Strategy(ABC):
    """A way to compute many tasks.

    Args:
        learner: holds the meta-parameters.
        recompute: keep the graph of one inner step at a time, and compute each step twice
            (recomputation.py).
        micro_batch: the number of tasks at once, in strategies that take several; 0 for all.

    Attributes:
        fault: the reason for using a simpler strategy instead; "" if there is none.
    """

    name: ClassVar[str]
    fault = ""

    def __init__(self, learner: Learner, *, recompute: bool = False, micro_batch: int = 0) -> None:
        self.learner = learner
        self.recompute = recompute
        self.micro_batch = micro_batch

    @abstractmethod
    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        """Parts whose sum is the gradient of the mean query loss over T tasks."""

    @abstractmethod
    def scores_of(
        self, batch: TaskBatch, inner: InnerLoop, steps: int, every_step: bool
    ) -> list[list[float]]:
        """The result of `scores`. For a frozen network the tasks hold features."""

    def scores(
        self, batch: TaskBatch, inner: InnerLoop, steps: int, *, every_step: bool = False
    ) -> list[list[float]]:
        """For each task the query score after S steps, or after 0, 1, …, S steps (every_step)."""
        return self.scores_of(batch.mapped(self.learner.precomputed), inner, steps, every_step)

    def other_processes(self, tasks: int) -> int:
        """The number of worker processes that share T tasks once training takes long enough."""
        return 0

    def between_tasks(self) -> AbstractContextManager[None]:
        """A context for the work between tasks. It leaves the cores of the tasks free."""
        return nullcontext()

    def meta_gradient(self, batch: TaskBatch, inner: InnerLoop) -> Outcome:
        """Add the gradient of the mean query loss over T tasks to the meta-parameters' `.grad`."""
        parameters = list(self.learner.parameters())
        losses, scores, tasks = [], [], []
        batch = batch.mapped(self.learner.precomputed)
        with self.between_tasks(), meta_training(self.learner):
            for part in self.gradients(batch, inner):
                for parameter, gradient in zip(parameters, part.gradients, strict=True):
                    _add(parameter, gradient)
                losses.append(part.loss)
                scores.append(part.score)
                tasks.append(part.tasks)
            leave_alone(self.learner)
        return Outcome(fmean(losses, tasks), fmean(scores, tasks))


class TaskByTask(Strategy):
    """Strategies that compute single tasks."""

    @abstractmethod
    def each(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> Iterable[T]:
        """The result of the work for each task, in order."""

    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        work = partial(task_gradients, inner=inner, of=len(batch), recompute=self.recompute)
        yield from self.each(batch, work)

    def scores_of(
        self, batch: TaskBatch, inner: InnerLoop, steps: int, every_step: bool
    ) -> list[list[float]]:
        work = partial(task_scores, inner=inner, steps=steps, every_step=every_step)
        return list(self.each(batch, work))


class Loop(TaskByTask):
    """One task after another."""

    name = "loop"

    def each(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> Iterable[T]:
        return (work(self.learner, task) for task in batch.tasks())


def task_scores(
    learner: Learner, task: Task, inner: InnerLoop, steps: int, *, every_step: bool
) -> list[float]:
    """The query score of one task after S steps, or after 0, 1, …, S steps (every_step)."""
    if not every_step:
        weights = adapted(learner, task, inner, meta=False, steps=steps)
        return [query_score(learner, weights, task)]
    path = adapt(learner, task, inner, meta=False, steps=steps)
    return [query_score(learner, weights, task) for weights in path]


def task_gradients(
    learner: Learner, task: Task, inner: InnerLoop, of: int, recompute: bool
) -> Gradients:
    """The gradient of one task, or of stacked ones, divided by the number of tasks `of`."""
    parameters = list(learner.parameters())
    return outer_gradients(learner, task, inner, parameters, of=of, recompute=recompute)


def _add(parameter: nn.Parameter, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
