"""The choice of a run's strategy, and the reason if it is not the requested one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.strategies.base import Loop, Strategy, TaskByTask
from hidra_cli.engine.strategies.capture import Captured
from hidra_cli.engine.strategies.cores import PATIENCE, Processes, Threads
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.engine.task_batch import Examples, TaskBatch

StrategyName = Literal["loop", "threads", "processes", "batched", "captured"]


@dataclass(frozen=True)
class Choice:
    """The strategy of a run. `why` says why it is not the requested one; "" if it is."""

    strategy: Strategy
    why: str = ""


def choose(
    name: StrategyName | Literal["auto"],
    learner: Learner,
    image_shape: tuple[int, int, int],
    *,
    recompute: bool = False,
    micro_batch: int = 0,
) -> Choice:
    """The strategy with this name, or another one that backbone and head support.

    On a CPU, "auto" computes a task per core, in processes if training takes long. On a GPU it
    computes all tasks at once, as a CUDA graph. Tasks of a frozen network's features are too short
    to be spread over cores: "auto" computes them all at once on a CPU, too.

    Args:
        learner: in the mode, train() or eval(), of its later use.
        image_shape: (C, H, W), for a trial of one small step.
    """

    def make(strategy: Callable[..., Strategy]) -> Strategy:
        return strategy(learner, recompute=recompute, micro_batch=micro_batch)

    if (name != "loop" or recompute) and _draws_random_numbers(learner, image_shape):
        why = "backbone or head draw random numbers (dropout), which must come in the tasks' order"
        if recompute:
            why += "; --graphs recompute: a second pass would draw others, so all graphs are kept"
        return Choice(Loop(learner), why if recompute or name != "auto" else "")
    if name == "auto":
        on_cpu, frozen = learner.device.type == "cpu", isinstance(learner.backbone, FrozenNetwork)
        if on_cpu and not frozen:
            return Choice(make(partial(Processes, patience=PATIENCE)))
        name = "batched" if recompute or on_cpu else "captured"
    if name in ("batched", "captured"):
        if fault := _fails(Batched(learner), learner, image_shape):
            return Choice(make(Loop), f"backbone or head cannot be batched: {fault}")
        if name == "batched":
            return Choice(make(Batched))
        if recompute:
            return Choice(make(Batched), "--graphs recompute cannot be captured")
        if fault := _fails(Captured(learner), learner, image_shape):
            return Choice(make(Batched), f"backbone or head cannot be captured: {fault}")
        return Choice(make(Captured))
    by_name: dict[str, type[TaskByTask]] = {
        "loop": Loop,
        "threads": Threads,
        "processes": Processes,
    }
    return Choice(make(by_name[name]))


def _draws_random_numbers(learner: Learner, image_shape: tuple[int, int, int]) -> bool:
    """Whether a forward pass takes numbers from PyTorch's own generator."""
    task = _trial_batch(learner, image_shape).task(0)
    with torch.random.fork_rng(), torch.no_grad():
        before = torch.get_rng_state()
        on_device = torch.cuda.get_rng_state() if learner.device.type == "cuda" else before
        learner.support_logits(learner.initial_weights(task), task)
        after = torch.cuda.get_rng_state() if learner.device.type == "cuda" else before
        return not (torch.equal(before, torch.get_rng_state()) and torch.equal(on_device, after))


def _trial_batch(learner: Learner, image_shape: tuple[int, int, int]) -> TaskBatch:
    """Two tasks of blank images, two for each class: statistics need more than one in all."""
    ways = learner.head.max_ways if not learner.head.any_ways else 2
    labels = torch.arange(ways, device=learner.device).repeat_interleave(2).expand(2, -1)
    images = torch.zeros(2, 2 * ways, *image_shape, device=learner.device, dtype=learner.dtype)
    examples = Examples(images, labels)
    return TaskBatch(examples, examples, ways, 2, (0, 1)).mapped(learner.precomputed)


def _fails(strategy: Strategy, learner: Learner, image_shape: tuple[int, int, int]) -> str:
    """The error of a small meta-gradient of two tasks; "" if it works."""
    try:
        # Two steps, because tasks share their weights in the first step only.
        list(strategy.gradients(_trial_batch(learner, image_shape), InnerLoop(2, 0.01)))
    except Exception as exc:  # a plugin's code may raise anything under vmap, or while it is traced
        return f"{type(exc).__name__}: {exc}".split("\n")[0]
    return ""
