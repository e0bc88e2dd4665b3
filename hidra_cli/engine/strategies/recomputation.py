"""The meta-gradient of one task: at once, or with one inner step's graph in memory at a time.

Backwards through time (Griewank & Walther 2008, chapter 12), each step recomputed from its start:

    λ_S = ∂L(φ_S; query)/∂φ_S
    λ_i = (∂φ_{i+1}/∂φ_i)ᵀ λ_{i+1}        g += (∂φ_{i+1}/∂α)ᵀ λ_{i+1}
    g  += (∂φ_0/∂θ)ᵀ λ_0

Of S steps, only the weights φ_0, …, φ_S are kept. Normalization has no running statistics, so that
a step computed twice is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hidra_cli.engine.inner_loop import InnerLoop, adapt, descend, outer_loss, score
from hidra_cli.engine.learner import Learner, Weights
from hidra_cli.engine.task_batch import Task


@dataclass(frozen=True)
class Gradients:
    """Part of a meta-gradient.

    Attributes:
        gradients: of each meta-parameter; None where it has no effect.
        loss, score: means over the queries of its tasks, after the last step.
        tasks: how many.
    """

    gradients: Sequence[Tensor | None]
    loss: float
    score: float
    tasks: int = 1


def outer_gradients(
    learner: Learner,
    task: Task,
    inner: InnerLoop,
    parameters: Sequence[nn.Parameter],
    *,
    of: int = 1,
    recompute: bool = False,
) -> Gradients:
    """The gradient of a task's outer loss, divided by the number of tasks it is one `of`."""
    if recompute:
        return result(*_recomputed(learner, task, inner, parameters, of), task)
    outer, last, logits = outer_loss(learner, task, inner)
    gradients = torch.autograd.grad(outer / of, parameters, allow_unused=True)
    return result(gradients, last, logits, task)


def result(
    gradients: Sequence[Tensor | None], loss: Tensor, logits: Tensor, task: Task
) -> Gradients:
    """Gradients with loss and score: of one task, or of several at once, whose loss is a sum."""
    n = logits.shape[-1]
    targets = task.query_labels.flatten(0, logits.dim() - 2)
    right = score(logits.detach().reshape(-1, n), targets)
    return Gradients(gradients, loss.item() / task.count, right, task.count)


def _recomputed(
    learner: Learner,
    task: Task,
    inner: InnerLoop,
    parameters: Sequence[nn.Parameter],
    of: int,
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """The gradient; the query loss and logits after the last step."""
    path = list(adapt(learner, task, inner, meta=False))
    adjoint: list[Tensor | None] = [None] * len(_tensors(path[-1]))
    total: list[Tensor | None] = [None] * len(parameters)

    def back(outputs: list[Tensor], weights: Weights, cotangents: list[Tensor | None]) -> None:
        """(∂outputs/∂φ)ᵀ cotangents → adjoint, and the same by the meta-parameters → total."""
        nonlocal adjoint
        inputs = _tensors(weights)
        gradients = products(outputs, [*inputs, *parameters], cotangents)
        adjoint = added(adjoint, gradients[: len(inputs)])
        total[:] = added(total, gradients[len(inputs) :])

    for step in reversed(range(len(path))):
        weights = path[step]
        if share := inner.loss_shares[step]:
            logits = learner.query_logits(weights, task)
            loss = learner.loss(logits, task.query_labels)
            if step == len(path) - 1:
                last, last_logits = loss.detach(), logits.detach()
            back([share * loss / of], weights, [torch.ones_like(loss)])
        if step:
            cotangents, adjoint = adjoint, [None] * len(adjoint)
            after = descend(learner, path[step - 1], task, inner, step - 1, meta=True)
            back(_tensors(after), path[step - 1], cotangents)
    start = learner.initial_weights(task)
    total = added(total, products(_tensors(start), parameters, adjoint))
    return total, last, last_logits


def _tensors(weights: Weights) -> list[Tensor]:
    return [*weights.body.values(), *weights.head.values()]


def products(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Vector-Jacobian products of those outputs that have a vector and a history, by each input."""
    pairs = [(o, v) for o, v in zip(outputs, cotangents, strict=True) if v is not None]
    pairs = [(o, v) for o, v in pairs if o.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    with_cotangent, vectors = zip(*pairs, strict=True)
    return list(torch.autograd.grad(with_cotangent, inputs, vectors, allow_unused=True))


def added(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients, tensor by tensor; None is zero."""
    pairs = zip(a, b, strict=True)
    return [y if x is None else x if y is None else x + y for x, y in pairs]
