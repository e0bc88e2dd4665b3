"""The meta-gradient against central finite differences and an independent implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.engine.inner_loop import InnerLoop, adapt, meta_gradient
from hidra_cli.engine.learner import Learner, Weights
from hidra_cli.engine.losses import LossName
from hidra_cli.engine.normalization import Mode
from hidra_cli.engine.task_batch import Task, TaskBatch

from .tools import HEADS, MODES, make_batch, make_learner

RATE = 0.3
every_head = pytest.mark.parametrize("head", sorted(HEADS))
every_order = pytest.mark.parametrize("order", [1, 2])
every_mode = pytest.mark.parametrize("mode", MODES)


def gradients(learner: Learner, batch: TaskBatch, inner: InnerLoop) -> dict[str, Tensor]:
    learner.zero_grad(set_to_none=True)
    meta_gradient(learner, batch, inner)
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in learner.named_parameters()
    }


def query_loss(learner: Learner, batch: TaskBatch, inner: InnerLoop) -> float:
    total = 0.0
    for task in map(batch.task, range(len(batch))):
        *_, weights = adapt(learner, task, inner, meta=False)
        with torch.no_grad():
            total += learner.loss(learner.query_logits(weights, task), task.query_labels).item()
    return total / len(batch)


def fixed_moves(learner: Learner, task: Task, inner: InnerLoop) -> Weights:
    """How far the inner loop moves each weight: a constant for the first-order gradient."""
    first, *_, last = adapt(learner, task, inner, meta=False)
    return Weights(
        {name: (last.body[name] - value).detach() for name, value in first.body.items()},
        {name: (last.head[name] - value).detach() for name, value in first.head.items()},
    )


def moved_loss(learner: Learner, batch: TaskBatch, moves: list[Weights]) -> float:
    total = 0.0
    for task, move in zip(map(batch.task, range(len(batch))), moves, strict=True):
        with torch.no_grad():
            start = learner.initial_weights(task)
            weights = Weights(
                {name: value + move.body[name] for name, value in start.body.items()},
                {name: value + move.head[name] for name, value in start.head.items()},
            )
            total += learner.loss(learner.query_logits(weights, task), task.query_labels).item()
    return total / len(batch)


def assert_equals_differences(
    learner: Learner, exact: dict[str, Tensor], loss: Callable[[], float]
) -> None:
    """Compare a gradient with central differences of its loss, along one direction each."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in learner.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        start, size = parameter.detach().clone(), 2e-6
        values = []
        for sign in (1, -1):
            parameter.data = start + sign * size * direction
            values.append(loss())
        parameter.data = start
        numeric = (values[0] - values[1]) / (2 * size)
        analytic = (exact[name] * direction).sum().item()
        scale = exact[name].norm().item()  # a direction may be orthogonal to the gradient
        assert abs(numeric - analytic) <= 1e-6 * scale + 1e-9, name


@every_head
@every_order
@every_mode
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_equals_central_finite_differences(
    head: str, order: Literal[1, 2], mode: Mode, steps: int
) -> None:
    learner, batch = make_learner(head, normalization=mode), make_batch()
    inner = InnerLoop(steps, RATE, order=order)
    exact = gradients(learner, batch, inner)
    moves = [fixed_moves(learner, batch.task(i), inner) for i in range(len(batch))]

    def loss() -> float:
        if order == 1:
            return moved_loss(learner, batch, moves)
        return query_loss(learner, batch, inner)

    assert_equals_differences(learner, exact, loss)


@every_head
@pytest.mark.parametrize("loss", ["sigmoid", "mse"])
def test_other_losses_equal_central_finite_differences(head: str, loss: LossName) -> None:
    learner, batch, inner = make_learner(head, loss=loss), make_batch(), InnerLoop(2, 0.1)
    exact = gradients(learner, batch, inner)
    assert_equals_differences(learner, exact, lambda: query_loss(learner, batch, inner))


@every_head
@every_mode
def test_learned_rates_equal_central_finite_differences(head: str, mode: Mode) -> None:
    learner = make_learner(head, normalization=mode, learned_steps=2)
    batch, inner = make_batch(), InnerLoop(2, RATE)
    exact = gradients(learner, batch, inner)
    assert exact["rates.log_head"].abs().min() > 1e-6
    assert exact["rates.log_body"][1].abs().min() > 0
    assert_equals_differences(learner, exact, lambda: query_loss(learner, batch, inner))


@every_order
def test_the_multi_step_loss_is_the_sum_of_its_steps(order: Literal[1, 2]) -> None:
    learner, batch, shares = make_learner("maml"), make_batch(), (0.0, 0.2, 0.3, 0.5)
    together = gradients(learner, batch, InnerLoop(3, RATE, order=order, shares=shares))
    parts = [gradients(learner, batch, InnerLoop(step, RATE, order=order)) for step in range(4)]
    for name, gradient in together.items():
        expected = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
        assert torch.allclose(gradient, torch.as_tensor(expected), rtol=1e-9, atol=1e-12), name


def reference_gradient(
    learner: Learner, batch: TaskBatch, *, mode: Mode, order: int, steps: int, head: str
) -> list[Tensor]:
    """MAML written again from its definition: plain functions, lists and autograd."""
    meta = [p.detach().clone().requires_grad_() for p in learner.parameters()]
    # Convolution, weight and bias of two blocks adapt; TaskNorm's scale and offset do not.
    rates = [1.0, 1.0, 1.0, 0.0, 0.0] * 2 if mode == "tasknorm" else [1.0] * 6
    layers = len(rates)
    total: Any = 0
    first_order = [torch.zeros_like(p) for p in meta]
    for t in range(len(batch)):
        task = batch.task(t)
        body, output = meta[:layers], meta[layers:]
        if head == "hidra":
            output = [output[0].repeat(task.ways, 1), output[1].repeat(task.ways)]
        weights = [*body, *output]
        moved = weights
        for _ in range(steps):
            loss = F.cross_entropy(
                reference_logits(moved, task.support_images, len(task.support_images), mode),
                task.support_labels,
            )
            grads = torch.autograd.grad(loss, moved, create_graph=order == 2)
            scale = rates + [task.ways / 5] * 2
            moved = [w - RATE * s * g for w, g, s in zip(moved, grads, scale, strict=True)]
        images = task.query_images
        if mode in ("support", "tasknorm"):
            images = torch.cat([task.support_images, images])
        logits = reference_logits(moved, images, len(task.support_images), mode)
        loss = F.cross_entropy(logits[-len(task.query_images) :], task.query_labels)
        total = total + loss / len(batch)
        if order == 1:
            at_end = torch.autograd.grad(loss / len(batch), moved)
            if head == "hidra":  # the chain rule of the copying: the copies' gradients add up
                weight, bias = at_end[layers:]
                at_end = (*at_end[:layers], weight.sum(0, keepdim=True), bias.sum(0)[None])
            first_order = [a + g for a, g in zip(first_order, at_end, strict=True)]
    return first_order if order == 1 else list(torch.autograd.grad(total, meta))


def reference_logits(weights: list[Tensor], x: Tensor, rows: int, mode: Mode) -> Tensor:
    layers = len(weights) // 2 - 1
    for conv, scale, shift, *blend in (weights[:layers], weights[layers:-2]):
        x = F.conv2d(x, conv, padding=1)
        if mode != "none":
            seen = x if mode == "transductive" else x[:rows]
            mean = seen.mean((0, 2, 3), keepdim=True)
            variance = ((seen - mean) ** 2).mean((0, 2, 3), keepdim=True)
            if blend:
                mean, variance = blended(
                    x, mean, variance, torch.sigmoid(blend[0] * rows + blend[1])
                )
            x = (x - mean) / torch.sqrt(variance + 1e-5)
        x = x * scale[None, :, None, None] + shift[None, :, None, None]
        x = F.max_pool2d(torch.relu(x), 2)
    return x.flatten(1) @ weights[-2].T + weights[-1]


def blended(x: Tensor, mean: Tensor, variance: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """TaskNorm's moments, as the paper writes them."""
    own_mean = x.mean((2, 3), keepdim=True)
    own_variance = ((x - own_mean) ** 2).mean((2, 3), keepdim=True)
    both = alpha * mean + (1 - alpha) * own_mean
    spread = alpha * (variance + (mean - both) ** 2)
    return both, spread + (1 - alpha) * (own_variance + (own_mean - both) ** 2)


@pytest.mark.parametrize("head", ["hidra", "maml"])
@every_order
@every_mode
@pytest.mark.parametrize("steps", [1, 4])
def test_equals_an_independent_implementation(
    head: str, order: Literal[1, 2], mode: Mode, steps: int
) -> None:
    learner, batch = make_learner(head, normalization=mode), make_batch(tasks=3)
    ours = gradients(learner, batch, InnerLoop(steps, RATE, order=order))
    theirs = reference_gradient(learner, batch, mode=mode, order=order, steps=steps, head=head)
    for (name, gradient), expected in zip(ours.items(), theirs, strict=True):
        scale = max(expected.norm().item(), 1e-6)
        assert (gradient - expected).norm().item() / scale <= 1e-6, name


def test_tasknorms_share_is_learned_but_does_not_adapt() -> None:
    learner, batch = make_learner("maml", normalization="tasknorm"), make_batch()
    shares = [n for n, _ in learner.backbone.named_parameters() if n.endswith(("scale", "offset"))]
    assert len(shares) == 4
    assert not set(shares) & learner.initial_weights(batch.task(0)).body.keys()
    found = gradients(learner, batch, InnerLoop(2, RATE))
    assert all(found[f"backbone.{name}"].abs() > 1e-6 for name in shares)


@every_head
def test_second_order_differs_from_first(head: str) -> None:
    learner, batch = make_learner(head), make_batch()
    first = gradients(learner, batch, InnerLoop(2, RATE, order=1))
    second = gradients(learner, batch, InnerLoop(2, RATE, order=2))
    body = [name for name in first if name.startswith("backbone")]
    difference = sum((first[n] - second[n]).norm().item() for n in body)
    assert difference > 1e-3 * sum(second[n].norm().item() for n in body)


@pytest.mark.parametrize("head", ["cosine", "hidra", "zero"])
@every_order
def test_leaving_out_the_exact_zeros_changes_nothing(head: str, order: Literal[1, 2]) -> None:
    learner, batch = make_learner(head), make_batch()
    short = gradients(learner, batch, InnerLoop(3, RATE, order=order, skip_zeros=True))
    long = gradients(learner, batch, InnerLoop(3, RATE, order=order, skip_zeros=False))
    for name in short:
        assert torch.allclose(short[name], long[name], rtol=1e-10, atol=1e-13), name


@pytest.mark.parametrize("part", ["head", "body"])
def test_only_the_chosen_part_adapts(part: Literal["head", "body"]) -> None:
    learner, task = make_learner("maml"), make_batch().task(0)
    first, *_, last = adapt(learner, task, InnerLoop(2, RATE, adapt=part), meta=False)
    body_moved = any(not torch.equal(first.body[n], last.body[n]) for n in first.body)
    head_moved = any(not torch.equal(first.head[n], last.head[n]) for n in first.head)
    assert (body_moved, head_moved) == (part == "body", part == "head")


def test_the_heads_rate_grows_with_the_ways_unless_fixed() -> None:
    learner = make_learner()

    def rates(ways: int, **options: Any) -> tuple[set[Any], Any]:
        found = InnerLoop(1, 0.4, **options).rates(learner, 0, ways)
        return set(found.body.values()), found.head

    assert rates(10) == ({0.4}, 0.8)
    assert rates(5) == ({0.4}, 0.4)
    assert rates(10, head_lr="fixed") == ({0.4}, 0.4)


def test_no_steps_leave_the_start() -> None:
    learner, task = make_learner("maml"), make_batch().task(0)
    (only,) = adapt(learner, task, InnerLoop(0, RATE), meta=False)
    assert torch.equal(only.head["weight"], learner.head.get_parameter("weight"))


def test_descending_lowers_the_support_loss() -> None:
    learner, task = make_learner("hidra"), make_batch().task(0)
    losses = [
        F.cross_entropy(learner.support_logits(w, task), task.support_labels).item()
        for w in adapt(learner, task, InnerLoop(5, RATE), meta=False)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


@every_order
@pytest.mark.parametrize("mode", ["support", "tasknorm"])
def test_bfloat16_autocast_points_the_same_way(order: Literal[1, 2], mode: Mode) -> None:
    sizes: dict[str, Any] = {"filters": 16, "side": 16, "dtype": torch.float32}
    sizes["normalization"] = mode
    batch = make_batch(side=16, queries=5, dtype=torch.float32)
    inner = InnerLoop(1, RATE, order=order)
    exact = gradients(make_learner(**sizes), batch, inner)
    rough = gradients(make_learner(**sizes, precision="bfloat16"), batch, inner)
    body = [name for name in exact if name.startswith("backbone")]
    a = torch.cat([exact[n].flatten() for n in body])
    b = torch.cat([rough[n].flatten() for n in body])
    assert b.dtype == torch.float32
    assert F.cosine_similarity(a, b, dim=0).item() > 0.95
    assert not torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@every_head
def test_cuda_equals_cpu(head: str) -> None:
    batch, inner = make_batch(), InnerLoop(2, RATE)
    here = gradients(make_learner(head), batch, inner)
    moved = TaskBatch(
        type(batch.support)(batch.support.images.cuda(), batch.support.labels.cuda()),
        type(batch.query)(batch.query.images.cuda(), batch.query.labels.cuda()),
        batch.ways,
        batch.shots,
        batch.generator_keys,
    )
    there = gradients(make_learner(head).cuda(), moved, inner)
    for name, gradient in here.items():
        assert torch.allclose(gradient, there[name].cpu(), rtol=1e-8, atol=1e-10), name
