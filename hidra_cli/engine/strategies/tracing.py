"""The whole meta-gradient of stacked tasks as one program of plain forward operators.

Autograd cannot run while a CUDA graph is captured, and PyTorch's compiler cannot differentiate
twice through what it compiled. So `make_fx` traces the meta-gradient once: inner gradients and
their gradients become operators like all others. The program needs no autograd when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from hidra_cli.api import FastWeights
from hidra_cli.engine.inner_loop import InnerLoop, labelled_right, outer_loss
from hidra_cli.engine.learner import Learner, Weights, leaves
from hidra_cli.engine.normalization import adapting
from hidra_cli.engine.strategies.recomputation import added, products
from hidra_cli.engine.strategies.stacking import StackedLearner, StackedTask


@dataclass(frozen=True)
class Results:
    """What the program gives for T tasks, on the device.

    Attributes:
        gradients: of the inputs that have one, in order: meta-parameters, then the head's start.
        loss: (), the sum over tasks of their mean query losses after the last step.
        score: (), the mean score of all queries after the last step.
    """

    gradients: list[Tensor]
    loss: Tensor
    score: Tensor

    def tensors(self) -> list[Tensor]:
        return [*self.gradients, self.loss, self.score]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Results:
        *gradients, loss, score = tensors
        return cls(gradients, loss, score)


class TracedGradient:
    """The meta-gradient of tasks of one shape, as a traced program.

    A head that draws random numbers makes its starting weights outside, for every call: they are
    inputs. Other heads' `initialize` is part of the program.

    Args:
        learner: its parameters are the program's first inputs, at the addresses they have.
        task: of the shape that will be given.
        inner: the inner loop; the values of its `shares` are an input, which of them are zero is
            part of the program.
        of: the number of tasks that the mean is over.
    """

    def __init__(self, learner: Learner, task: StackedTask, inner: InnerLoop, of: int) -> None:
        self.learner = StackedLearner(learner)
        self._whole = _OuterLoss(self.learner)
        self._task, self._inner, self._of = task, inner, of
        self._named = dict(self._whole.named_parameters())
        self._draws = draws_numbers(learner, task)
        self._has_gradient: list[bool] = []

        def program(
            parameters: dict[str, Tensor], head: FastWeights, inputs: list[Tensor]
        ) -> list[Tensor]:  # a method would be traced with `self` as an input
            return self._program(parameters, head, inputs)

        with torch.enable_grad():
            inputs = self.inputs(task, inner)
            self.program = make_fx(program)(self._named, leaves(self.start(task)), inputs)
        self.program.graph.eliminate_dead_code()
        self.program.recompile()

    @staticmethod
    def key(task: StackedTask, inner: InnerLoop, of: int) -> tuple[object, ...]:
        """What tasks and inner loops have in common that one program serves."""
        shapes = tuple(t.shape for t in _images(task))
        pattern = tuple(float(share != 0) for share in inner.loss_shares)
        return shapes, task.ways, of, replace(inner, shares=pattern)

    def inputs(self, task: StackedTask, inner: InnerLoop) -> list[Tensor]:
        """The tensors that differ between calls: shares of the losses, images, labels, weights."""
        shares = torch.tensor(inner.loss_shares, dtype=task.support_images.dtype)
        return [shares.to(task.support_images.device, non_blocking=True), *_images(task)]

    def start(self, task: StackedTask) -> FastWeights:
        """The head's starting weights, with their history; none if the program makes them."""
        return self.learner.initial_weights(task).head if self._draws else {}

    def run(self, head: FastWeights, inputs: list[Tensor]) -> list[Tensor]:
        """The program's results for these inputs, as `Results.of` reads them."""
        with torch.no_grad():
            results: list[Tensor] = self.program(self._named, leaves(head), inputs)
        return results

    def by_parameter(self, results: Results, head: FastWeights) -> list[Tensor | None]:
        """The gradient of every meta-parameter, also through the head's starting weights."""
        rest = iter(results.gradients)
        gradients = [next(rest) if has else None for has in self._has_gradient]
        own = list(self._named.values())
        through_start = products(list(head.values()), own, gradients[len(own) :])
        return added(gradients[: len(own)], through_start)

    def _program(
        self, parameters: dict[str, Tensor], head: FastWeights, inputs: list[Tensor]
    ) -> list[Tensor]:
        parameters, head = leaves(parameters), leaves(head)
        shares, *images = inputs
        fields: dict[str, Any] = dict(zip(_FIELDS, images, strict=False))
        task = replace(self._task, **fields)
        pattern = zip(self._inner.loss_shares, shares.unbind(), strict=True)
        inner = replace(self._inner, shares=tuple(share if on else 0.0 for on, share in pattern))
        outer, last, logits = functional_call(self._whole, parameters, (task, inner, head))
        inputs = [*parameters.values(), *head.values()]
        computed = torch.autograd.grad(outer / self._of, inputs, allow_unused=True)
        self._has_gradient = [gradient is not None for gradient in computed]
        gradients = [gradient for gradient in computed if gradient is not None]
        return [*gradients, last.detach(), _score(logits.detach(), task.query_labels)]


class _OuterLoss(nn.Module):
    """The outer loss as a function of all meta-parameters, by name."""

    def __init__(self, learner: StackedLearner) -> None:
        super().__init__()
        self.learner = learner

    def forward(
        self, task: StackedTask, inner: InnerLoop, head: FastWeights
    ) -> tuple[Tensor, Tensor, Tensor]:
        start = None
        if head:
            start = Weights(dict(adapting(self.learner.backbone)), head).renewed()
        return outer_loss(self.learner, task, inner, start)


_FIELDS = ("support_images", "support_labels", "query_images", "query_labels", "support_weights")


def _images(task: StackedTask) -> list[Tensor]:
    tensors = (getattr(task, name) for name in _FIELDS)
    return [tensor for tensor in tensors if tensor is not None]


def _score(logits: Tensor, targets: Tensor) -> Tensor:
    """`inner_loop.score` as a tensor: logits (T, n, N), targets (T, n) or (T, n, N)."""
    rows = logits.flatten(0, 1)
    if targets.is_floating_point():
        return (rows.double() - targets.flatten(0, 1).double()).square().mean()
    return labelled_right(rows, targets.flatten()).double().mean()


def draws_numbers(learner: Learner, task: StackedTask) -> bool:
    """Whether the head's `initialize` takes numbers from its generator."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    features = None
    if learner.head.needs_support:
        shape = task.support_images.shape[1], learner.backbone.features
        features = task.support_images.new_zeros(shape)
    with torch.no_grad():
        learner.head.initialize(task.ways, features, task.support_labels[0], generator)
    return not torch.equal(before, generator.get_state())
