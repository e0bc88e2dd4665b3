"""All tasks of a meta-batch at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hidra_cli.engine.inner_loop import InnerLoop, adapt, score
from hidra_cli.engine.learner import Weights
from hidra_cli.engine.strategies.base import Strategy, task_gradients
from hidra_cli.engine.strategies.recomputation import Gradients
from hidra_cli.engine.strategies.stacking import StackedLearner, StackedTask, chunks, stacked
from hidra_cli.engine.task_batch import TaskBatch


class Batched(Strategy):
    """All tasks at once, by `torch.vmap`: many small operators become few large ones.

    Weights that all tasks share are not copied for each: with identical neurons the first inner
    step's features are one pass with one set of weights, and with one inner step there is no
    backbone per task at all.
    """

    name = "batched"

    def gradients(self, batch: TaskBatch, inner: InnerLoop) -> Iterator[Gradients]:
        learner = StackedLearner(self.learner)
        for chunk in chunks(batch, self.micro_batch):
            yield task_gradients(learner, stacked(chunk), inner, len(batch), self.recompute)

    def scores_of(
        self, batch: TaskBatch, inner: InnerLoop, steps: int, every_step: bool
    ) -> list[list[float]]:
        learner = StackedLearner(self.learner)
        scores: list[list[float]] = []
        for chunk in chunks(batch, self.micro_batch):
            task = stacked(chunk)
            path = adapt(learner, task, inner, meta=False, steps=steps)
            wanted = (w for step, w in enumerate(path) if every_step or step == steps)
            by_step = [_stacked_scores(learner, weights, task) for weights in wanted]
            scores += map(list, zip(*by_step, strict=True))
        return scores


@torch.no_grad()
def _stacked_scores(learner: StackedLearner, weights: Weights, task: StackedTask) -> list[float]:
    logits = learner.query_logits(weights, task)
    return [score(*of_task) for of_task in zip(logits, task.query_labels, strict=True)]
