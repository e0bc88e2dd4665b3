"""Every strategy gives the gradient and the scores of the reference loop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hidra_cli.api import Backbone, NormFactory
from hidra_cli.engine.inner_loop import InnerLoop, Outcome, meta_gradient
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.losses import LossName
from hidra_cli.engine.normalization import Mode, norm_factory
from hidra_cli.engine.strategies import cores
from hidra_cli.engine.strategies.base import Loop, Strategy
from hidra_cli.engine.strategies.choose import choose
from hidra_cli.engine.strategies.cores import POOL, Processes, Threads
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.engine.task_batch import Examples, TaskBatch
from hidra_cli.system.worker_pool import operator_threads
from hidra_plugins.backbones import Conv4, Mlp, ResNet12
from hidra_plugins.heads import Hidra
from hidra_plugins.torchvision_backbone import Torchvision
from tests.engine.tools import HEADS, MODES, make_batch, make_learner

Make = Callable[[Learner], Strategy]
STRATEGIES: dict[str, Make] = {
    "loop": Loop,
    "loop, recomputed": lambda learner: Loop(learner, recompute=True),
    "threads": lambda learner: Threads(learner, workers=2),
    "processes": lambda learner: Processes(learner, workers=2),
    "batched": Batched,
    "batched, two at once": lambda learner: Batched(learner, micro_batch=2),
    "batched, recomputed": lambda learner: Batched(learner, recompute=True),
}
LOOPS = {
    "one step": InnerLoop(1, 0.3),
    "three steps": InnerLoop(3, 0.3),
    "first order": InnerLoop(2, 0.3, order=1),
    "multi-step loss": InnerLoop(3, 0.3, shares=(0.0, 0.2, 0.3, 0.5)),
    "head alone": InnerLoop(2, 0.3, adapt="head"),
    "no step": InnerLoop(0, 0.3),
}


def gradient_of(
    learner: Learner, work: Callable[[], Outcome]
) -> tuple[Outcome, dict[str, Tensor | None]]:
    for parameter in learner.parameters():
        parameter.grad = None
    outcome = work()
    return outcome, {name: p.grad for name, p in learner.named_parameters()}


def check(learner: Learner, strategy: Strategy, batch: TaskBatch, inner: InnerLoop) -> None:
    wanted, reference = gradient_of(learner, lambda: meta_gradient(learner, batch, inner))
    found, gradients = gradient_of(learner, lambda: strategy.meta_gradient(batch, inner))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-9)
    # Before the first step all logits are equal but for rounding, which decides the largest.
    assert inner.steps == 0 or found.score == pytest.approx(wanted.score, rel=1e-9)
    for name, gradient in gradients.items():
        expected = reference[name]
        if gradient is None or expected is None:
            other = gradient if expected is None else expected
            assert other is None or other.abs().max() < 1e-12, name
        else:
            torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("inner", LOOPS)
@pytest.mark.parametrize("head", HEADS)
def test_the_meta_gradient_is_that_of_the_loop(head: str, inner: str, strategy: str) -> None:
    loop = LOOPS[inner]
    learner = make_learner(head, learned_steps=2 if loop.steps > 1 else None)
    check(learner, STRATEGIES[strategy](learner), make_batch(tasks=3), loop)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("loss", ["sigmoid", "mse"])
@pytest.mark.parametrize("mode", MODES)
def test_so_it_is_in_every_mode_and_loss(mode: Mode, loss: LossName, strategy: str) -> None:
    learner = make_learner("hidra", normalization=mode, loss=loss)
    check(learner, STRATEGIES[strategy](learner), make_batch(tasks=3), InnerLoop(2, 0.1))


SHAPES = {
    "conv4, strided": (1, 16, 16),
    "conv4, odd sides": (2, 15, 13),
    "resnet12": (3, 16, 16),
    "mlp": (1, 1, 5),
    "torchvision": (3, 32, 32),
}


def backbone_of(name: str, norm: NormFactory) -> Backbone:
    choices: dict[str, tuple[Any, dict[str, Any]]] = {
        "conv4, strided": (Conv4, {"filters": 3, "downsample": "stride"}),
        "conv4, odd sides": (Conv4, {"filters": 3, "blocks": 3}),
        "resnet12": (ResNet12, {"width": 2}),
        "mlp": (Mlp, {"hidden": 4}),
        "torchvision": (Torchvision, {"name": "resnet18"}),
    }
    plugin, options = choices[name]
    built: Backbone = plugin(SHAPES[name], norm, **options)
    return built


@pytest.mark.parametrize("name", ["threads", "processes", "batched"])
@pytest.mark.parametrize("backbone", SHAPES)
def test_every_backbone_can_do_it(backbone: str, name: Any) -> None:
    factory, episode = norm_factory("support")
    torch.manual_seed(0)
    built = backbone_of(backbone, factory)
    images = torch.rand(2, 6, *SHAPES[backbone], dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(2).expand(2, -1)
    batch = TaskBatch(
        Examples(images, labels), Examples(images.flip(1), labels.flip(1)), 3, 2, (0, 1)
    )
    learner = Learner(built, Hidra(built.features, 3), episode, "support").double()
    choice = choose(name, learner, SHAPES[backbone])
    assert (choice.strategy.name, choice.why) == (name, "")
    check(learner, choice.strategy, batch, InnerLoop(2, 0.1))


@pytest.mark.parametrize("head", ["hidra", "maml", "random"])
@pytest.mark.parametrize("kind", [Threads, Processes])
def test_a_task_per_core_is_bit_for_bit_the_loop_whatever_their_number(
    head: str, kind: type[Threads]
) -> None:
    learner = make_learner(head, filters=8, side=16, dtype=torch.float32)
    batch = make_batch(tasks=5, side=16, dtype=torch.float32)
    inner = InnerLoop(2, 0.3)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _, reference = gradient_of(learner, lambda: Loop(learner).meta_gradient(batch, inner))
    torch.set_num_threads(before)
    for workers in (1, 2, 4):
        strategy = kind(learner, workers=workers)
        _, found = gradient_of(learner, partial(strategy.meta_gradient, batch, inner))
        assert not strategy.fault
        assert kind is Threads or len(POOL.pids) >= workers - 1
        for name, gradient in found.items():
            expected = reference[name]
            assert (gradient is None) == (expected is None)
            assert gradient is None or expected is None or torch.equal(gradient, expected), name


def test_with_more_cores_than_tasks_operators_share_them_and_others_keep_theirs() -> None:
    learner, seen = make_learner("hidra"), set()
    forward = type(learner.backbone).forward

    def counts(self: Any, images: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        found: Tensor = forward(self, images)
        return found

    before = torch.get_num_threads()
    type(learner.backbone).forward = counts  # type: ignore[method-assign]
    try:
        strategy = Threads(learner, workers=4)
        strategy.meta_gradient(make_batch(tasks=2), InnerLoop(1, 0.3))
        assert seen == {2}
        seen.clear()
        strategy.meta_gradient(make_batch(tasks=5), InnerLoop(1, 0.3))
        assert seen == {1}
    finally:
        type(learner.backbone).forward = forward  # type: ignore[method-assign]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", MODES)
def test_scores_are_those_of_the_loop(mode: Mode, strategy: str) -> None:
    learner, batch = make_learner("hidra", normalization=mode), make_batch(tasks=3)
    for every_step in (True, False):
        wanted = Loop(learner).scores(batch, InnerLoop(2, 0.3), 3, every_step=every_step)
        found = STRATEGIES[strategy](learner).scores(
            batch, InnerLoop(2, 0.3), 3, every_step=every_step
        )
        assert len(found) == 3
        assert {len(of_task) for of_task in found} == {4 if every_step else 1}
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours[-1:] == theirs[-1:]
            assert ours[1:] == theirs[1:]


def test_a_shared_backbone_is_not_copied_for_each_task() -> None:
    """With identical neurons and one step no task has a backbone of its own: one pass for all."""
    learner = make_learner("hidra")
    learner.backbone = spied = Spied(learner.backbone)
    Batched(learner).meta_gradient(make_batch(tasks=3), InnerLoop(1, 0.3))
    assert set(spied.levels) == {-1}
    spied.levels.clear()
    Batched(learner).meta_gradient(make_batch(tasks=3), InnerLoop(2, 0.3))
    assert set(spied.levels) == {-1, 1}  # the first step's features, then each task's own


class Spied(Backbone):
    """Tells whether its weights were those of one task (vmap level 1) or of all (-1)."""

    api_version = 1

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner = inner
        self.features = inner.features
        self.levels: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        weight = next(self.inner.parameters())
        self.levels.append(torch._C._functorch.maybe_get_level(weight))
        found: Tensor = self.inner(images)
        return found


class Noisy(Spied):
    """Draws from PyTorch's generator in every forward pass, as dropout does."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * (1 + 0.1 * torch.rand_like(images)))


def test_a_backbone_that_draws_random_numbers_gets_the_loop_and_says_why() -> None:
    learner = make_learner("hidra")
    learner.backbone = Noisy(learner.backbone)
    choice = choose("threads", learner, (1, 8, 8), recompute=True)
    assert choice.strategy.name == "loop"
    assert not choice.strategy.recompute
    assert "random numbers" in choice.why


def test_a_head_that_cannot_be_batched_gets_the_loop_and_says_why() -> None:
    learner = make_learner("zero")
    logits = learner.head.logits

    def looks_at_values(fast_weights: dict[str, Tensor], features: Tensor) -> Tensor:
        found: Tensor = logits(fast_weights, features)
        return found if float(features.sum()) > -1e9 else -found

    learner.head.logits = looks_at_values  # type: ignore[method-assign]
    choice = choose("batched", learner, (1, 8, 8))
    assert choice.strategy.name == "loop"
    assert "cannot be batched" in choice.why
    assert choose("threads", learner, (1, 8, 8)).why == ""


@pytest.mark.parametrize("name", ["loop", "threads", "processes", "batched"])
def test_the_strategy_that_is_asked_for_is_chosen(name: Any) -> None:
    choice = choose(name, make_learner("protomaml"), (1, 8, 8), recompute=True, micro_batch=3)
    assert (choice.strategy.name, choice.why) == (name, "")
    assert choice.strategy.recompute
    assert choice.strategy.micro_batch == 3


def test_on_a_cpu_every_core_gets_a_task_and_a_process_if_it_takes_long() -> None:
    strategy = choose("auto", make_learner("hidra"), (1, 8, 8)).strategy
    assert isinstance(strategy, Processes)
    assert strategy.patience == cores.PATIENCE > 1


def own_gradient(
    strategy: Strategy, batch: TaskBatch, inner: InnerLoop
) -> dict[str, Tensor | None]:
    return gradient_of(strategy.learner, lambda: strategy.meta_gradient(batch, inner))[1]


def same_bits(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> bool:
    def same(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b if a is None or b is None else torch.equal(a, b)

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def test_until_processes_are_ready_threads_do_the_same_work() -> None:
    POOL.stop()
    learner, batch, inner = make_learner("maml"), make_batch(tasks=3), InnerLoop(1, 0.3)
    wanted = own_gradient(Threads(learner, workers=2), batch, inner)
    hurried = Processes(learner, workers=2, patience=1e-9)
    for begun in (False, True):  # the first work is done without; the second calls them
        assert same_bits(own_gradient(hurried, batch, inner), wanted)
        assert bool(POOL.pids) == begun
    assert POOL.ready(1, wait=True)
    assert same_bits(own_gradient(hurried, batch, inner), wanted)
    patient = Processes(learner, workers=2, patience=1e9)
    seen = spied_map(patient, batch, inner)
    assert seen == [2]  # those that are there are taken at once
    POOL.stop()
    assert same_bits(own_gradient(patient, batch, inner), wanted)
    assert POOL.pids == []


def spied_map(strategy: Strategy, batch: TaskBatch, inner: InnerLoop) -> list[int]:
    """Over how many processes its work is shared."""
    seen: list[int] = []
    pool_map = POOL.map

    def spy(*given: Any, processes: int, **more: Any) -> Any:
        seen.append(processes)
        return pool_map(*given, processes=processes, **more)

    POOL.map = spy  # type: ignore[method-assign]
    try:
        strategy.meta_gradient(batch, inner)
    finally:
        POOL.map = pool_map  # type: ignore[method-assign]
    return seen


def test_where_memory_is_short_it_stays_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    POOL.stop()
    monkeypatch.setattr(cores, "available_memory", lambda: 1000)
    strategy = Processes(make_learner("hidra"), workers=2, patience=1e-9)
    for _ in range(3):
        strategy.meta_gradient(make_batch(tasks=2), InnerLoop(1, 0.3))
    assert POOL.pids == []


def test_one_task_and_one_core_need_no_other_process() -> None:
    POOL.stop()
    learner, inner = make_learner("hidra"), InnerLoop(1, 0.3)
    Processes(learner, workers=2).meta_gradient(make_batch(tasks=1), inner)
    Processes(learner, workers=1).meta_gradient(make_batch(tasks=3), inner)
    assert POOL.pids == []


def test_when_a_process_is_lost_threads_go_on_and_it_is_said() -> None:
    learner, batch, inner = make_learner("maml"), make_batch(tasks=4), InnerLoop(2, 0.3)
    strategy = Processes(learner, workers=2)
    wanted = own_gradient(strategy, batch, inner)
    assert strategy.fault == ""
    os.kill(POOL.pids[0], signal.SIGKILL)
    assert same_bits(own_gradient(strategy, batch, inner), wanted)
    assert "is gone (signal 9)" in strategy.fault
    assert same_bits(own_gradient(strategy, batch, inner), wanted)
    assert POOL.pids == []


def test_a_head_that_no_module_holds_is_left_to_threads() -> None:
    class Local(Hidra):  # type: ignore[misc]
        pass

    learner = make_learner("hidra")
    learner.head = Local(learner.backbone.features, 3).double()
    strategy = Processes(learner, workers=2)
    check(learner, strategy, make_batch(tasks=3), InnerLoop(2, 0.3))
    assert "cannot be sent" in strategy.fault


def test_what_is_between_tasks_has_one_thread() -> None:
    """Threads of an operator wait at work for the next one, on cores that tasks have by then."""
    before, seen = torch.get_num_threads(), []
    with operator_threads(2):
        for strategy in (Threads(make_learner("hidra")), Loop(make_learner("hidra"))):
            with strategy.between_tasks():
                seen.append(torch.get_num_threads())
            assert torch.get_num_threads() == 2
    assert (seen, torch.get_num_threads()) == ([1, 2], before)


def test_a_fault_in_one_task_ends_the_step_with_no_thread_at_work() -> None:
    learner = make_learner("hidra")
    calls: list[int] = []
    lock = threading.Lock()
    forward = type(learner.backbone).forward

    def fails_once(self: Any, images: Tensor) -> Tensor:
        with lock:
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError("no more")
        found: Tensor = forward(self, images)
        return found

    type(learner.backbone).forward = fails_once  # type: ignore[method-assign]
    try:
        strategy = Threads(learner, workers=2)
        with pytest.raises(MemoryError):
            strategy.meta_gradient(make_batch(tasks=6), InnerLoop(1, 0.3))
        done = len(calls)
        torch.zeros(1).sum()
        assert len(calls) == done < 12
    finally:
        type(learner.backbone).forward = forward  # type: ignore[method-assign]
    check(learner, strategy, make_batch(tasks=3), InnerLoop(1, 0.3))
