"""The same meta-gradient as others compute it: a plain autograd loop, `higher` and `torchopt`.

Each is written as its users write it, from the libraries' own MAML examples, with two choices in
their favour: a task's graph is freed before the next begins (torchopt's example keeps all), and
first order never builds the graph of the inner gradients (both libraries do by default).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.engine.workloads import Case
from hidra_cli.engine.task_batch import Task

Gradients = dict[str, Tensor]
Run = Callable[[], Gradients]
LabelledTask = tuple[Tensor, Tensor, Tensor, Tensor]


class Network(nn.Module):
    """Conv4 as most write it: convolution, batch norm, ReLU, max pooling; then a linear layer.

    Convolutions have no bias, so that the parameters are those of hidra's.
    """

    def __init__(self, channels: int, filters: int, blocks: int, features: int, ways: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(channels if block == 0 else filters, filters, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(filters, track_running_stats=False),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                )
                for block in range(blocks)
            )
        )
        self.output = nn.Linear(features, ways)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.blocks(images).flatten(1))
        return logits


class Start:
    """Where all peers start: a network and tasks with the values that hidra's learner has.

    Attributes:
        network: its output layer is a task's; with the hidra head, a place for the N copies.
        shared: whether the N neurons start as copies of one.
        names, parameters: the meta-parameters, by the learner's names.
        tasks: support images and labels, query images and labels of each.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        work, learner = case.workload, case.learner()
        layout = torch.channels_last if case.peers_channels_last else torch.contiguous_format
        self.network = Network(
            work.channels, work.filters, work.blocks, learner.backbone.features, work.ways
        ).to(case.device, case.dtype)
        # Its blocks are named as the backbone's: pooling and ReLU change places, and own nothing.
        self.network.load_state_dict(learner.backbone.state_dict(), strict=False)
        self.network.to(memory_format=layout)
        self.shared = work.head == "hidra"
        body = [p for n, p in self.network.named_parameters() if n.startswith("blocks.")]
        self.parameters = [*body, *learner.head.parameters()]
        self.names = [name for name, _ in learner.named_parameters()]
        if not self.shared:
            self.network.output.load_state_dict(learner.head.state_dict())
            self.parameters = list(self.network.parameters())
        self.tasks = [_laid_out(task, layout) for task in map(case.batch().task, range(work.tasks))]

    def weights(self) -> list[Tensor]:
        """All weights at the start of a task, differentiable in the meta-parameters."""
        *body, weight, bias = self.parameters
        if not self.shared:
            return [*body, weight, bias]
        ways = self.case.workload.ways
        return [*body, weight.expand(ways, -1), bias.expand(ways)]

    def runs(self, of_task: Callable[[LabelledTask], None]) -> Run:
        """The meta-gradient of the mean over tasks, where `of_task` adds one's to `.grad`."""

        def run() -> Gradients:
            for parameter in self.parameters:
                parameter.grad = None
            for task in self.tasks:
                of_task(task)
            return dict(zip(self.names, map(_gradient, self.parameters), strict=True))

        return run


def _laid_out(task: Task, layout: torch.memory_format) -> LabelledTask:
    support, query = (
        images.contiguous(memory_format=layout)
        for images in (task.support_images, task.query_images)
    )
    return support, task.support_labels, query, task.query_labels


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def plain(case: Case, *, bfloat16: bool = False) -> Run:
    """The loop over lists of weights that most MAML code has."""
    start, work = Start(case), case.workload

    def loss(weights: list[Tensor], images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(case.device.type, torch.bfloat16, enabled=bfloat16):
            logits = _forward(weights, images)
        return F.cross_entropy(logits.float() if bfloat16 else logits, labels)

    def of_task(task: LabelledTask) -> None:
        images, labels, queries, answers = task
        weights = start.weights()
        for _ in range(work.steps):
            support = loss(weights, images, labels)
            gradients = torch.autograd.grad(support, weights, create_graph=work.order == 2)
            weights = [
                weight - work.inner_lr * gradient
                for weight, gradient in zip(weights, gradients, strict=True)
            ]
        (loss(weights, queries, answers) / work.tasks).backward()  # type: ignore[no-untyped-call]

    return start.runs(of_task)


def _forward(weights: list[Tensor], images: Tensor) -> Tensor:
    """Images (n, C, H, W) → logits (n, N)."""
    *blocks, weight, bias = weights
    for block in range(0, len(blocks), 3):
        images = F.conv2d(images, blocks[block], padding=1)
        images = F.batch_norm(
            images, None, None, blocks[block + 1], blocks[block + 2], training=True
        )
        images = F.max_pool2d(F.relu(images), 2)
    return F.linear(images.flatten(1), weight, bias)


def with_higher(case: Case) -> Run:
    """After examples/maml-omniglot.py of higher 0.2.1 (Grefenstette et al. 2019)."""
    import higher

    start, work = Start(case), case.workload
    inner = torch.optim.SGD(start.network.parameters(), lr=work.inner_lr)
    second = work.order == 2

    def of_task(task: LabelledTask) -> None:
        images, labels, queries, answers = task
        with higher.innerloop_ctx(
            start.network, inner, copy_initial_weights=False, track_higher_grads=second
        ) as (network, optimizer):
            if start.shared:
                network.update_params(start.weights())
            for _ in range(work.steps):
                optimizer.step(F.cross_entropy(network(images), labels))
            loss = F.cross_entropy(network(queries), answers) / work.tasks
            if second:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                last = torch.autograd.grad(loss, list(network.parameters()))
                torch.autograd.backward(start.weights(), last)

    return start.runs(of_task)


def with_torchopt(case: Case) -> Run:
    """After examples/few-shot/maml_omniglot.py of torchopt 0.7.3 (Ren et al. 2023).

    Its meta-optimizers always differentiate twice, so first order takes its functional interface.
    """
    return _torchopt_second(case) if case.workload.order == 2 else _torchopt_first(case)


def _torchopt_second(case: Case) -> Run:
    import torchopt

    start, work = Start(case), case.workload
    network = start.network
    optimizer = torchopt.MetaSGD(network, lr=work.inner_lr)

    def of_task(task: LabelledTask) -> None:
        images, labels, queries, answers = task
        state = torchopt.extract_state_dict(network, by="reference")
        optimizer_state = torchopt.extract_state_dict(optimizer, by="reference")
        if start.shared:
            *_, weight, bias = start.weights()
            output: dict[str, Any] = network.output._parameters
            output.update(weight=weight, bias=bias)
        for _ in range(work.steps):
            optimizer.step(F.cross_entropy(network(images), labels))
        loss = F.cross_entropy(network(queries), answers) / work.tasks
        torchopt.recover_state_dict(network, state)
        torchopt.recover_state_dict(optimizer, optimizer_state)
        loss.backward()  # type: ignore[no-untyped-call]

    return start.runs(of_task)


def _torchopt_first(case: Case) -> Run:
    import torchopt

    start, work = Start(case), case.workload
    names = [name for name, _ in start.network.named_parameters()]
    optimizer = torchopt.sgd(lr=work.inner_lr)

    def loss(weights: Any, images: Tensor, labels: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        logits = torch.func.functional_call(start.network, named, (images,))
        return F.cross_entropy(logits, labels)

    def of_task(task: LabelledTask) -> None:
        images, labels, queries, answers = task
        weights = tuple(start.weights())
        state = optimizer.init(weights)
        for _ in range(work.steps):
            gradients = torch.autograd.grad(loss(weights, images, labels), weights)
            updates, state = optimizer.update(gradients, state, inplace=False)
            weights = torchopt.apply_updates(weights, updates, inplace=False)
        (loss(weights, queries, answers) / work.tasks).backward()  # type: ignore[no-untyped-call]

    return start.runs(of_task)
