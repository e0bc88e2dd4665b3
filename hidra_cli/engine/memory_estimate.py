"""How much memory an outer step will take, told from a few small ones.

One task's meta-gradient is computed at few ways and few inner steps, while the bytes of all tensors
alive are counted. Both add the same each time, so that more of them are told by a straight line:

    task(N, S) = task(N₁, S₁) + slope by ways + slope by steps + slope by both

What an operator takes and frees within itself cannot be seen from here. Twice the largest tensor is
allowed for it: convolutions copy input and output into an order of their own. Nor is seen what lies
unused between the blocks of the CPU's heap, which differs from one start of a program to the next:
a third more is allowed, where between nothing and nine tenths were measured.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.strategies.base import Strategy
from hidra_cli.engine.strategies.recomputation import outer_gradients
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.engine.strategies.stacking import StackedLearner, stacked
from hidra_cli.engine.task_batch import TaskBatch

# From here on each way or step adds the same: few images take less than weights, and of identical
# neurons the first inner step has no weights of the task's own.
_FEW_WAYS, _FEW_STEPS = (4, 6), (2, 3)
_UNUSED_OF_HEAP = 1 / 3


@dataclass(frozen=True)
class MemoryEstimate:
    """The most bytes that training takes beside what the process held before.

    Attributes:
        weights: meta-parameters, their gradients and Adam's two moments.
        images: those of one meta-batch.
        task: the tensors of one task's meta-gradient, at their peak.
        step: what each further inner step adds to that.
        within: what operators take within themselves, for each task.
        tasks_at_once: how many are in memory together.
        heap: what lies unused between the blocks of a CPU's heap.
    """

    weights: int
    images: int
    task: int
    step: int
    within: int
    tasks_at_once: int
    heap: int

    @property
    def total(self) -> int:
        tasks = self.tasks_at_once * (self.task + self.within)
        return self.weights + self.images + tasks + self.heap


def estimate(
    strategy: Strategy,
    inner: InnerLoop,
    draw: Callable[[int], TaskBatch],
    ways: int,
    tasks: int,
) -> MemoryEstimate:
    """The memory of outer steps of T tasks.

    Args:
        strategy: how the tasks are spread. Of "compiled" the estimate is that of "batched", though
            a compiled function may need less.
        inner: the inner loop.
        draw: a batch of one task of so many ways, of the most shots there are.
        ways: N, the most there are.
        tasks: T, in one meta-batch.
    """
    learner, one = strategy.learner, draw(ways)
    own = sum(p.numel() * p.element_size() for p in learner.parameters())
    images = sum(e.images.numel() * e.images.element_size() for e in (one.support, one.query))

    def of_task(steps: int) -> Tensor:
        def with_ways(number: int) -> Tensor:
            return _task_bytes(strategy, _steps(inner, steps), draw(number))

        if ways <= _FEW_WAYS[1] or not _can_shrink(learner, one):
            return with_ways(ways)
        return _line(with_ways, _FEW_WAYS)(ways)

    by_steps = _line(of_task, _FEW_STEPS)
    few = inner.steps < _FEW_STEPS[0]
    task, within = (of_task if few else by_steps)(inner.steps).tolist()
    step = by_steps(_FEW_STEPS[1]) - by_steps(_FEW_STEPS[0])
    at_once = strategy.tasks_at_once(tasks)
    unused = _UNUSED_OF_HEAP if one.support.images.device.type == "cpu" else 0.0
    return MemoryEstimate(
        weights=4 * own,
        images=tasks * images,
        task=round(task),
        step=round(step[0].item()),
        within=round(within),
        tasks_at_once=at_once,
        heap=round(unused * at_once * (task + within)),
    )


def warm_up(strategy: Strategy, one: TaskBatch) -> None:
    """One step of a small task: what is loaded and made once is there from then on."""
    if _can_shrink(strategy.learner, one):
        _task_bytes(strategy, InnerLoop(1, 0.0), one)


def _line(measured: Callable[[int], Tensor], few: tuple[int, int]) -> Callable[[int], Tensor]:
    """The straight line through what is measured at two places."""
    low, high = few
    start = measured(low)
    slope = (measured(high) - start) / (high - low)
    return lambda wanted: start + slope * (wanted - low)


def _steps(inner: InnerLoop, steps: int) -> InnerLoop:
    """The inner loop with other steps; of a multi-step loss each still has a share."""
    shares = None if inner.shares is None else (0.0, *[1 / steps] * steps)
    return replace(inner, steps=steps, shares=shares)


def _can_shrink(learner: Learner, task: TaskBatch) -> bool:
    """Whether a task of fewer ways is one for the same head: of labels, not of values."""
    return learner.head.any_ways or not task.support.labels.is_floating_point()


def _task_bytes(strategy: Strategy, inner: InnerLoop, one: TaskBatch) -> Tensor:
    """Of one task's meta-gradient, of the strategy's kind: peak of tensors, and within operators.

    A head of a fixed number of ways keeps it: the last classes may have no images.
    """
    learner = strategy.learner
    one = one if learner.head.any_ways else replace(one, ways=learner.head.max_ways)
    at_once = isinstance(strategy, Batched)
    task = stacked(one) if at_once else one.task(0)
    run = StackedLearner(learner) if at_once else learner
    with torch.random.fork_rng(), PeakOfTensors() as peak:
        outer_gradients(run, task, inner, list(learner.parameters()), recompute=strategy.recompute)
    return torch.tensor([peak.most, 2 * peak.largest], dtype=torch.float64)


class PeakOfTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors made within it that are alive together.

    Attributes:
        held: bytes alive now.
        most: the most there were.
        largest: of one tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.most = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._know(storage, 0)  # it was there before, or is known
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            self._know(storage, storage.nbytes())
        return found

    def _know(self, storage: torch.UntypedStorage, size: int) -> None:
        # A storage's Python object lives as long as the storage itself.
        place = storage._cdata
        if place not in self._known:
            self._known.add(place)
            self.held += size
            self.most, self.largest = max(self.most, self.held), max(self.largest, size)
            weakref.finalize(storage, self._forget, place, size).atexit = False

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.held -= size


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return (tensor.untyped_storage() for tensor in tensors)
