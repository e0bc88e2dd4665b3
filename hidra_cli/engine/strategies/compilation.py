"""The whole meta-gradient of several tasks, traced and compiled as one function.

PyTorch's compiler cannot differentiate twice through what it compiled, so the gradient is part of
what is traced: inner gradients, their gradients and all. On CUDA the function is replayed as a
CUDA graph. One function for each shape of tasks; each takes minutes to compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from hidra_cli.api import FastWeights
from hidra_cli.engine.inner_loop import InnerLoop, outer_loss
from hidra_cli.engine.learner import Learner, Weights, leaves
from hidra_cli.engine.normalization import adapting
from hidra_cli.engine.strategies.base import task_gradients
from hidra_cli.engine.strategies.recomputation import Gradients, added, products, result
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.engine.strategies.stacking import StackedLearner, StackedTask, chunks, stacked
from hidra_cli.engine.task_batch import TaskBatch

_Images = tuple[Tensor, Tensor, Tensor, Tensor]


class Compiled(Batched):
    """As batched, with the whole meta-gradient as one compiled function for each shape of tasks.

    Args:
        backend: of `torch.compile`.
    """

    name = "compiled"

    def __init__(self, learner: Learner, *, backend: str = "inductor", **options: Any) -> None:
        super().__init__(learner, **options)
        self._backend = backend
        self._compiled: dict[Any, CompiledGradient] = {}

    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        for chunk in chunks(batch, self.micro_batch):
            task = stacked(chunk)
            if task.support_weights is not None:  # the traced function has none
                yield task_gradients(
                    StackedLearner(self.learner), task, inner, len(batch), self.recompute
                )
                continue
            shapes = task.support_images.shape, task.query_images.shape, task.ways
            key = shapes, inner, len(batch)
            if key not in self._compiled:
                self._compiled[key] = CompiledGradient(
                    self.learner, task, inner, len(batch), self._backend
                )
            yield self._compiled[key](task)


class CompiledGradient:
    """`outer_gradients` of stacked tasks of one shape.

    The head makes its starting weights outside, as it likes; the function begins with them.

    Args:
        learner: its modules are traced with other tensors in place of their parameters.
        task: of the shape that will be given.
        inner: the inner loop.
        of: the number of tasks that the mean is over.
        backend: of `torch.compile`.
    """

    def __init__(
        self,
        learner: Learner,
        task: StackedTask,
        inner: InnerLoop,
        of: int,
        backend: str = "inductor",
    ) -> None:
        self.learner = StackedLearner(learner)
        self._whole = _OuterLoss(self.learner, inner)
        self._task, self._of = task, of
        self._named = dict(self._whole.named_parameters())
        self._has_gradient: list[bool] = []
        head = self.learner.initial_weights(task).head

        def gradients(*given: Any) -> Any:  # a method would be traced with `self` as an input
            return self._gradients(*given)

        traced = make_fx(gradients)(self._named, leaves(head), _images(task))
        graphs = task.support_images.is_cuda and backend == "inductor"
        self._function: Callable[..., Any] = torch.compile(
            traced, backend=backend, mode="reduce-overhead" if graphs else None
        )

    def __call__(self, task: StackedTask) -> Gradients:
        head = self.learner.initial_weights(task).head
        with torch.no_grad():
            found, loss, logits = self._function(self._named, leaves(head), _images(task))
        rest = iter([tensor.clone() for tensor in found])  # a CUDA graph reuses its memory
        gradients = [next(rest) if has else None for has in self._has_gradient]
        own = list(self._named.values())
        by_parameter, by_head = gradients[: len(own)], gradients[len(own) :]
        # What flows on through the head's starting weights.
        more = products(list(head.values()), own, by_head)
        return result(added(by_parameter, more), loss, logits, task)

    def _gradients(
        self, parameters: dict[str, Tensor], head: FastWeights, images: _Images
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        parameters, head = leaves(parameters), leaves(head)
        task = replace(
            self._task,
            support_images=images[0],
            support_labels=images[1],
            query_images=images[2],
            query_labels=images[3],
        )
        outer, last, logits = functional_call(self._whole, parameters, (task, head))
        inputs = [*parameters.values(), *head.values()]
        found = torch.autograd.grad(outer / self._of, inputs, allow_unused=True)
        self._has_gradient = [gradient is not None for gradient in found]
        return [g for g in found if g is not None], last.detach(), logits.detach()


class _OuterLoss(nn.Module):
    """A function of all meta-parameters, by name."""

    def __init__(self, learner: StackedLearner, inner: InnerLoop) -> None:
        super().__init__()
        self.learner = learner
        self.inner = inner

    def forward(self, task: StackedTask, head: FastWeights) -> tuple[Tensor, Tensor, Tensor]:
        start = Weights(dict(adapting(self.learner.backbone)), head).renewed()
        return outer_loss(self.learner, task, self.inner, start)


def _images(task: StackedTask) -> _Images:
    return task.support_images, task.support_labels, task.query_images, task.query_labels
