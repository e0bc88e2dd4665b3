"""The outer loop: steps, metrics, validation, checkpoints and signals.

for each meta-batch of tasks:  g = mean over tasks of ∇ L(φ_S; query);  Adam step on g
"""

from __future__ import annotations

import contextlib
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.errors import NotFiniteError, RunError, StoppedError
from hidra_cli.jobs.training.nonfinite import skip_or_stop
from hidra_cli.jobs.training.state import Checkpoints
from hidra_cli.jobs.training.trainer import MetaTrainer, Step
from hidra_cli.jobs.training.validation import Validation
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.metrics import MetricsFile, NoMetrics, open_metrics
from hidra_cli.system.console import Advance, Console, Silence
from hidra_cli.system.signals import stop_requests
from hidra_cli.tasks.objective import CLASSIFICATION
from hidra_cli.tasks.shape import TaskShape

METRICS = (
    "iteration",
    "ways",
    "shots",
    "loss",
    "accuracy",
    "gradient_norm",
    "tasks_per_second",
    "validation_accuracy",
    "validation_mean_squared_error",
    "validation_interval",
    "skipped",
)


@dataclass(frozen=True)
class Trained:
    """The end of a run; `tasks_per_second` is None where no step was left to take."""

    best: Validation
    tasks_per_second: float | None
    skipped: int


def train(trainer: MetaTrainer, run: RunDir, console: Console | None = None) -> Trained:
    """Train to the last iteration, keeping the two newest checkpoints and the best.

    Raises:
        StoppedError: SIGINT or SIGTERM came; the step was finished and saved.
        NotFiniteError, DeviceError: see `take_step`; the state before that step was saved.
        RunError: a file could not be written; the last good checkpoint is named.
    """
    console = console or Silence()
    begun, first = time.monotonic(), trainer.progress.iteration
    metrics = _open_metrics(trainer, run, console)
    checkpoints = Checkpoints(trainer, run, metrics)
    try:
        _Loop(trainer, checkpoints, console).run()
    except NotFiniteError:
        raise
    except RunError as error:
        raise checkpoints.with_last_good(error) from error
    finally:
        with contextlib.suppress(RunError):  # each row's error was raised when it was written
            metrics.close()
    seconds = time.monotonic() - begun
    best = trainer.progress.best
    if best is None:
        # A run shorter than the time to its first validation has a best checkpoint, too. It is no
        # part of the state, so that a longer run is the same whether it paused here.
        best = trainer.validate()
        checkpoints.save_best()
    steps = trainer.progress.iteration - first
    rate = steps * trainer.settings.outer.meta_batch / seconds if steps else None
    return Trained(best, rate, trainer.progress.skipped)


def take_step(
    trainer: MetaTrainer,
    shape: TaskShape | None = None,
    inner: InnerLoop | None = None,
    *,
    before_update: AbstractContextManager[None] | None = None,
) -> Step:
    """One outer step. One that is not finite changes nothing but the counters.

    Args:
        trainer: that takes it.
        shape, inner: see `MetaTrainer.gradient`.
        before_update: a context for all that leaves the weights as they are.

    Raises:
        NotFiniteError: the loss or gradient is not finite, and steps are not to be skipped or too
            many in a row were; names the task and how to replay it.
        DeviceError: out of memory; names the flags that help.
    """
    with trainer.strategy.between_tasks():
        with before_update or nullcontext():
            step = trainer.gradient(shape, inner)
            if not step.finite:
                skip_or_stop(trainer, step)
        if step.finite:
            trainer.update(step.shape)
    return step


class _Loop:
    """The steps of a run, and what is due after each.

    Args:
        trainer: takes the steps.
        checkpoints: of the run, and its metrics.
        console: where progress is shown.
    """

    def __init__(self, trainer: MetaTrainer, checkpoints: Checkpoints, console: Console) -> None:
        self.trainer = trainer
        self.progress = trainer.progress
        self.objective = trainer.objective
        self.checkpoints = checkpoints
        self.console = console
        self._fault_reported = False

    def run(self) -> None:
        iterations = self.trainer.settings.outer.iterations
        with (
            self.console.progress("meta-training", iterations) as advance,
            stop_requests() as stop,
        ):
            while self.progress.iteration < iterations:
                self._iterate(advance)
                with self.checkpoints.saved_if_it_fails():
                    number = self.trainer.group.largest(stop.number)
                if number:
                    self._stop(number)

    def _iterate(self, advance: Advance) -> None:
        """One outer step, its row of metrics, validation and saving where they are due."""
        outer, progress, begun = self.trainer.settings.outer, self.progress, time.monotonic()
        step = take_step(self.trainer, before_update=self.checkpoints.saved_if_it_fails())
        rate = outer.meta_batch / (time.monotonic() - begun)
        self._warn(step)
        row = self._row(step, rate)
        due, better = progress.iteration % outer.validate_every == 0, False
        if due:
            validation = self._validate()
            row[f"validation_{self.objective.key}"] = f"{validation.score:.6g}"
            row["validation_interval"] = f"{validation.interval:.6g}"
            better = validation is progress.best
        self.checkpoints.metrics.write(row)
        waited = self.checkpoints.age >= self.trainer.settings.run.save_seconds
        if due or waited or progress.iteration == outer.iterations:
            self.checkpoints.save(best=better)
        advance(progress.iteration, self._remark(step, rate))

    def _validate(self) -> Validation:
        """Validate, and keep the best: of equals the earliest."""
        validation, objective, best = self.trainer.validate(), self.objective, self.progress.best
        mean = objective.interval(validation.score, validation.interval)
        self.console.detail(
            f"iteration {validation.iteration}: validation {objective.metric} "
            f"{mean} {objective.unit}".strip()
        )
        if best is None or objective.better(validation.score, best.score):
            self.progress.best = validation
        return validation

    def _row(self, step: Step, rate: float) -> dict[str, Any]:
        """A row of metrics.csv."""
        return {
            "iteration": self.progress.iteration,
            "ways": step.shape.ways,
            "shots": step.shape.shots,
            "loss": f"{step.outcome.loss:.6g}",
            # Of functions the loss says it: N times the mean squared error per output.
            "accuracy": f"{step.outcome.score:.6g}" if self.objective is CLASSIFICATION else "",
            "gradient_norm": f"{step.gradient_norm:.6g}",
            "tasks_per_second": f"{rate:.4g}",
            "skipped": self.progress.skipped,
        }

    def _warn(self, step: Step) -> None:
        fault = self.trainer.strategy.fault
        if fault and not self._fault_reported:
            self._fault_reported = True
            self.console.warn(f"{fault}: it goes on in threads, to the same result")
        if not step.finite:
            iteration = self.progress.iteration
            self.console.warn(f"iteration {iteration} was skipped: its loss is not finite")

    def _remark(self, step: Step, rate: float) -> str:
        """A remark beside the progress bar."""
        objective, best = self.objective, self.progress.best
        shown = f", val {objective.shown(best.score)} {objective.unit}" if best else ""
        return f"loss {step.outcome.loss:.2f}, {rate:.1f} tasks/s{shown}".strip()

    def _stop(self, number: int) -> NoReturn:
        run = self.checkpoints.run
        self.checkpoints.save()
        raise StoppedError(
            f"after iteration {self.progress.iteration}, which is saved in {run.last}",
            signal_number=number,
            why=f"{signal.Signals(number).name} was received",
            fix=f"hidra meta-train --resume {run.path}",
        )


def _open_metrics(trainer: MetaTrainer, run: RunDir, console: Console) -> MetricsFile:
    """metrics.csv, of which the rows up to now are kept; the first process writes it."""
    if not trainer.group.main:
        return NoMetrics()
    kept = trainer.progress.iteration
    metrics = open_metrics(trainer.settings.run.log, run, METRICS, kept=kept)
    if metrics.missing:
        console.warn(f"{metrics.missing} rows of {run.metrics} are gone; it goes on without")
    return metrics
