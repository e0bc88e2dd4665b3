"""Drawing the next tasks while the device computes the current ones."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.tasks.objective import Objective
from hidra_cli.tasks.shape import TaskShape
from hidra_cli.tasks.sources import Sampler, TaskSource

_Request = tuple[tuple[int, ...], TaskShape]


class Prefetcher:
    """A sampler that draws the next tasks in a thread.

    Tasks are functions of their indices, so they are the same as without prefetching. Everything
    that the thread puts on a GPU goes through the same stream as all other work, in order.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._pending: tuple[_Request, Future[TaskBatch]] | None = None

    @property
    def source(self) -> TaskSource:
        return self._sampler.source

    @property
    def objective(self) -> Objective:
        return self._sampler.objective

    @property
    def ways(self) -> tuple[int, ...]:
        return self._sampler.ways

    @property
    def shots(self) -> tuple[int, ...]:
        return self._sampler.shots

    @property
    def queries(self) -> int:
        return self._sampler.queries

    def shape(self, meta_batch: int) -> TaskShape:
        """The shape of a meta-batch."""
        return self._sampler.shape(meta_batch)

    def prefetch(self, episodes: Sequence[int], shape: TaskShape) -> None:
        """Begin to draw the tasks that the next call of `batch` will ask for."""
        request = tuple(episodes), shape
        self._pending = request, self._thread.submit(self._sampler.batch, *request)

    def batch(self, episodes: Sequence[int], shape: TaskShape) -> TaskBatch:
        """Some tasks: the prefetched ones, if they are the same.

        An error of drawing in the thread is raised here.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            request, drawn = pending
            if request == (tuple(episodes), shape):
                return drawn.result()
            drawn.cancel()
        return self._sampler.batch(episodes, shape)
