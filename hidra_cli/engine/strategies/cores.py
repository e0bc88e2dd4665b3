"""A task per core: on threads, or in worker processes."""

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
from hidra_cli.system.worker_pool import WorkerLostError, WorkerPool, operator_threads

# Seconds of work on threads before "auto" starts workers. Workers need two seconds to start.
PATIENCE = 10.0

# All strategies share it, so that the test after a training finds workers that are ready.
POOL = WorkerPool(keep_freed_memory)


class Threads(TaskByTask):
    """One task per core, each on a thread whose operators use only that core.

    With more cores than tasks, each task's operators use an equal part of the cores. PyTorch's
    operators release the interpreter while they compute. Every thread has a replica of the modules,
    because a functional call replaces a module's weights for its duration. The parameters are the
    same tensors.
    Gradients are added in the order of the tasks.

    Args:
        workers: the number of threads; by default the number that PyTorch uses for one operator.
    """

    name = "threads"

    def __init__(self, learner: Learner, *, workers: int | None = None, **options: Any) -> None:
        super().__init__(learner, **options)
        self.workers = workers or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.workers, "task")

    def between_tasks(self) -> AbstractContextManager[None]:
        """One thread for operators: idle OpenMP threads spin for milliseconds and hold cores."""
        return operator_threads(1)

    def each(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> Iterator[T]:
        """The result of the work for each task, in order; all threads are idle when one fails."""
        # New replicas each time: hooks of the head may have changed more than parameters.
        free = [_replica(self.learner) for _ in range(min(self.workers, len(batch)))]
        cores = self.workers // len(free)

        def run(task: Task) -> T:
            torch.set_num_threads(cores)  # for operators of this thread
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
    """As `Threads`, with a process for each core. It uses threads until the workers are ready.

    Args:
        patience: seconds of work before workers are started, so that short work needs none; 0
            starts them at once and waits for them.
        options: as in `Threads`; `workers` counts processes, including this one.
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
        results = self._in_processes(batch, work)
        yield from super().each(batch, work) if results is None else results
        self._worked += time.monotonic() - begun

    def _in_processes(self, batch: TaskBatch, work: Callable[[Learner, Task], T]) -> list[T] | None:
        """The results for all tasks; None if the workers are not ready or lost."""
        others = self.other_processes(len(batch))
        if not others or self.fault:
            return None
        try:
            if not self._workers_ready(others):
                return None
            processes = others + 1
            threads = self.workers // processes
            return POOL.map(work, self.learner, batch.tasks(), processes=processes, threads=threads)
        except WorkerLostError as lost:
            self.fault = str(lost)
            return None

    def _workers_ready(self, others: int) -> bool:
        """Whether `others` workers are ready. They are started after the seconds of patience."""
        missing = others - len(POOL.pids)
        if missing > 0 and self.patience:
            if self._worked < self.patience:
                return False
            if missing * held_memory(self.learner.device) > available_memory() / 2:
                return False
        return POOL.ready(others, wait=not self.patience)


def _replica(learner: Learner) -> Learner:
    """A copy of the modules around the same parameters and buffers."""
    held = [*learner.parameters(), *learner.buffers()]
    return copy.deepcopy(learner, {id(tensor): tensor for tensor in held})
