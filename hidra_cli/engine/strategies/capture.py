"""The traced meta-gradient as a CUDA graph: recorded once per shape of tasks, then replayed.

A second-order step of small tasks is thousands of kernels, each shorter than its launch. A graph
launches all of them at once. It needs no compiler, and is ready after a few seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.strategies.recomputation import Gradients
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.engine.strategies.stacking import StackedTask, chunks, stacked
from hidra_cli.engine.strategies.tracing import Results, TracedGradient
from hidra_cli.engine.task_batch import TaskBatch

# Programs that are kept. A run of 2 to 50 ways has 49; each holds a few megabytes of the host.
MOST_PROGRAMS = 64
_WARM_UPS = 2

Run = Callable[[], list[Tensor]]


class Recorder(Protocol):
    """Records a function of tensors at fixed addresses."""

    def __call__(self, run: Run) -> tuple[Callable[[], None], list[Tensor]]:
        """A function that computes `run` again, and the tensors that it writes the results to."""


class CudaGraphs:
    """Records CUDA graphs that share one pool of memory.

    They may share it because only one is at work at a time, and its results are copied before the
    next begins. The largest should be recorded first: others then fit into its memory.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> tuple[Callable[[], None], list[Tensor]]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):  # cuBLAS and cuDNN allocate and choose now
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: meanwhile another thread may copy the next tasks to the device.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            results = run()
        return graph.replay, results


def run_again(run: Run) -> tuple[Callable[[], None], list[Tensor]]:
    """What stands in for a graph on devices that have none: the program itself runs again."""
    results = run()

    def replay() -> None:
        for result, value in zip(results, run(), strict=True):
            result.copy_(value)

    return replay, results


class Captured(Batched):
    """As batched, with the whole meta-gradient as one CUDA graph for each shape of tasks.

    Evaluation, and a meta-gradient with `recompute`, are those of `Batched`.

    Args:
        learner: holds the meta-parameters, at addresses that stay.
        recorder: makes the graphs; by default of the learner's device.
        most: how many programs are kept; the least recently used goes first.
    """

    name = "captured"

    def __init__(
        self,
        learner: Learner,
        *,
        recorder: Recorder | None = None,
        most: int = MOST_PROGRAMS,
        **options: Any,
    ) -> None:
        super().__init__(learner, **options)
        self._recorder = recorder or (CudaGraphs() if _is_cuda(learner) else run_again)
        self._most = most
        self._programs: OrderedDict[tuple[object, ...], _Recorded] = OrderedDict()

    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        if self.recompute:
            yield from super().gradients(batch, inner)
            return
        for chunk in chunks(batch, self.micro_batch):
            task = stacked(chunk)
            yield self._program(task, inner, len(batch))(task, inner)

    def _program(self, task: StackedTask, inner: InnerLoop, of: int) -> _Recorded:
        key = TracedGradient.key(task, inner, of)
        if key not in self._programs:
            while len(self._programs) >= self._most:
                self._programs.popitem(last=False)
            traced = TracedGradient(self.learner, task, inner, of)
            self._programs[key] = _Recorded(traced, task, inner, self._recorder)
        self._programs.move_to_end(key)
        return self._programs[key]


class _Recorded:
    """A traced program whose inputs and results have fixed addresses."""

    def __init__(
        self, traced: TracedGradient, task: StackedTask, inner: InnerLoop, recorder: Recorder
    ) -> None:
        self._traced = traced
        self._inputs = [tensor.clone() for tensor in traced.inputs(task, inner)]
        start = traced.start(task)
        self._start = {name: value.detach().clone() for name, value in start.items()}
        self._replay, self._results = recorder(lambda: traced.run(self._start, self._inputs))

    def __call__(self, task: StackedTask, inner: InnerLoop) -> Gradients:
        start = self._traced.start(task)
        values = [*self._traced.inputs(task, inner), *(value.detach() for value in start.values())]
        fixed = [*self._inputs, *self._start.values()]
        for own, value in zip(fixed, values, strict=True):
            own.copy_(value, non_blocking=True)
        self._replay()
        results = Results.of([tensor.clone() for tensor in self._results])
        gradients = self._traced.by_parameter(results, start)
        return Gradients(
            gradients, results.loss.item() / task.count, results.score.item(), task.count
        )


def _is_cuda(learner: Learner) -> bool:
    return learner.device.type == "cuda"
