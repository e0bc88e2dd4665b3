"""The traced meta-gradient equals the loop's, and is recorded once for each shape of tasks.

A CPU has no graphs: there the program runs again in their place, on the same fixed addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hidra_cli.engine.inner_loop import InnerLoop, adapt
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.normalization import Mode, norm_factory
from hidra_cli.engine.strategies.capture import Captured, Run, run_again
from hidra_cli.engine.strategies.choose import choose
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.engine.task_batch import Examples, TaskBatch, class_weights
from hidra_plugins.backbones import Mlp, ResNet12
from hidra_plugins.heads import Hidra
from tests.engine.test_strategies import check
from tests.engine.tools import MODES, make_batch, make_learner

ONE, TWO = InnerLoop(1, 0.3), InnerLoop(2, 0.3)


class Counting:
    """Stands in for graphs, and counts what is recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Run) -> tuple[Callable[[], None], list[Tensor]]:
        self.recorded += 1
        replay, results = run_again(run)

        def counted() -> None:
            self.replayed += 1
            replay()

        return counted, results


@pytest.mark.parametrize("head", ["hidra", "hidra-slots", "maml", "random", "protomaml", "cosine"])
def test_one_program_serves_other_tasks_weights_and_shares(head: str) -> None:
    learner, counting = make_learner(head, learned_steps=2), Counting()
    strategy = Captured(learner, recorder=counting, micro_batch=2)
    inner = InnerLoop(2, 0.3, shares=(0.0, 0.4, 0.6))
    check(learner, strategy, make_batch(tasks=4), inner)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(1.1)
    inner = replace(inner, shares=(0.0, 0.1, 0.9))
    check(learner, strategy, make_batch(tasks=4, seed=7), inner)
    assert (counting.recorded, counting.replayed) == (1, 4)


@pytest.mark.parametrize("mode", MODES)
def test_every_normalization_can_be_traced(mode: Mode) -> None:
    learner = make_learner("hidra", normalization=mode)
    check(learner, Captured(learner), make_batch(tasks=2), TWO)


@pytest.mark.parametrize(
    "inner",
    [InnerLoop(0, 0.3), replace(TWO, order=1), replace(TWO, adapt="head")],
    ids=["no step", "first order", "head alone"],
)
def test_every_inner_loop_can_be_traced(inner: InnerLoop) -> None:
    learner = make_learner("maml")
    check(learner, Captured(learner), make_batch(tasks=2), inner)


@pytest.mark.parametrize(
    ("backbone", "shape", "options"),
    [(ResNet12, (3, 16, 16), {"width": 2}), (Mlp, (1, 1, 5), {"hidden": 4})],
)
def test_other_backbones_can_be_traced(
    backbone: Any, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    factory, episode = norm_factory("support")
    torch.manual_seed(0)
    built = backbone(shape, factory, **options)
    images = torch.rand(2, 6, *shape, dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(2).expand(2, -1)
    batch = TaskBatch(
        Examples(images, labels), Examples(images.flip(1), labels.flip(1)), 3, 2, (0, 1)
    )
    learner = Learner(built, Hidra(built.features, 3), episode, "support").double()
    check(learner, Captured(learner), batch, InnerLoop(1, 0.1))


def test_classes_of_unequal_size_have_a_program_of_their_own() -> None:
    learner, counting, equal = make_learner("hidra"), Counting(), make_batch(tasks=2)
    labels = torch.tensor([0, 0, 0, 0, 1, 2]).expand(2, -1)
    of_row = class_weights(labels[0], 3)
    assert of_row is not None
    weights = of_row.double().expand(2, -1)
    unequal = replace(equal, support=Examples(equal.support.images, labels, weights))
    strategy = Captured(learner, recorder=counting)
    for batch in (equal, unequal, equal):
        check(learner, strategy, batch, ONE)
    assert counting.recorded == 2


def test_the_program_that_was_not_used_for_longest_is_let_go() -> None:
    learner, counting = make_learner("zero"), Counting()
    strategy = Captured(learner, recorder=counting, most=2)
    inner = InnerLoop(0, 0.3)
    recorded = []
    for ways in (2, 3, 2, 4, 2, 3):  # the fourth lets 3 ways go, the sixth 4 ways
        strategy.meta_gradient(make_batch(ways=ways), inner)
        recorded.append(counting.recorded)
    assert recorded == [1, 2, 2, 3, 3, 4]


def test_results_are_copies_that_the_next_replay_leaves_alone() -> None:
    learner = make_learner("hidra")
    strategy = Captured(learner)
    (first,) = strategy.gradients(make_batch(seed=1), ONE)
    before = [None if g is None else g.clone() for g in first.gradients]
    list(strategy.gradients(make_batch(seed=2), ONE))
    for gradient, copy in zip(first.gradients, before, strict=True):
        assert (gradient is None) == (copy is None)
        assert gradient is None or copy is None or torch.equal(gradient, copy)


def test_a_program_takes_no_value_from_the_device_and_copies_none_to_it() -> None:
    """What the host asks for, or brings, cannot be captured."""
    learner = make_learner("protomaml", normalization="tasknorm", learned_steps=2)
    strategy = Captured(learner)
    strategy.meta_gradient(make_batch(), TWO)
    (recorded,) = strategy._programs.values()
    names = {str(node.target) for node in recorded._traced.program.graph.nodes}
    forbidden = ("_local_scalar_dense", "nonzero", "rand", "lift_fresh", "_tensor_constant")
    assert not [name for name in names for word in forbidden if word in name]


def test_evaluation_and_recomputation_are_those_of_batched() -> None:
    learner, batch = make_learner("hidra"), make_batch(tasks=3)
    captured = Captured(learner, recompute=True)
    assert captured.scores(batch, TWO, 2) == Batched(learner).scores(batch, TWO, 2)
    check(learner, captured, batch, TWO)
    assert not captured._programs


def test_the_choice_of_captured() -> None:
    learner = make_learner("protomaml")
    choice = choose("captured", learner, (1, 8, 8), micro_batch=3)
    assert (choice.strategy.name, choice.strategy.micro_batch, choice.why) == ("captured", 3, "")
    choice = choose("captured", learner, (1, 8, 8), recompute=True)
    assert choice.strategy.name == "batched"
    assert "recompute" in choice.why


def test_a_head_that_cannot_be_traced_is_batched_and_the_choice_says_why() -> None:
    learner = make_learner("zero")
    initialize = learner.head.initialize

    def asks_for_a_value(ways: int, features: Any, labels: Tensor, generator: Any) -> Any:
        assert int(labels.max()) < ways  # traced, this value is not known
        return initialize(ways, features, labels, generator)

    learner.head.initialize = asks_for_a_value  # type: ignore[method-assign, assignment]
    choice = choose("captured", learner, (1, 8, 8))
    assert choice.strategy.name == "batched"
    assert "cannot be captured" in choice.why


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("head", ["hidra", "random", "protomaml"])
def test_a_graph_has_the_gradient_of_batched(head: str) -> None:
    learner = make_learner(head, learned_steps=2).cuda()
    strategy = choose("auto", learner, (1, 8, 8)).strategy
    assert strategy.name == "captured"
    for seed in (0, 1):
        batch = make_batch(tasks=4, seed=seed)
        on_device = replace(
            batch,
            support=Examples(batch.support.images.cuda(), batch.support.labels.cuda()),
            query=Examples(batch.query.images.cuda(), batch.query.labels.cuda()),
        )
        check(learner, strategy, on_device, TWO)
        path = adapt(learner, on_device.task(0), TWO, meta=False)
        assert all(value.isfinite().all() for weights in path for value in weights.body.values())
