"""How the tasks of a meta-batch are spread over a device. All give the gradient of the loop.

- `loop`: one task after another, each operator on all cores; the specification (inner_loop.py).
- `threads`: one task per core. Bit for bit the loop on one thread, on as many cores as tasks or
  fewer.
- `processes`: the same in processes of their own, which do not wait for each other (crew.py); the
  same bits.
- `batched`: all tasks at once, with a weight of its own for each where weights differ.
- `compiled`: as batched, the whole meta-gradient traced and compiled as one function.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from hidra_cli.crew import Crew, LostError, threads_of_operators
from hidra_cli.engine.batching import StackedLearner, StackedTask, chunks, stacked
from hidra_cli.engine.compilation import CompiledGradient
from hidra_cli.engine.devices import held_memory, keep_freed_memory
from hidra_cli.engine.inner_loop import (
    InnerLoop,
    Outcome,
    adapt,
    adapted,
    leave_alone,
    query_score,
    score,
)
from hidra_cli.engine.learner import Learner, Weights
from hidra_cli.engine.recomputation import Gradients, outer_gradients
from hidra_cli.engine.tasks import Examples, Task, TaskBatch
from hidra_cli.host import available_memory

StrategyName = Literal["loop", "threads", "processes", "batched", "compiled"]
T = TypeVar("T")
# Of work in threads, before "auto" starts other processes: they take two to be ready.
PATIENCE = 10.0
# One for all strategies, so that the test after a training does not start others.
CREW = Crew(keep_freed_memory)


class Strategy(ABC):
    """One way of computing for many tasks.

    Args:
        learner: holds the meta-parameters.
        recompute: keep one inner step's graph at a time, and compute each twice
            (recomputation.py).
        micro_batch: so many tasks at once, of strategies that take several at once; 0 for all.
    """

    name: ClassVar[str]
    fault = ""  # why it is not at work in its own way any more, where it is not

    def __init__(self, learner: Learner, *, recompute: bool = False, micro_batch: int = 0) -> None:
        self.learner = learner
        self.recompute = recompute
        self.micro_batch = micro_batch

    @abstractmethod
    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        """Parts of the gradient of the mean query loss over T tasks, that add up to it."""

    @abstractmethod
    def scores(
        self, batch: TaskBatch, inner: InnerLoop, steps: int, *, every_step: bool = False
    ) -> list[list[float]]:
        """For each task the query score after S steps; or before and after each, S + 1 numbers."""

    def tasks_at_once(self, tasks: int) -> int:
        """How many of T tasks are in memory together."""
        return 1

    def other_processes(self, tasks: int) -> int:
        """How many other processes share T tasks, if it takes long."""
        return 0

    def beside(self) -> AbstractContextManager[None]:
        """For what is computed between tasks, so that it takes no core from them."""
        return nullcontext()

    def meta_gradient(self, batch: TaskBatch, inner: InnerLoop) -> Outcome:
        """Add the gradient of the mean query loss over T tasks to the meta-parameters' `.grad`."""
        parameters = list(self.learner.parameters())
        losses, scores, tasks = [], [], []
        with self.beside():
            for part in self.gradients(batch, inner):
                for parameter, gradient in zip(parameters, part.gradients, strict=True):
                    _add(parameter, gradient)
                losses.append(part.loss)
                scores.append(part.score)
                tasks.append(part.tasks)
            leave_alone(self.learner)
        return Outcome(fmean(losses, tasks), fmean(scores, tasks))


class TaskByTask(Strategy):
    """Each task by itself."""

    @abstractmethod
    def each(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> Iterable[T]:
        """The work done for each task, in order."""

    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        work = partial(_gradients, inner=inner, of=len(batch), recompute=self.recompute)
        yield from self.each(batch, work)

    def scores(
        self, batch: TaskBatch, inner: InnerLoop, steps: int, *, every_step: bool = False
    ) -> list[list[float]]:
        work = partial(task_scores, inner=inner, steps=steps, every_step=every_step)
        return list(self.each(batch, work))


class Loop(TaskByTask):
    """One task after another."""

    name = "loop"

    def each(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> Iterable[T]:
        return (work(self.learner, task) for task in batch.tasks())


class Threads(TaskByTask):
    """One task per core, each on a thread of its own, whose operators use that one core.

    Where there are more cores than tasks, a task's operators share those that are its part.
    PyTorch's operators let other threads run while they compute. Every thread has a replica of the
    modules, because a functional call swaps a module's weights while it lasts; the parameters are
    the same tensors. Gradients are added in the order of the tasks.

    Args:
        workers: threads; as many as PyTorch would use for one operator.
    """

    name = "threads"

    def __init__(self, learner: Learner, *, workers: int | None = None, **options: Any) -> None:
        super().__init__(learner, **options)
        self.workers = workers or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.workers, "task")

    def tasks_at_once(self, tasks: int) -> int:
        return min(self.workers, tasks)

    def beside(self) -> AbstractContextManager[None]:
        """On one thread: those that an operator has called wait for more at work, and hold cores.

        With GNU's OpenMP that is for milliseconds, of which a task then misses half.
        """
        return threads_of_operators(1)

    def each(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> Iterator[T]:
        """The work done for each task, in order; no thread is left at work when one fails."""
        # New ones each time: hooks of the head may have changed more than parameters.
        free = [_replica(self.learner) for _ in range(min(self.workers, len(batch)))]
        cores = self.workers // len(free)

        def run(task: Task) -> T:
            torch.set_num_threads(cores)  # of operators on this thread
            learner = free.pop()
            try:
                return work(learner, task)
            finally:
                free.append(learner)

        waiting: list[Future[T]] = [self._pool.submit(run, task) for task in batch.tasks()]
        try:
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)


class Processes(Threads):
    """As threads, with a process for each core; threads until the processes are there.

    Args:
        patience: seconds of work until they are started, so that what is short goes without; 0
            starts them at once and waits for them.
        options: as of threads; `workers` are processes, this one among them.
    """

    name = "processes"

    def __init__(self, learner: Learner, *, patience: float = 0, **options: Any) -> None:
        super().__init__(learner, **options)
        self.patience = patience
        self._worked = 0.0

    def other_processes(self, tasks: int) -> int:
        return self.tasks_at_once(tasks) - 1

    def each(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> Iterator[T]:
        begun = time.monotonic()
        found = self._together(batch, work)
        yield from super().each(batch, work) if found is None else found
        self._worked += time.monotonic() - begun

    def _together(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> list[T] | None:
        """What the processes find; None where they are not there."""
        others = self.other_processes(len(batch))
        if not others or self.fault:
            return None
        try:
            if not self._called(others):
                return None
            processes = others + 1
            threads = self.workers // processes
            return CREW.share(
                work, self.learner, batch.tasks(), processes=processes, threads=threads
            )
        except LostError as lost:
            self.fault = str(lost)
            return None

    def _called(self, others: int) -> bool:
        """Whether so many other processes are ready; they are called when it is time."""
        missing = others - len(CREW.pids)
        if missing > 0 and self.patience:
            if self._worked < self.patience:
                return False
            if missing * held_memory(self.learner.device) > available_memory() / 2:
                return False
        return CREW.ready(others, wait=not self.patience)


class Batched(Strategy):
    """All tasks at once, by `torch.vmap`: many small operators become few large ones.

    Weights that all tasks share are not copied for each: with identical neurons the first inner
    step's features are one pass with one set of weights, and with one inner step there is no
    backbone per task at all.
    """

    name = "batched"

    def tasks_at_once(self, tasks: int) -> int:
        return min(self.micro_batch or tasks, tasks)

    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        learner = StackedLearner(self.learner)
        for chunk in chunks(batch, self.micro_batch):
            yield _gradients(learner, stacked(chunk), inner, len(batch), self.recompute)

    def scores(
        self, batch: TaskBatch, inner: InnerLoop, steps: int, *, every_step: bool = False
    ) -> list[list[float]]:
        learner = StackedLearner(self.learner)
        found: list[list[float]] = []
        for chunk in chunks(batch, self.micro_batch):
            task = stacked(chunk)
            path = adapt(learner, task, inner, meta=False, steps=steps)
            wanted = (w for step, w in enumerate(path) if every_step or step == steps)
            by_step = [_stacked_scores(learner, weights, task) for weights in wanted]
            found += map(list, zip(*by_step, strict=True))
        return found


class Compiled(Batched):
    """As batched, with the whole meta-gradient as one compiled function for each shape of tasks.

    Args:
        backend: of `torch.compile`.
    """

    name = "compiled"

    def __init__(self, learner: Learner, *, backend: str = "inductor", **options: Any) -> None:
        super().__init__(learner, **options)
        self._backend = backend
        self._compiled: dict[Any, CompiledGradient] = {}

    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        for chunk in chunks(batch, self.micro_batch):
            task = stacked(chunk)
            shapes = task.support_images.shape, task.query_images.shape, task.ways
            key = shapes, inner, len(batch)
            if key not in self._compiled:
                self._compiled[key] = CompiledGradient(
                    self.learner, task, inner, len(batch), self._backend
                )
            yield self._compiled[key](task)


@dataclass(frozen=True)
class Choice:
    """The strategy of a run, and why it is not the one that was asked for, where it is not."""

    strategy: Strategy
    why: str = ""


def choose(
    name: StrategyName | Literal["auto"],
    learner: Learner,
    image_shape: tuple[int, int, int],
    *,
    recompute: bool = False,
    micro_batch: int = 0,
) -> Choice:
    """The strategy of a name, or one that backbone and head can do.

    "auto" is a task per core on a CPU, in processes where it takes long, and all tasks at once on a
    GPU.

    Args:
        image_shape: (C, H, W), for a trial of one small step.
    """

    def make(strategy: Callable[..., Strategy]) -> Strategy:
        return strategy(learner, recompute=recompute, micro_batch=micro_batch)

    if name != "loop" and _draws(learner, image_shape):
        why = "the backbone draws random numbers as it runs, which must come in the tasks' order"
        return Choice(Loop(learner), "" if name == "auto" else why)
    if name == "auto":
        if learner.device.type == "cpu":
            return Choice(make(partial(Processes, patience=PATIENCE)))
        name = "batched"
    if name in ("batched", "compiled"):
        if fault := _cannot_stack(learner, image_shape):
            return Choice(make(Loop), f"backbone or head cannot be batched: {fault}")
        return Choice(make(Batched if name == "batched" else Compiled))
    by_name: dict[str, type[TaskByTask]] = {
        "loop": Loop,
        "threads": Threads,
        "processes": Processes,
    }
    return Choice(make(by_name[name]))


def _draws(learner: Learner, image_shape: tuple[int, int, int]) -> bool:
    """Whether a forward pass of the backbone takes numbers from PyTorch's own generator."""
    with torch.random.fork_rng(), torch.no_grad():
        images = torch.zeros(2, *image_shape, device=learner.device, dtype=learner.dtype)
        before = torch.get_rng_state()
        on_device = torch.cuda.get_rng_state() if images.is_cuda else before
        learner.features(dict(learner.backbone.named_parameters()), images)
        after = torch.cuda.get_rng_state() if images.is_cuda else torch.get_rng_state()
        return not (torch.equal(before, torch.get_rng_state()) and torch.equal(on_device, after))


def _cannot_stack(learner: Learner, image_shape: tuple[int, int, int]) -> str:
    """Why a small meta-gradient of two tasks at once fails; "" where it does not."""
    ways = learner.head.max_ways if not learner.head.any_ways else 2
    labels = torch.arange(ways, device=learner.device).expand(2, -1)
    images = torch.zeros(2, ways, *image_shape, device=learner.device, dtype=learner.dtype)
    examples = Examples(images, labels)
    task = stacked(TaskBatch(examples, examples, ways, 1, (0, 1)))
    try:
        # Two steps: weights are shared in the first alone.
        inner = InnerLoop(2, 0.01)
        outer_gradients(StackedLearner(learner), task, inner, list(learner.parameters()))
    except Exception as exc:  # whatever a plugin's code does under vmap
        return f"{type(exc).__name__}: {exc}".split("\n")[0]
    return ""


def task_scores(
    learner: Learner, task: Task, inner: InnerLoop, steps: int, *, every_step: bool
) -> list[float]:
    """The query score of one task after S steps; or before and after each, S + 1 numbers."""
    if not every_step:
        weights = adapted(learner, task, inner, meta=False, steps=steps)
        return [query_score(learner, weights, task)]
    path = adapt(learner, task, inner, meta=False, steps=steps)
    return [query_score(learner, weights, task) for weights in path]


@torch.no_grad()
def _stacked_scores(learner: StackedLearner, weights: Weights, task: StackedTask) -> list[float]:
    logits = learner.query_logits(weights, task)
    return [score(*of_task) for of_task in zip(logits, task.query_labels, strict=True)]


def _gradients(
    learner: Learner, task: Task, inner: InnerLoop, of: int, recompute: bool
) -> Gradients:
    parameters = list(learner.parameters())
    return outer_gradients(learner, task, inner, parameters, of=of, recompute=recompute)


def _replica(learner: Learner) -> Learner:
    """The same modules once more, around the same parameters and buffers."""
    held = [*learner.parameters(), *learner.buffers()]
    return copy.deepcopy(learner, {id(tensor): tensor for tensor in held})


def _add(parameter: nn.Parameter, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
