"""Classes of unequal size count alike in the support loss and in support statistics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hidra_cli.engine.inner_loop import InnerLoop, adapted, meta_gradient
from hidra_cli.engine.learner import Learner, Weights
from hidra_cli.engine.losses import LossName, loss, uninformed
from hidra_cli.engine.normalization import Mode, norm_factory
from hidra_cli.engine.strategies.base import Loop
from hidra_cli.engine.strategies.cores import Threads
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.engine.task_batch import Examples, Task, TaskBatch, class_weights

from .tools import MODES, flat, make_batch, make_learner

COUNTS = (1, 2, 3, 6)
INNER = InnerLoop(3, 0.2)
LOSSES: tuple[LossName, ...] = ("softmax", "sigmoid", "mse")


def unequal(counts: tuple[int, ...] = COUNTS, tasks: int = 2) -> tuple[TaskBatch, TaskBatch]:
    """A batch with `counts` support images, and the same with each class's repeated to be equal."""
    most, ways = max(counts), len(counts)
    batch = make_batch(tasks=tasks, ways=ways, shots=most, queries=2)
    kept = torch.cat([torch.arange(c) + most * n for n, c in enumerate(counts)])
    repeated = torch.cat([torch.arange(most) % c + most * n for n, c in enumerate(counts)])
    images, labels = batch.support.images, batch.support.labels
    weights = class_weights(labels[0, kept], ways)
    of_all = None if weights is None else weights.expand(tasks, -1)
    small = Examples(images[:, kept], labels[:, kept], of_all)
    large = Examples(images[:, repeated], labels[:, repeated])
    return replace(batch, support=small), replace(batch, support=large)


def logits(learner: Learner, task: Task) -> Tensor:
    inner = replace(INNER, inner_lr=0.01) if learner.loss_name == "mse" else INNER
    return learner.query_logits(adapted(learner, task, inner, meta=False), task).detach()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_the_weights_of_every_class_have_the_same_sum(counts: list[int]) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    weights = class_weights(labels, len(counts))
    present = [count for count in counts if count]
    if len(set(present)) <= 1:
        assert weights is None, "nothing is weighed where classes are of equal size"
        return
    assert weights is not None
    assert weights.mean().item() == pytest.approx(1)
    sums = [weights[labels == n].sum().item() for n, count in enumerate(counts) if count]
    assert sums == pytest.approx([len(labels) / len(present)] * len(present))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_unequal_classes_are_learned_as_if_the_smaller_were_repeated(
    mode: Mode, name: LossName
) -> None:
    learner = make_learner(ways=len(COUNTS), normalization=mode, loss=name)
    small, large = unequal()
    for index in range(2):
        first, second = logits(learner, small.task(index)), logits(learner, large.task(index))
        assert torch.allclose(first, second, rtol=0, atol=1e-9)
    without = replace(small.task(0), support_weights=None)
    assert not torch.allclose(logits(learner, without), logits(learner, large.task(0)), atol=1e-6)


@pytest.mark.parametrize("head", ["hidra", "protomaml", "cosine", "zero"])
def test_every_head_learns_them_alike(head: str) -> None:
    learner = make_learner(head, ways=len(COUNTS))
    small, large = unequal(tasks=1)
    found, expected = logits(learner, small.task(0)), logits(learner, large.task(0))
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Loop, Threads, Batched])
def test_every_strategy_has_the_gradient_of_equal_classes(mode: Mode, kind: type[Loop]) -> None:
    small, large = unequal()

    def gradient(batch: TaskBatch, strategy: type[Loop] | None) -> Tensor:
        learner = make_learner(ways=len(COUNTS), normalization=mode)
        if strategy is None:
            meta_gradient(learner, batch, INNER)
        else:
            strategy(learner).meta_gradient(batch, INNER)
        # TaskNorm's scale multiplies the number of images, which repeating changes.
        named = [(n, p) for n, p in learner.named_parameters() if not n.endswith(".scale")]
        return flat({n: p.grad for n, p in named if p.grad is not None})

    expected = gradient(large, None)
    assert torch.allclose(gradient(small, kind), expected, rtol=0, atol=1e-9)


def test_the_first_step_has_no_gradient_for_the_backbone_then_either() -> None:
    learner = make_learner(ways=len(COUNTS))
    task = unequal(tasks=1)[0].task(0)
    moved = adapted(learner, task, replace(INNER, steps=1, skip_zeros=False), meta=False)
    start = learner.initial_weights(task)
    assert max((moved.body[n] - v).abs().max().item() for n, v in start.body.items()) < 1e-12


@pytest.mark.parametrize("recorded", [False, True], ids=["kernels", "recording"])
def test_float32_statistics_are_those_of_the_repeated_images(recorded: bool) -> None:
    """On the way through the compiled kernels, and on the one that records."""
    images = torch.randn(4, 3, 6, 6)
    counts = torch.tensor([1, 3])
    rows = torch.tensor([0, 0, 0, 1, 2, 3])
    weights = class_weights(torch.arange(2).repeat_interleave(counts), 2)
    factory, episode = norm_factory("support")
    layer = factory(3, pool=2, relu=True)
    expected = layer(images[rows])[2:]
    with episode.reference(None, weights):
        if recorded:
            with episode.record():
                layer(images)
    if not recorded:
        with episode.reference(4, weights):
            assert torch.allclose(layer(images), expected, atol=1e-5)
    assert torch.allclose(layer(images) if recorded else expected, expected, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ways", [2, 5, 20])
def test_an_answer_without_knowledge_has_the_loss_it_is_said_to_have(
    name: LossName, ways: int
) -> None:
    share = torch.tensor(1 / ways, dtype=torch.float64)
    value = {"softmax": share.log(), "sigmoid": share.logit(), "mse": share}[name]
    outputs = value.repeat(ways, ways)
    assert loss(name, outputs, torch.arange(ways)).item() == pytest.approx(uninformed(name, ways))
    if name == "softmax":
        assert uninformed(name, ways) == math.log(ways)


def test_weighted_losses_are_means_of_the_means_of_the_classes() -> None:
    outputs = torch.randn(4, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 1])
    each = F.cross_entropy(outputs, labels, reduction="none")
    expected = (each[0] + each[1:].mean()) / 2
    found = loss("softmax", outputs, labels, class_weights(labels, 2))
    assert found.item() == pytest.approx(expected.item())


def test_recorded_statistics_of_a_classifier_are_weighted() -> None:
    """What `save_classifier` records is what queries were normalized with."""
    learner = make_learner(ways=len(COUNTS))
    task = unequal(tasks=1)[0].task(0)
    weights: Weights = adapted(learner, task, INNER, meta=False)
    expected = learner.query_logits(weights, task)
    with learner.episode.record():
        learner.support_features(weights.body, task)
    assert torch.allclose(learner.logits(weights, task.query_images), expected, atol=1e-9)
