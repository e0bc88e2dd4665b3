"""What the engine benchmark computes: named meta-gradients, their tasks and their learners."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from typing import Literal

import torch

from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner, Precision
from hidra_cli.engine.normalization import norm_factory
from hidra_cli.engine.task_batch import Examples, TaskBatch
from hidra_cli.errors import UsageError
from hidra_plugins.backbones import Conv4
from hidra_plugins.heads import Hidra, Maml

CPU = torch.device("cpu")
HeadName = Literal["hidra", "maml"]


@dataclass(frozen=True)
class Workload:
    """One meta-gradient: T tasks of N ways, K shots and Q queries per class, Conv4.

    Attributes:
        images: what the sizes are those of; the images themselves are drawn.
        side, channels: of an image (channels, side, side).
        filters, blocks: of the Conv4.
        order: 2 differentiates through the inner gradients, 1 takes them as constants.
        head: "hidra" starts a task from N copies of one neuron, "maml" from N neurons.
        inner_lr: of backbone and head alike; by default MAML's (Finn et al. 2017, appendix A), at
            which the gradient is not lost in rounding. Time does not depend on it.
    """

    images: str
    side: int
    channels: int
    filters: int
    ways: int
    shots: int
    tasks: int
    steps: int
    order: Literal[1, 2] = 2
    head: HeadName = "hidra"
    queries: int = 15
    blocks: int = 4
    inner_lr: float = 0.1

    @property
    def name(self) -> str:
        return (
            f"{self.images}-{self.ways}w{self.shots}s-{self.tasks}tasks-{self.steps}steps"
            f"-order{self.order}-{self.head}"
        )


def _named() -> dict[str, Workload]:
    sizes = [
        Workload("omniglot", 28, 1, 64, ways=5, shots=1, tasks=tasks, steps=steps, inner_lr=rate)
        for tasks, (steps, rate) in product((4, 32), ((1, 0.4), (5, 0.1)))
    ]
    sizes.append(Workload("omniglot", 28, 1, 64, ways=20, shots=1, tasks=16, steps=5))
    sizes += [
        Workload("84x84", 84, 3, 32, ways=5, shots=shots, tasks=4, steps=5, inner_lr=0.01)
        for shots in (1, 5)
    ]
    orders: tuple[Literal[1, 2], ...] = (2, 1)
    heads: tuple[HeadName, ...] = ("hidra", "maml")
    every = [
        Workload(**vars(size) | {"order": order, "head": head})
        for order, head, size in product(orders, heads, sizes)
    ]
    return {workload.name: workload for workload in every}


WORKLOADS = _named()


def find_workloads(patterns: list[str]) -> list[Workload]:
    """Those whose names equal one of the patterns, in which * stands for any characters.

    Raises:
        UsageError: a pattern that no name equals.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in WORKLOADS):
            raise UsageError(
                f"there is no workload {pattern!r}",
                why="the names are " + ", ".join(WORKLOADS),
                fix="quote a pattern such as 'omniglot-5w1s-*-order2-hidra'",
            )
    return [
        workload
        for name, workload in WORKLOADS.items()
        if any(fnmatch(name, pattern) for pattern in patterns)
    ]


@dataclass(frozen=True)
class Case:
    """A workload as it is to be run.

    Attributes:
        dtype: of images and weights, the same values in each.
        peers_channels_last: whether the peers' images and weights are laid out so.
        seed: of images and weights.
        reverse: whether a task has its examples in reverse order, which changes rounding alone.
    """

    workload: Workload
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    peers_channels_last: bool = False
    seed: int = 0
    reverse: bool = False

    def learner(self, precision: Precision = "float32") -> Learner:
        """A Conv4 with the workload's head, normalized by batch statistics as the peers are."""
        work = self.workload
        factory, episode = norm_factory("transductive")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            shape = (work.channels, work.side, work.side)
            backbone = Conv4(shape, factory, filters=work.filters, blocks=work.blocks)
            head = (Hidra if work.head == "hidra" else Maml)(backbone.features, work.ways)
        learner = Learner(backbone, head, episode, "transductive", precision)
        return learner.to(self.device, self.dtype)

    def inner(self) -> InnerLoop:
        work = self.workload
        return InnerLoop(work.steps, work.inner_lr, head_lr="fixed", order=work.order)

    def batch(self) -> TaskBatch:
        """Tasks whose classes are noisy copies of random prototypes: there is something to learn.

        Support images (T, N·K, C, H, W), query images (T, N·Q, C, H, W).
        """
        work = self.workload
        generator = torch.Generator().manual_seed(self.seed)
        image = (work.channels, work.side, work.side)
        prototypes = torch.rand(work.tasks, work.ways, 1, *image, generator=generator)

        def examples(each: int) -> Examples:
            noise = torch.rand(work.tasks, work.ways, each, *image, generator=generator)
            images = (0.6 * prototypes + 0.4 * noise).flatten(1, 2)
            labels = torch.arange(work.ways).repeat_interleave(each).expand(work.tasks, -1)
            if self.reverse:
                images, labels = images.flip(1), labels.flip(1)
            return Examples(images.to(self.device, self.dtype), labels.contiguous().to(self.device))

        support, query = examples(work.shots), examples(work.queries)
        return TaskBatch(support, query, work.ways, work.shots, tuple(range(work.tasks)))
