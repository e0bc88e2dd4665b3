"""A task per core: threads, or processes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any

import torch

from hidra_cli.engine.devices import held_memory
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.strategies.base import T, TaskByTask
from hidra_cli.engine.task_batch import Task, TaskBatch
from hidra_cli.system.memory import available_memory, keep_freed_memory
from hidra_cli.system.worker_pool import LostError, WorkerPool, threads_of_operators

# Of work in threads, before "auto" starts other processes: they take two to be ready.
PATIENCE = 10.0


# One for all strategies, so that the test after a training does not start others.
POOL = WorkerPool(keep_freed_memory)


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
        return min(self.workers, tasks) - 1

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
            return POOL.share(
                work, self.learner, batch.tasks(), processes=processes, threads=threads
            )
        except LostError as lost:
            self.fault = str(lost)
            return None

    def _called(self, others: int) -> bool:
        """Whether so many other processes are ready; they are called when it is time."""
        missing = others - len(POOL.pids)
        if missing > 0 and self.patience:
            if self._worked < self.patience:
                return False
            if missing * held_memory(self.learner.device) > available_memory() / 2:
                return False
        return POOL.ready(others, wait=not self.patience)


def _replica(learner: Learner) -> Learner:
    """The same modules once more, around the same parameters and buffers."""
    held = [*learner.parameters(), *learner.buffers()]
    return copy.deepcopy(learner, {id(tensor): tensor for tensor in held})
