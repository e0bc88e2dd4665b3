"""What meta-gradients hold in memory: tensors that are alive together."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.strategies.base import Loop
from tests.engine.tools import make_batch, make_learner


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


def test_memory_grows_with_kept_steps_of_order_two_alone() -> None:
    learner = make_learner("hidra", ways=6, filters=8, side=16, dtype=torch.float32)
    batch = make_batch(tasks=1, ways=6, shots=1, queries=5, side=16, dtype=torch.float32)

    def growth(order: Literal[1, 2], **options: Any) -> float:
        """What each of two more steps adds, as a share of the whole."""
        strategy, peaks = Loop(learner, **options), list[int]()
        for steps in (5, 7):
            with PeakOfTensors() as peak:
                strategy.meta_gradient(batch, InnerLoop(steps, 0.1, order=order))
            peaks.append(peak.most)
        return (peaks[1] - peaks[0]) / 2 / peaks[0]

    assert growth(2) > 0.1
    assert growth(2, recompute=True) < 0.03
    assert growth(1) < 0.03


def test_the_count_follows_storages_not_tensors() -> None:
    before = torch.zeros(1000)
    with PeakOfTensors() as peak:
        view = before.view(10, 100)  # of memory that was there
        assert peak.most == 0
        a = torch.ones(1000)
        b = a.view(-1)[:10]
        assert peak.held == 4000
        del a
        assert peak.held == 4000, "a view holds it all"
        del b
        assert peak.held == 0
        c = [torch.ones(500) for _ in range(3)]
        before.add_(1)
        assert peak.held == 6000
        c.clear()
    assert peak.most == 6000
    assert view[0, 0] == 1


def test_fifty_recomputed_steps_cost_the_memory_of_five_and_half_as_much_work_again() -> None:
    learner = make_learner("hidra", filters=8, dtype=torch.float32)
    batch = make_batch(tasks=1, dtype=torch.float32)

    def cost(steps: int, *, recompute: bool) -> tuple[int, int]:
        strategy, inner = Loop(learner, recompute=recompute), InnerLoop(steps, 0.01)
        with PeakOfTensors() as peak:
            strategy.meta_gradient(batch, inner)
        with FlopCounterMode(display=False) as counter:
            strategy.meta_gradient(batch, inner)
        return peak.most, counter.get_total_flops()

    five, _ = cost(5, recompute=False)
    fifty, work = cost(50, recompute=False)
    recomputed, more_work = cost(50, recompute=True)
    assert fifty > 4 * five, "else there is nothing to save"
    assert recomputed < 2 * five
    assert 1 < more_work / work < 1.5
