"""The next tasks, drawn while the device is at work on those before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.tasks.sources import Sampler


class Ahead:
    """A sampler that can be told which tasks will be asked for next, and draws them in a thread.

    Tasks are functions of their indices, so that they are the same as without it. Whatever the
    thread puts on a GPU goes through the stream that everything goes through, in order.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._expected: tuple[tuple[Any, ...], Future[TaskBatch]] | None = None

    @property
    def ways(self) -> tuple[int, ...]:
        return self._sampler.ways

    @property
    def shots(self) -> tuple[int, ...]:
        return self._sampler.shots

    @property
    def queries(self) -> int:
        return self._sampler.queries

    def shape(self, meta_batch: int) -> tuple[int, int]:
        """(ways, shots) of a meta-batch."""
        return self._sampler.shape(meta_batch)

    def expect(
        self, source: Any, episodes: Sequence[int], ways: int, shots: int, device: torch.device
    ) -> None:
        """Begin to draw what the next call of `batch` will ask for."""
        asked = (source, tuple(episodes), ways, shots, device)
        self._expected = asked, self._thread.submit(self._sampler.batch, *asked)

    def batch(
        self, source: Any, episodes: Sequence[int], ways: int, shots: int, device: torch.device
    ) -> TaskBatch:
        """Some tasks: those drawn ahead, if they are the ones; an error of drawing comes here."""
        expected, self._expected = self._expected, None
        if expected is not None:
            (known, *others), drawn = expected
            if known is source and others == [tuple(episodes), ways, shots, device]:
                return drawn.result()
            drawn.cancel()
        return self._sampler.batch(source, episodes, ways, shots, device)
