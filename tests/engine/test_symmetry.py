"""The symmetry theorem: under softmax, what identical neurons imply exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hidra_cli.engine.inner_loop import InnerLoop, adapt, meta_gradient
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.losses import LossName
from hidra_cli.engine.normalization import Mode
from hidra_cli.engine.task_batch import Task

from .tools import MODES, make_batch, make_learner

modes = st.sampled_from(MODES)
few = settings(max_examples=25, deadline=None)


def predictions(learner: Learner, task: Task, steps: int, order: Literal[1, 2] = 2) -> Tensor:
    inner = InnerLoop(steps, 0.3, order=order, skip_zeros=False)
    *_, weights = adapt(learner, task, inner, meta=False)
    with torch.no_grad():
        return learner.query_logits(weights, task).softmax(1)


def set_master(learner: Learner, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name in ("master_weight", "master_bias"):
        parameter = learner.head.get_parameter(name)
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.copy_(scale * noise)


@few
@given(
    mode=modes,
    ways=st.integers(2, 9),
    shots=st.integers(1, 3),
    steps=st.integers(0, 4),
    scale=st.floats(0.01, 3),
    seed=st.integers(0, 99),
)
def test_predictions_do_not_depend_on_the_master(
    mode: Mode, ways: int, shots: int, steps: int, scale: float, seed: int
) -> None:
    task = make_batch(tasks=1, ways=ways, shots=shots, seed=seed).task(0)
    hidra = make_learner("hidra", ways=ways, normalization=mode)
    zero = make_learner("zero", ways=ways, normalization=mode)
    expected = predictions(zero, task, steps)
    assert (predictions(hidra, task, steps) - expected).abs().max() <= 1e-10
    set_master(hidra, scale, seed)
    assert (predictions(hidra, task, steps) - expected).abs().max() <= 1e-10


@few
@given(mode=modes, ways=st.integers(2, 6), steps=st.integers(1, 3), order=st.sampled_from([1, 2]))
def test_the_meta_gradient_does_not_depend_on_the_master_and_its_own_is_zero(
    mode: Mode, ways: int, steps: int, order: Literal[1, 2]
) -> None:
    batch, inner = make_batch(ways=ways), InnerLoop(steps, 0.3, order=order, skip_zeros=False)
    found = []
    for scale in (0.1, 2.0):
        learner = make_learner("hidra", ways=ways, normalization=mode)
        set_master(learner, scale, seed=3)
        master = learner.head.get_parameter("master_weight")
        seen: list[Tensor] = []
        master.register_hook(seen.append)  # type: ignore[no-untyped-call]
        meta_gradient(learner, batch, inner)
        found.append([p.grad for p in learner.backbone.parameters()])
        assert len(seen) == len(batch)
        assert max(gradient.abs().max().item() for gradient in seen) <= 1e-10
        assert all(p.grad is None for p in learner.head.parameters()), "rounding is left out"
    for first, second in zip(*found, strict=True):
        assert first is not None
        assert second is not None
        assert torch.allclose(first, second, rtol=1e-8, atol=1e-10)
        assert first.abs().max() > 1e-6


@few
@given(
    mode=modes,
    ways=st.integers(2, 8),
    head=st.sampled_from(["cosine", "hidra", "hidra-slots", "hidra-normalized", "zero"]),
)
def test_the_first_inner_step_has_no_gradient_for_the_backbone(
    mode: Mode, ways: int, head: str
) -> None:
    learner = make_learner(head, ways=ways, normalization=mode)
    task = make_batch(tasks=1, ways=ways).task(0)
    weights = learner.initial_weights(task).detached()
    loss = F.cross_entropy(learner.support_logits(weights, task), task.support_labels)
    gradients = torch.autograd.grad(loss, list(weights.body.values()))
    assert max(g.abs().max().item() for g in gradients) <= 1e-14


@few
@given(mode=modes, ways=st.integers(2, 6), steps=st.integers(0, 3), order=st.sampled_from([1, 2]))
def test_the_master_of_the_cosine_head_matters_from_the_first_step_on(
    mode: Mode, ways: int, steps: int, order: Literal[1, 2]
) -> None:
    batch, learner = make_batch(ways=ways), make_learner("cosine", ways=ways, normalization=mode)
    meta_gradient(learner, batch, InnerLoop(steps, 0.3, order=order))
    sizes = {n: p.grad.norm() for n, p in learner.named_parameters() if p.grad is not None}
    if steps == 0:
        assert max(sizes.values()) <= 1e-13
    else:
        assert sizes["head.master"] > 1e-4
        assert sizes["head.log_scale"] > 1e-4


@pytest.mark.parametrize("change", ["length", "direction"])
def test_length_and_direction_of_the_cosine_heads_master_change_predictions(change: str) -> None:
    task, learner = make_batch(tasks=1).task(0), make_learner("cosine")
    before = [predictions(learner, task, steps) for steps in (0, 1)]
    master = learner.head.get_parameter("master")
    master.data = master * 2 if change == "length" else master.flip(1)
    after = [predictions(learner, task, steps) for steps in (0, 1)]
    assert (after[0] - before[0]).abs().max() <= 1e-14
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_the_cosine_heads_first_step_is_orthogonal_to_the_master() -> None:
    learner, task = make_learner("cosine"), make_batch(tasks=1).task(0)
    weights = learner.initial_weights(task).detached()
    loss = F.cross_entropy(learner.support_logits(weights, task), task.support_labels)
    (gradient,) = torch.autograd.grad(loss, weights.head["weight"])
    along = F.cosine_similarity(gradient, weights.head["weight"])
    assert gradient.norm() > 1e-2
    assert along.abs().max() <= 1e-5  # but for the number that guards against length 0


def test_the_first_inner_step_of_maml_has_a_gradient_for_the_backbone() -> None:
    learner, task = make_learner("maml"), make_batch().task(0)
    weights = learner.initial_weights(task).detached()
    loss = F.cross_entropy(learner.support_logits(weights, task), task.support_labels)
    gradients = torch.autograd.grad(loss, list(weights.body.values()))
    assert max(g.abs().max().item() for g in gradients) > 1e-4


def relabelled(task: Task, order: Tensor) -> Task:
    """The same images with class c called order[c]."""
    return replace(
        task, support_labels=order[task.support_labels], query_labels=order[task.query_labels]
    )


@few
@given(mode=modes, ways=st.integers(2, 7), steps=st.integers(1, 4), data=st.data())
def test_relabelling_the_classes_permutes_hidras_predictions(
    mode: Mode, ways: int, steps: int, data: st.DataObject
) -> None:
    order = torch.tensor(data.draw(st.permutations(range(ways))))
    task = make_batch(tasks=1, ways=ways).task(0)
    learner = make_learner("hidra", ways=ways, normalization=mode)
    before = predictions(learner, task, steps)
    after = predictions(learner, relabelled(task, order), steps)
    assert (after[:, order] - before).abs().max() <= 1e-10


@pytest.mark.parametrize("mode", MODES)
def test_relabelling_the_classes_changes_mamls_predictions(mode: Mode) -> None:
    task, order = make_batch(tasks=1).task(0), torch.tensor([1, 2, 0])
    learner = make_learner("maml", normalization=mode)
    before = predictions(learner, task, 2)
    after = predictions(learner, relabelled(task, order), 2)
    assert (after[:, order] - before).abs().max() > 1e-5


@few
@given(
    ways=st.integers(2, 5),
    steps=st.integers(0, 3),
    head=st.sampled_from(["cosine", "hidra", "maml", "protomaml", "random", "ridge", "zero"]),
    mode=st.sampled_from(["support", "tasknorm", "none"]),
)
def test_a_querys_logits_do_not_depend_on_the_other_queries(
    ways: int, steps: int, head: str, mode: Mode
) -> None:
    task = make_batch(tasks=1, ways=ways, queries=4).task(0)
    learner = make_learner(head, ways=ways, normalization=mode)
    *_, weights = adapt(learner, task, InnerLoop(steps, 0.3), meta=False)
    with torch.no_grad():
        together = learner.query_logits(weights, task)
        for keep in (slice(0, 1), slice(2, 5), slice(3, None)):
            fewer = replace(task, query_images=task.query_images[keep])
            alone = learner.query_logits(weights, fewer)
            assert (alone - together[keep]).abs().max() <= 1e-12


def test_in_transductive_mode_queries_see_each_other() -> None:
    task = make_batch(tasks=1, queries=4).task(0)
    learner = make_learner("maml", normalization="transductive")
    *_, weights = adapt(learner, task, InnerLoop(1, 0.3), meta=False)
    with torch.no_grad():
        together = learner.query_logits(weights, task)
        alone = learner.query_logits(weights, replace(task, query_images=task.query_images[:2]))
    assert (alone - together[:2]).abs().max() > 1e-3


def test_exact_zeros_stay_zero_over_a_hundred_outer_steps() -> None:
    """In float32, where Adam would make a random walk out of the rounding noise."""
    learner = make_learner("hidra", learned_steps=2, dtype=torch.float32)
    assert learner.rates is not None
    master = {n: p.detach().clone() for n, p in learner.head.named_parameters()}
    rates = learner.rates.log_body.detach().clone()
    backbone = [p.detach().clone() for p in learner.backbone.parameters()]
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    for seed in range(100):
        optimizer.zero_grad(set_to_none=True)
        meta_gradient(learner, make_batch(seed=seed, dtype=torch.float32), InnerLoop(2, 0.3))
        optimizer.step()
    for name, parameter in learner.head.named_parameters():
        assert torch.equal(parameter, master[name]), name
    assert torch.equal(learner.rates.log_body[0], rates[0]), "the first step's backbone rates"
    assert not torch.equal(learner.rates.log_body[1], rates[1])
    moved = zip(learner.backbone.parameters(), backbone, strict=True)
    assert all(not torch.equal(now, before) for now, before in moved)


@pytest.mark.parametrize("loss", ["sigmoid", "mse"])
def test_the_master_matters_where_outputs_do_not_compete(loss: LossName) -> None:
    task = make_batch(tasks=1).task(0)
    found = []
    for scale in (0.1, 0.5):
        learner = make_learner("hidra", loss=loss)
        set_master(learner, scale, seed=3)
        inner = InnerLoop(2, 0.05)
        *_, weights = adapt(learner, task, inner, meta=False)
        found.append(learner.query_logits(weights, task).detach())
        meta_gradient(learner, make_batch(), inner)
        gradient = learner.head.get_parameter("master_weight").grad
        assert gradient is not None
        assert gradient.abs().max() > 1e-3
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_slot_averaging_is_no_rounding_noise_and_is_left_as_it_is() -> None:
    learner = make_learner("hidra-slots")
    meta_gradient(learner, make_batch(), InnerLoop(1, 0.3))
    slots = learner.head.get_parameter("slot_weights").grad
    assert slots is not None
    assert slots.abs().max() > 1e-6, "each slot has a gradient"
    assert slots.sum(0).abs().max() <= 1e-12, "their sum has none"
