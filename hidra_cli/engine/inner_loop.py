"""The inner loop (Finn et al. 2017, algorithm 1; HIDRA, arXiv 1910.12749) and its gradient.

This is the readable specification: one task at a time, plain autograd.

    φ_0 = (θ, N copies of the master neuron)
    φ_{i+1} = φ_i − α_i ∇ L(φ_i; support)
    minimize over θ, the master and, if learned, α:  L(φ_S; query)

`strategies/` holds faster implementations and ones that need less memory. All must equal this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.api import FastWeights
from hidra_cli.engine.learner import Learner, Weights, meta_training
from hidra_cli.engine.normalization import adapting
from hidra_cli.engine.rates import Rates
from hidra_cli.engine.task_batch import Task, TaskBatch

# The number of ways at which the scaled rate of the head equals `inner_lr`.
REFERENCE_WAYS = 5


@dataclass(frozen=True)
class InnerLoop:
    """The settings of the inner loop.

    Attributes:
        steps: gradient steps on the support set.
        inner_lr: α, unless the learner has learned rates.
        head_lr: "by-ways" multiplies the head's α by N/5, because its gradient shrinks like 1/N;
            not under squared error, whose gradient and curvature do not depend on N.
        adapt: the part that changes.
        order: 2 differentiates through the inner gradients, 1 treats them as constants.
        skip_zeros: do not compute the first step's backbone gradient if it is exactly zero
            (identical neurons under softmax). The result is the same.
        shares: the shares of the query losses after 0, 1, …, S steps in the outer loss (the
            multi-step loss of MAML++, Antoniou et al. 2019). None means that only the last one
            counts. They are tensors if a traced program takes them as inputs.
    """

    steps: int
    inner_lr: float
    head_lr: Literal["by-ways", "fixed"] = "by-ways"
    adapt: Literal["all", "head", "body"] = "all"
    order: Literal[1, 2] = 2
    skip_zeros: bool = True
    shares: tuple[float | Tensor, ...] | None = None

    @property
    def loss_shares(self) -> tuple[float | Tensor, ...]:
        """The shares of the S + 1 losses."""
        return self.shares or (*(0.0,) * self.steps, 1.0)

    def moves_body(self, learner: Learner, step: int) -> bool:
        """Whether a step changes the backbone.

        With identical neurons the first step's gradient for it is zero. This is exact.
        """
        is_zero = self.skip_zeros and step == 0 and learner.symmetric
        return self.adapt != "head" and not is_zero

    def rates(self, learner: Learner, step: int, ways: int) -> Rates:
        """α of one step for tasks of N ways."""
        if learner.rates is not None:
            rates = learner.rates.at(step)
        else:
            body = dict.fromkeys(adapting(learner.backbone), self.inner_lr)
            rates = Rates(body, self.inner_lr)
        by_ways = self.head_lr == "by-ways" and learner.loss_name != "mse"
        return Rates(rates.body, rates.head * (ways / REFERENCE_WAYS if by_ways else 1.0))


@dataclass(frozen=True)
class Outcome:
    """Query results of T tasks, means over all their queries.

    Attributes:
        loss: mean query loss after the last step (softmax: cross-entropy in nats).
        score: accuracy in 0..1; for regression the mean squared error per output.
    """

    loss: float
    score: float


def adapt(
    learner: Learner,
    task: Task,
    inner: InnerLoop,
    *,
    meta: bool,
    steps: int | None = None,
    start: Weights | None = None,
) -> Iterator[Weights]:
    """Yield the task's weights φ_0, φ_1, …, φ_S.

    Args:
        learner: holds the meta-parameters.
        task: the task whose support set is learned.
        inner: the settings of the inner loop.
        meta: keep φ differentiable in the meta-parameters. Otherwise memory does not grow with S.
        steps: S, instead of `inner.steps`.
        start: φ_0, instead of the learner's.
    """
    weights = learner.initial_weights(task) if start is None else start
    if not meta:
        weights = weights.detached()
    yield weights
    for step in range(inner.steps if steps is None else steps):
        with torch.enable_grad():
            weights = descend(learner, weights, task, inner, step, meta=meta)
            if not meta:
                weights = weights.detached()
        yield weights


def adapted(
    learner: Learner, task: Task, inner: InnerLoop, *, meta: bool, steps: int | None = None
) -> Weights:
    """φ_S, the last weights of `adapt`. The earlier ones are not kept."""
    (weights,) = deque(adapt(learner, task, inner, meta=meta, steps=steps), maxlen=1)
    return weights


def descend(
    learner: Learner, weights: Weights, task: Task, inner: InnerLoop, step: int, *, meta: bool
) -> Weights:
    """One step of gradient descent on the support loss: φ − α ∇ loss, for the part that adapts."""
    moves_body = inner.moves_body(learner, step)
    if moves_body:
        weights = learner.separated(weights, task)
    body = weights.body if moves_body else {}
    head = {} if inner.adapt == "body" else weights.head
    moving = [*body.values(), *head.values()]
    if not moving:
        return weights.renewed()
    loss = learner.support_loss(weights, task)
    gradients = torch.autograd.grad(loss, moving, create_graph=meta and inner.order == 2)
    rates = inner.rates(learner, step, task.ways)
    still = weights.renewed()  # what stays still must be a tensor of its own in the next step
    return Weights(
        still.body | _minus(body, gradients[: len(body)], rates.body),
        still.head | _minus(head, gradients[len(body) :], dict.fromkeys(head, rates.head)),
    )


def _minus(
    weights: FastWeights, gradients: tuple[Tensor, ...], rates: Mapping[str, float | Tensor]
) -> FastWeights:
    return {
        name: value - rates[name] * gradient
        for (name, value), gradient in zip(weights.items(), gradients, strict=True)
    }


def meta_gradient(learner: Learner, batch: TaskBatch, inner: InnerLoop) -> Outcome:
    """Add the gradient of the mean query loss over T tasks to the meta-parameters' `.grad`.

    The graph of a task is freed before the next begins, so memory does not grow with T.
    """
    losses, scores = [], []
    with meta_training(learner):
        for task in batch.mapped(learner.precomputed).tasks():
            outer, last, logits = outer_loss(learner, task, inner)
            (outer / len(batch)).backward()  # type: ignore[no-untyped-call]
            losses.append(last.item())
            scores.append(score(logits, task.query_labels))
    leave_alone(learner)
    return Outcome(fmean(losses), fmean(scores))


def leave_alone(learner: Learner) -> None:
    """Remove gradients that are zero except for rounding.

    Adam would divide the rounding by its own size, which makes a random walk.
    """
    for parameter in learner.inert_parameters():
        parameter.grad = None


def outer_loss(
    learner: Learner, task: Task, inner: InnerLoop, start: Weights | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The outer loss of one task; the query loss and logits after the last step."""
    outer: Tensor | float = 0.0
    path = adapt(learner, task, inner, meta=True, start=start)
    for share, weights in zip(inner.loss_shares, path, strict=True):
        if isinstance(share, Tensor) or share:
            logits = learner.query_logits(weights, task)
            last = learner.loss(logits, task.query_labels)
            outer = outer + share * last
    assert isinstance(outer, Tensor)
    return outer, last, logits


@torch.no_grad()
def query_score(learner: Learner, weights: Weights, task: Task) -> float:
    """The score of the queries."""
    return score(learner.query_logits(weights, task), task.query_labels)


def score(outputs: Tensor, targets: Tensor) -> float:
    """How good outputs (n, N) are, in one number.

    For labels (n,) the share of right answers, in 0..1. For values (n, N) the mean squared error
    per output; less is better.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs.double(), targets.double()).item()
    return labelled_right(outputs, targets).double().mean().item()


def labelled_right(logits: Tensor, labels: Tensor) -> Tensor:
    """For each row of (n, N), whether its largest logit is the label's: (n,) bool.

    A row with NaN or infinity is never right.
    """
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)
