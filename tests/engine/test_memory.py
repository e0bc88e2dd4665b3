"""The memory that is told before a step is the memory that it takes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.memory_estimate import MemoryEstimate, PeakOfTensors, estimate
from hidra_cli.engine.strategies.base import Loop, Strategy
from hidra_cli.engine.strategies.cores import Threads
from hidra_cli.engine.strategies.stacked import Batched
from tests.engine.tools import make_batch, make_learner

Make = Callable[..., Strategy]
SIDE, TASKS = 16, 3


def learner_of(head: str, ways: int, **more: Any) -> Learner:
    return make_learner(head, ways=ways, filters=8, side=SIDE, dtype=torch.float32, **more)


def estimate_of(
    make: Make, learner: Learner, inner: InnerLoop, ways: int, shots: int = 1, queries: int = 5
) -> MemoryEstimate:
    def draw(number: int) -> Any:
        return make_batch(
            tasks=1, ways=number, shots=shots, queries=queries, side=SIDE, dtype=torch.float32
        )

    return estimate(make(learner), inner, draw, ways, TASKS)


def peak_of(make: Make, learner: Learner, inner: InnerLoop, ways: int, shots: int = 1) -> int:
    """Bytes of tensors alive together in a whole meta-gradient, its images made before."""
    batch = make_batch(
        tasks=TASKS, ways=ways, shots=shots, queries=5, side=SIDE, dtype=torch.float32
    )
    strategy = make(learner)
    with PeakOfTensors() as peak:
        strategy.meta_gradient(batch, inner)
    return int(peak.most)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("head", ["hidra", "maml"])
@pytest.mark.parametrize("strategy", [Loop, Batched])
def test_the_estimate_is_the_peak_of_a_meta_gradient(
    strategy: type[Strategy], head: str, steps: int, order: Literal[1, 2], recompute: bool
) -> None:
    learner, inner = learner_of(head, 12), InnerLoop(steps, 0.1, order=order)

    def make(learner: Learner) -> Strategy:
        return strategy(learner, recompute=recompute)

    told = estimate_of(make, learner, inner, 12)
    taken = peak_of(make, learner, inner, 12)
    assert told.tasks_at_once == (TASKS if strategy is Batched else 1)
    assert told.tasks_at_once * told.task == pytest.approx(taken, rel=0.05)


@pytest.mark.parametrize("mode", ["support", "tasknorm", "transductive", "none"])
def test_so_it_is_in_every_mode_with_a_multi_step_loss_and_learned_rates(mode: Any) -> None:
    learner = learner_of("hidra", 9, normalization=mode, learned_steps=6)
    inner = InnerLoop(6, 0.1, shares=(0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5))
    told = estimate_of(Loop, learner, inner, 9, shots=3)
    assert told.task == pytest.approx(peak_of(Loop, learner, inner, 9, shots=3), rel=0.05)


@pytest.mark.parametrize(("head", "steps"), [("protomaml", 4), ("random", 0), ("cosine", 2)])
def test_so_it_is_of_other_heads_and_few_steps(head: str, steps: int) -> None:
    learner, inner = learner_of(head, 8), InnerLoop(steps, 0.1)
    told = estimate_of(Loop, learner, inner, 8)
    assert told.task == pytest.approx(peak_of(Loop, learner, inner, 8), rel=0.05)


def test_memory_grows_with_kept_steps_of_order_two_alone() -> None:
    learner = learner_of("hidra", 6)

    def of_step(order: Literal[1, 2], **more: Any) -> float:
        told = estimate_of(
            lambda learner: Loop(learner, **more), learner, InnerLoop(5, 0.1, order=order), 6
        )
        return told.step / told.task

    assert of_step(2) > 0.1
    assert of_step(2, recompute=True) < 0.03
    assert of_step(1) < 0.03


def test_a_strategy_holds_as_many_tasks_as_it_says() -> None:
    learner = learner_of("hidra", 5)
    assert Loop(learner).tasks_at_once(8) == 1
    assert Threads(learner, workers=3).tasks_at_once(8) == 3
    assert Threads(learner, workers=3).tasks_at_once(2) == 2
    assert Batched(learner).tasks_at_once(8) == 8
    assert Batched(learner, micro_batch=3).tasks_at_once(8) == 3
    assert Batched(learner, micro_batch=30).tasks_at_once(8) == 8


def test_weights_are_counted_with_their_gradients_and_adams_moments() -> None:
    learner = learner_of("hidra", 5)
    told = estimate_of(Loop, learner, InnerLoop(1, 0.1), 5)
    optimizer = torch.optim.Adam(learner.parameters())
    Loop(learner).meta_gradient(make_batch(side=SIDE, dtype=torch.float32), InnerLoop(1, 0.1))
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [
        value for state in optimizer.state.values() for value in state.values() if value.dim()
    ]
    held = [*learner.parameters(), *(p.grad for p in learner.parameters()), *moments]
    scalars = sum(4 * (p.dim() == 0) * 2 for p in learner.parameters())
    assert told.weights == sum(4 * t.numel() for t in held if t is not None) + scalars
    assert told.images == TASKS * 5 * 6 * SIDE * SIDE * 4
    assert told.heap == pytest.approx((told.task + told.within) / 3, abs=1)
    assert told.total == told.weights + told.images + told.task + told.within + told.heap


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


def test_measuring_leaves_no_tensor_behind_and_changes_no_gradient_or_random_number() -> None:
    learner = learner_of("random", 5)
    for parameter in learner.parameters():
        parameter.grad = torch.full_like(parameter, 3)
    state = torch.get_rng_state()
    kept: list[weakref.ref[Any]] = []

    def make(learner: Learner) -> Strategy:
        strategy = Loop(learner)
        kept.append(weakref.ref(strategy))
        return strategy

    estimate_of(make, learner, InnerLoop(3, 0.1), 5)
    gc.collect()
    assert kept[0]() is None
    assert torch.equal(state, torch.get_rng_state())
    assert all((p.grad == 3).all() for p in learner.parameters() if p.grad is not None)


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
