"""Modules are in train() while a meta-gradient is computed, and in eval() everywhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hidra_cli.engine.inner_loop import InnerLoop, meta_gradient
from hidra_cli.engine.learner import Learner, meta_training
from hidra_cli.engine.strategies.base import Loop
from hidra_cli.engine.strategies.choose import choose
from hidra_plugins.heads import Hidra
from tests.engine.test_strategies import gradient_of, same_bits
from tests.engine.tools import make_batch, make_learner

SHAPE, INNER = (1, 8, 8), InnerLoop(2, 0.1)


class Dropping(Hidra):  # type: ignore[misc]
    """With dropout before its logits."""

    def logits(self, fast_weights: dict[str, Tensor], features: Tensor) -> Tensor:
        kept = nn.functional.dropout(features, 0.5, self.training)
        logits: Tensor = super().logits(fast_weights, kept)
        return logits


@pytest.fixture(params=["backbone", "head"])
def learner(request: pytest.FixtureRequest) -> Learner:
    """A learner with dropout at the end of its backbone, or in its head."""
    made = make_learner("hidra")
    if request.param == "head":
        made.head = Dropping(made.backbone.features, 3).double()
    else:
        blocks = made.backbone.get_submodule("blocks")
        assert isinstance(blocks, nn.ModuleList)
        blocks.append(nn.Dropout(0.5))
    return made.eval()


def meta_gradient_of(learner: Learner, *, specification: bool = False) -> dict[str, Tensor | None]:
    batch = make_batch()
    if specification:
        return gradient_of(learner, lambda: meta_gradient(learner, batch, INNER))[1]
    return gradient_of(learner, lambda: Loop(learner).meta_gradient(batch, INNER))[1]


@pytest.mark.parametrize("name", ["auto", "threads", "batched"])
def test_meta_training_with_dropout_is_a_loop_in_the_order_of_the_tasks(
    learner: Learner, name: Any
) -> None:
    with meta_training(learner):
        choice = choose(name, learner, SHAPE)
    assert choice.strategy.name == "loop"
    assert ("dropout" in choice.why) == (name != "auto")


@pytest.mark.parametrize("name", ["auto", "loop"])
def test_a_graph_with_dropout_is_never_computed_twice(learner: Learner, name: Any) -> None:
    with meta_training(learner):
        choice = choose(name, learner, SHAPE, recompute=True)
    assert not choice.strategy.recompute, "the second pass would drop other features"
    assert "--graphs recompute" in choice.why


def test_scores_are_without_dropout_and_tasks_may_be_spread(learner: Learner) -> None:
    strategy, batch = choose("threads", learner, SHAPE).strategy, make_batch()
    assert strategy.name == "threads"
    one, two = (strategy.scores(batch, INNER, 2, every_step=True) for _ in range(2))
    assert one == two == Loop(learner).scores(batch, INNER, 2, every_step=True)


def test_meta_gradients_drop_other_features_each_time_and_the_same_for_one_seed(
    learner: Learner,
) -> None:
    torch.manual_seed(0)
    one, two = meta_gradient_of(learner), meta_gradient_of(learner)
    assert not same_bits(one, two)
    for specification in (False, True):
        torch.manual_seed(0)
        again = meta_gradient_of(learner, specification=specification)
        assert same_bits(one, again)
    assert not any(module.training for module in learner.modules())


def test_a_meta_gradient_that_fails_leaves_eval_mode_behind(learner: Learner) -> None:
    del learner.head.master_weight
    with pytest.raises(AttributeError, match="master_weight"):
        meta_gradient_of(learner)
    assert not any(module.training for module in learner.modules())
