"""Meta-training: the outer loop, validation, selection, checkpoints.

for each meta-batch of tasks:  g = mean over tasks of ∇ L(φ_S; query);  Adam step on g
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

from hidra_cli.components import build_learner, check_head_can, used_plugins
from hidra_cli.console import Advance
from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.inner_loop import Outcome, adapted, meta_gradient, query_accuracy
from hidra_cli.engine.learner import Learner
from hidra_cli.episodes import EpisodeSampler
from hidra_cli.errors import DataError, RunError, StoppedError
from hidra_cli.evaluation import interval
from hidra_cli.models import inner_loop
from hidra_cli.runs import MetricsFile, RunDir, optimizer_tensors, save_checkpoint
from hidra_cli.settings import Settings
from hidra_cli.store.reader import ClassTable, PreparedImages

METRICS = (
    "iteration",
    "ways",
    "shots",
    "loss",
    "accuracy",
    "gradient_norm",
    "tasks_per_second",
    "validation_accuracy",
    "validation_interval",
)


@dataclass(frozen=True)
class Validation:
    """Accuracy over the fixed validation episodes, and its 95 % half-width."""

    iteration: int
    accuracy: float
    interval: float


@dataclass(frozen=True)
class Trained:
    """What a finished run reports."""

    best: Validation
    tasks_per_second: float


class MetaTrainer:
    """One meta-training run.

    Args:
        settings: of the run.
        images: the prepared dataset.
        device: where the model and the episodes live.

    Raises:
        UsageError, DataError, PluginError: the settings cannot work with this data; checked here,
            before the first step.
    """

    def __init__(self, settings: Settings, images: PreparedImages, device: torch.device) -> None:
        tasks, seed = settings.tasks, settings.run.seed
        check_head_can(settings, tasks.ways)
        self.settings = settings
        self.images = images
        self.device = device
        self.inner = inner_loop(settings)
        self.train_episodes = EpisodeSampler(
            images.table("train"), tasks.ways, tasks.shots, tasks.queries, seed
        )
        validation = images.table("val")
        self.validation_ways = _ways_within(validation, tasks.ways)
        self.validation_episodes = EpisodeSampler(
            validation, self.validation_ways, tasks.shots, tasks.queries, seed
        )
        self.learner: Learner = build_learner(
            settings.model,
            images.image_shape,
            max(tasks.ways),
            seed=seed,
            precision=settings.run.precision,
        ).to(device)
        self.names, parameters = zip(*self.learner.named_parameters(), strict=True)
        self.optimizer = torch.optim.Adam(parameters, lr=settings.outer.outer_lr)
        self.plugins = used_plugins(settings)
        self.iteration = 0
        self.best: Validation | None = None

    def step(self, shape: tuple[int, int] | None = None) -> tuple[Outcome, int, int, float]:
        """One outer step.

        Args:
            shape: (ways, shots) instead of those drawn for this meta-batch.

        Returns:
            The query outcome, ways, shots, and the norm of the meta-gradient before clipping.

        Raises:
            RunError: the loss or gradient is not finite; the weights keep their last good value.
        """
        outer, size = self.settings.outer, self.settings.outer.meta_batch
        ways, shots = shape or self.train_episodes.shape(self.iteration)
        first = self.iteration * size
        with memory_errors():
            batch = self.train_episodes.batch(
                self.images, range(first, first + size), ways, shots, self.device
            )
            self.learner.head.before_outer_step(ways)
            self.optimizer.zero_grad(set_to_none=True)
            outcome = meta_gradient(self.learner, batch, self.inner)
        norm = self._clip(outer.clip)
        if not (math.isfinite(outcome.loss) and math.isfinite(norm)):
            raise self._not_finite(outcome, ways, shots)
        self.optimizer.step()
        self.learner.head.after_outer_step(ways)
        self.iteration += 1
        return outcome, ways, shots, norm

    def validate(self) -> Validation:
        """Accuracy over the same validation episodes every time."""
        size = self.settings.outer.meta_batch
        steps = self.settings.inner.steps_at_test
        accuracies: list[float] = []
        wanted = self.settings.outer.validation_episodes
        for index in range(math.ceil(wanted / size)):
            ways, shots = self.validation_episodes.shape(index)
            episodes = range(index * size, min((index + 1) * size, wanted))
            with memory_errors():
                batch = self.validation_episodes.batch(
                    self.images, episodes, ways, shots, self.device
                )
                for task in map(batch.task, range(len(batch))):
                    weights = adapted(self.learner, task, self.inner, meta=False, steps=steps)
                    accuracies.append(query_accuracy(self.learner, weights, task))
        mean, half = interval(np.array(accuracies))
        return Validation(self.iteration, mean, half)

    def run(self, run: RunDir, advance: Advance) -> Trained:
        """Train to the last iteration, keeping the last and the best checkpoint.

        Raises:
            StoppedError: SIGINT or SIGTERM came; the step was finished and saved.
            RunError: the loss is not finite, or a file could not be written.
        """
        metrics = MetricsFile(run.metrics, METRICS)
        begun = time.monotonic()
        try:
            with stop_requests() as stop:
                while self.iteration < self.settings.outer.iterations:
                    self._iterate(run, metrics, advance)
                    if stop.number:
                        self._save(run, best=False)
                        raise StoppedError(
                            f"after iteration {self.iteration}, which is saved in {run.last}",
                            signal_number=stop.number,
                            why=f"{signal.Signals(stop.number).name} was received",
                        )
        finally:
            metrics.close()
        seconds = time.monotonic() - begun
        assert self.best is not None  # the last iteration always validates
        return Trained(self.best, self.iteration * self.settings.outer.meta_batch / seconds)

    def _iterate(self, run: RunDir, metrics: MetricsFile, advance: Advance) -> None:
        """One outer step, its row of metrics, and validation where it is due."""
        begun = time.monotonic()
        outcome, ways, shots, norm = self.step()
        rate = self.settings.outer.meta_batch / (time.monotonic() - begun)
        row: dict[str, Any] = {
            "iteration": self.iteration,
            "ways": ways,
            "shots": shots,
            "loss": f"{outcome.loss:.6g}",
            "accuracy": f"{outcome.accuracy:.6g}",
            "gradient_norm": f"{norm:.6g}",
            "tasks_per_second": f"{rate:.4g}",
        }
        outer = self.settings.outer
        if self.iteration % outer.validate_every == 0 or self.iteration == outer.iterations:
            validation = self.validate()
            row["validation_accuracy"] = f"{validation.accuracy:.6g}"
            row["validation_interval"] = f"{validation.interval:.6g}"
            # Of equals the earliest; the margin is above the rounding of a mean.
            better = self.best is None or validation.accuracy > self.best.accuracy + 1e-9
            if better:
                self.best = validation
            metrics.write(row)
            self._save(run, best=better)
        else:
            metrics.write(row)
        shown = f", val {100 * self.best.accuracy:.1f} %" if self.best else ""
        advance(self.iteration, f"loss {outcome.loss:.2f}, {rate:.1f} tasks/s{shown}")

    def _save(self, run: RunDir, *, best: bool) -> None:
        tensors = {f"model.{name}": value for name, value in self.learner.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer, self.names)
        meta = {
            "settings": self.settings.model_dump(),
            "plugins": self.plugins,
            "image_shape": self.images.image_shape,
            "max_ways": max(self.settings.tasks.ways),
            "dataset_hash": self.images.content_hash,
            "store": self.images.path.name,
            "invert": self.images.attributes["invert"] == "True",
            "iteration": self.iteration,
            "best": vars(self.best) if self.best else None,
        }
        save_checkpoint(run.last, tensors, meta)
        if best:
            save_checkpoint(run.best, tensors, meta)

    def _clip(self, limit: float) -> float:
        """Clip each gradient tensor to a norm (the authors' rule); returns the whole norm."""
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if limit > 0:
            for parameter in self.learner.parameters():
                torch.nn.utils.clip_grad_norm_(parameter, limit)
        return norm

    def _not_finite(self, outcome: Outcome, ways: int, shots: int) -> RunError:
        first = self.iteration * self.settings.outer.meta_batch
        return RunError(
            f"the loss or its gradient is not finite at iteration {self.iteration + 1}",
            why=f"loss {outcome.loss}, {ways} ways, {shots} shots, training episodes {first} to "
            f"{first + self.settings.outer.meta_batch - 1} of seed {self.settings.run.seed}",
            fix="lower --inner-lr or --outer-lr, or set --clip; checkpoints before this are whole",
        )


def _ways_within(table: ClassTable, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of ways that the split has classes for."""
    ways = tuple(n for n in wanted if n <= len(table.names))
    if not ways:
        raise DataError(
            f"{table.dataset} has too few classes in its {table.split} split",
            why=f"{len(table.names)} classes; every number of --ways needs more",
            fix="lower --ways, or put more classes into the split",
        )
    return ways


class StopRequest:
    """Set by a signal: its number, or 0."""

    number = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one quits at once."""
    stop = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.number:
            os._exit(128 + number)
        stop.number = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
