"""Meta-training: the outer loop, validation, selection, checkpoints.

for each meta-batch of tasks:  g = mean over tasks of ∇ L(φ_S; query);  Adam step on g
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from hidra_cli.api.data import Split
from hidra_cli.engine.devices import choose_float32, memory_errors
from hidra_cli.engine.inner_loop import InnerLoop, Outcome
from hidra_cli.engine.learner import Learner, meta_training
from hidra_cli.engine.strategies.choose import choose
from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.errors import DataError, NotFiniteError, RunError, StoppedError
from hidra_cli.runs.build import build_learner, check_head_can, check_objective
from hidra_cli.runs.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    incomplete,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
)
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.environment import used_plugins
from hidra_cli.runs.metrics import MetricsFile, NoMetrics, open_metrics
from hidra_cli.runs.model import begin_with, inner_loop
from hidra_cli.runs.model_records import CheckpointMeta
from hidra_cli.runs.network import network_record
from hidra_cli.runs.plugin_check import check_learner
from hidra_cli.runs.records import StartRecord, ValidationRecord
from hidra_cli.runs.scores import interval
from hidra_cli.settings.schema import OuterSettings, Settings
from hidra_cli.system.console import Advance, Console
from hidra_cli.system.distributed import SINGLE, ProcessGroup
from hidra_cli.system.files import write_atomically
from hidra_cli.system.memory import keep_freed_memory
from hidra_cli.system.random_streams import stream_key
from hidra_cli.system.signals import stop_requests
from hidra_cli.tasks.episodes import EpisodeSampler
from hidra_cli.tasks.objective import CLASSIFICATION, Objective
from hidra_cli.tasks.prefetch import Prefetcher
from hidra_cli.tasks.shape import TaskShape
from hidra_cli.tasks.sources import TaskSource, feasible_ways, objective_of, sampler_of

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
# With --nonfinite skip: so many in a row are no accident, and skipping them is no training.
MOST_SKIPPED_IN_A_ROW = 20


@dataclass(frozen=True)
class Validation:
    """Mean score over the fixed validation episodes, and its 95 % half-width."""

    iteration: int
    score: float
    interval: float

    def record(self, objective: Objective) -> ValidationRecord:
        """The score under the name of its metric."""
        return ValidationRecord(
            iteration=self.iteration,
            metric=objective.key,
            score=self.score,
            interval=self.interval,
        )


@dataclass(frozen=True)
class Step:
    """One outer step: query results, task shape, and the meta-gradient's norm before clipping."""

    outcome: Outcome
    shape: TaskShape
    gradient_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.outcome.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class Trained:
    """What a finished run reports; `tasks_per_second` is None where no step was left to take."""

    best: Validation
    tasks_per_second: float | None
    skipped: int


class MetaTrainer:
    """One meta-training run.

    Args:
        settings: of the run.
        data: what tasks are drawn from.
        device: where the model and the episodes live.
        restoring: `restore` will be called, so that pre-trained weights are not read.
        group: the processes that share each meta-batch. All of them take every step, with the
            same result; the first one writes.

    Raises:
        UsageError, DataError, PluginError: the settings cannot work with this data; checked here,
            before the first step.
    """

    def __init__(
        self,
        settings: Settings,
        data: TaskSource,
        device: torch.device,
        *,
        restoring: bool = False,
        group: ProcessGroup = SINGLE,
    ) -> None:
        tasks, seed = settings.tasks, settings.run.seed
        check_head_can(settings, tasks.ways)
        check_objective(settings, data)
        self.settings = settings
        self.data = data
        self.device = device
        self.group = group
        self.inner = inner_loop(settings)
        self.objective = objective_of(data)
        self.train_episodes = sampler_of(
            data,
            "train",
            tasks.ways,
            tasks.shots,
            tasks.queries,
            seed,
            device=device,
            augment=tasks.augment,
        )
        if device.type == "cuda" and isinstance(self.train_episodes, EpisodeSampler):
            self.train_episodes = Prefetcher(self.train_episodes)  # on a CPU it gains nothing
        self.validation_ways = _ways_within(data, "val", tasks.ways)
        self.validation_episodes = sampler_of(
            data, "val", self.validation_ways, tasks.shots, tasks.queries, seed, device=device
        )
        chosen = None if restoring else settings.model.start_from
        learner = build_learner(
            settings, data.image_shape, max(tasks.ways), restoring=restoring or chosen is not None
        )
        self.start: StartRecord | None = None
        if chosen is not None:
            self.start = begin_with(learner, settings, Path(chosen))
        check_learner(learner, settings.model, data.image_shape, min(tasks.ways))
        self.learner: Learner = learner.to(device)
        keep_freed_memory()
        run = settings.run
        choose_float32(run.precision, device)
        with meta_training(self.learner):
            self.choice = choose(
                run.strategy,
                self.learner,
                data.image_shape,
                recompute=run.graphs == "recompute",
                micro_batch=run.micro_batch,
            )
        self.strategy = self.choice.strategy
        self.names = [name for name, _ in self.learner.named_parameters()]
        self.optimizer = torch.optim.Adam(_parameter_groups(self.learner, settings.outer))
        self.plugins = used_plugins(settings)
        self.iteration = 0
        self.best: Validation | None = None
        self.skipped = self.skipped_in_a_row = 0
        self._saved_at, self._saved_when = 0, time.monotonic()
        self._told_fault = False
        self._whole = True  # the weights are those of `iteration`, not half a step further

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint of this run was saved.

        Everything random is a function of (seed, iteration), so that weights, optimizer and
        counters are all there is to restore.

        Raises:
            DataError: the checkpoint is of other images, or an entry is missing or wrong.
            RunError: its weights do not fit.
        """
        meta = checkpoint.model_meta
        if meta.dataset_hash != self.data.content_hash:
            raise DataError(
                f"the tasks of {self.data.dataset} are not those that {checkpoint.path} was "
                "trained on",
                why=f"{self.data.place} has other content now",
                fix="prepare the dataset from the same source again, or begin a new run",
            )
        load_weights(self.learner, checkpoint, meta)
        restore_optimizer(self.optimizer, self.names, checkpoint)
        if (best := meta.best) is not None:
            if best.metric != self.objective.key:
                raise incomplete(checkpoint, f"best: it has no {self.objective.key}")
            self.best = Validation(best.iteration, best.score, best.interval)
        self.iteration = self._saved_at = meta.iteration
        self.skipped, self.skipped_in_a_row = meta.skipped

    @property
    def outer_scale(self) -> float:
        """What Adam's rates are multiplied by for the next step."""
        outer = self.settings.outer
        if outer.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / outer.iterations))

    @property
    def inner_now(self) -> InnerLoop:
        """The inner loop of the next step: order and multi-step loss follow the iteration."""
        steps, until = self.inner.steps, self.settings.outer.multi_step
        inner = self.inner
        if self.iteration < self.settings.inner.second_order_from:
            inner = replace(inner, order=1)
        if self.iteration < until and steps > 1:
            earlier = (1 - self.iteration / until) / steps
            inner = replace(
                inner, shares=(0.0, *[earlier] * (steps - 1), 1 - earlier * (steps - 1))
            )
        return inner

    @property
    def heaviest_inner(self) -> InnerLoop:
        """The inner loop of the steps that take the most memory."""
        steps = self.inner.steps
        if not self.settings.outer.multi_step or steps < 2:
            return self.inner
        return replace(self.inner, shares=(0.0, *[1 / steps] * steps))

    def step(self, shape: TaskShape | None = None, inner: InnerLoop | None = None) -> Step:
        """One outer step. One that is not finite changes nothing but the counters.

        Args:
            shape: instead of the one drawn for this meta-batch.
            inner: instead of the inner loop of this iteration.

        Raises:
            NotFiniteError: the loss or gradient is not finite, and steps are not to be skipped
                or too many in a row were; names the task and how to replay it.
        """
        with self.strategy.between_tasks():
            return self._step(
                shape or self.train_episodes.shape(self.iteration), inner or self.inner_now
            )

    def _step(self, shape: TaskShape, inner: InnerLoop) -> Step:
        outer, size = self.settings.outer, self.settings.outer.meta_batch
        first = self.iteration * size
        # Plugins may draw from torch's own generator (dropout): keyed, so that resuming is exact.
        torch.manual_seed(stream_key(self.settings.run.seed, "step", self.iteration))
        with memory_errors():
            self.learner.head.before_outer_step(shape.ways)
            outcome = self._shared_gradient(range(first, first + size), shape, inner)
        step = Step(outcome, shape, self._clip(outer.clip))
        if step.finite:
            self._whole = False
            for group in self.optimizer.param_groups:
                group["lr"] = self.outer_scale * group["initial_lr"]
            self.optimizer.step()
            self.learner.head.after_outer_step(shape.ways)
            self.skipped_in_a_row = 0
        else:
            if outer.nonfinite == "stop" or self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                raise self._not_finite(step)
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.iteration += 1
        self._whole = True
        return step

    def _shared_gradient(self, episodes: range, shape: TaskShape, inner: InnerLoop) -> Outcome:
        """The meta-gradient of a meta-batch, of which each process takes a share of the tasks."""
        mine = self.group.share(episodes)
        if mine:
            batch = self.train_episodes.batch(mine, shape)
            self._prefetch()
            outcome = self._gradient(batch, inner)
        else:  # there are more processes than tasks
            self.optimizer.zero_grad(set_to_none=True)
            outcome = Outcome(0.0, 0.0)
        loss, score = self.group.mean_gradient_(
            self.learner.parameters(), (outcome.loss, outcome.score), len(mine) / len(episodes)
        )
        return Outcome(loss, score)

    def _prefetch(self) -> None:
        """Draw the tasks of the next step while this one is computed."""
        following = self.iteration + 1
        if (
            isinstance(self.train_episodes, Prefetcher)
            and following < self.settings.outer.iterations
        ):
            size = self.settings.outer.meta_batch
            mine = self.group.share(range(following * size, (following + 1) * size))
            if mine:
                self.train_episodes.prefetch(mine, self.train_episodes.shape(following))

    def _gradient(self, batch: TaskBatch, inner: InnerLoop) -> Outcome:
        self.optimizer.zero_grad(set_to_none=True)
        return self.strategy.meta_gradient(batch, inner)

    def validate(self) -> Validation:
        """The mean score over the same validation episodes every time."""
        torch.manual_seed(stream_key(self.settings.run.seed, "validation"))
        size = self.settings.outer.meta_batch
        steps = self.settings.inner.steps_at_test
        scores: list[list[float]] = []
        mine = self.group.share(range(self.settings.outer.validation_episodes))
        for index in sorted({episode // size for episode in mine}):
            shape = self.validation_episodes.shape(index)
            episodes = range(max(index * size, mine.start), min((index + 1) * size, mine.stop))
            with memory_errors():
                batch = self.validation_episodes.batch(episodes, shape)
                found = self.strategy.scores(batch, self.inner, steps)
            scores += [of_task[-1:] for of_task in found]
        mean, half = interval(self.group.gather(scores)[:, 0])
        return Validation(self.iteration, mean, half)

    def run(self, run: RunDir, console: Console) -> Trained:
        """Train to the last iteration, keeping the two newest checkpoints and the best.

        Raises:
            StoppedError: SIGINT or SIGTERM came; the step was finished and saved.
            NotFiniteError, DeviceError: see `step`; the state before that step was saved.
            RunError: a file could not be written; the last good checkpoint is named.
        """
        outer, begun, first = self.settings.outer, time.monotonic(), self.iteration
        metrics: MetricsFile = NoMetrics()
        if self.group.main:
            metrics = open_metrics(self.settings.run.log, run, METRICS, kept=self.iteration)
        if metrics.missing:
            console.warn(f"{metrics.missing} rows of {run.metrics} are gone; it goes on without")
        try:
            with (
                console.progress("meta-training", outer.iterations) as advance,
                stop_requests() as stop,
            ):
                while self.iteration < outer.iterations:
                    self._iterate(run, metrics, advance, console)
                    with self._saved_if_it_fails(run, metrics):
                        number = self.group.largest(stop.number)
                    if number:
                        self._stop(run, metrics, number)
        except NotFiniteError:
            raise
        except RunError as error:
            raise self._with_last_good(error, run) from error
        finally:
            with contextlib.suppress(RunError):  # every row was told of when it was written
                metrics.close()
        seconds = time.monotonic() - begun
        best = self.best or self._validate_at_end(run)
        steps = self.iteration - first
        rate = steps * outer.meta_batch / seconds if steps else None
        return Trained(best, rate, self.skipped)

    def _iterate(
        self, run: RunDir, metrics: MetricsFile, advance: Advance, console: Console
    ) -> None:
        """One outer step, its row of metrics, validation and saving where they are due."""
        begun, objective = time.monotonic(), self.objective
        with self._saved_if_it_fails(run, metrics):
            step = self.step()
        rate = self.settings.outer.meta_batch / (time.monotonic() - begun)
        row: dict[str, Any] = {
            "iteration": self.iteration,
            "ways": step.shape.ways,
            "shots": step.shape.shots,
            "loss": f"{step.outcome.loss:.6g}",
            # Of functions the loss says it: N times the mean squared error per output.
            "accuracy": f"{step.outcome.score:.6g}" if objective is CLASSIFICATION else "",
            "gradient_norm": f"{step.gradient_norm:.6g}",
            "tasks_per_second": f"{rate:.4g}",
            "skipped": self.skipped,
        }
        if self.strategy.fault and not self._told_fault:
            self._told_fault = True
            console.warn(f"{self.strategy.fault}: it goes on in threads, to the same result")
        if not step.finite:
            console.warn(f"iteration {self.iteration} was skipped: its loss is not finite")
        outer = self.settings.outer
        due, better = self.iteration % outer.validate_every == 0, False
        if due:
            validation = self.validate()
            row[f"validation_{objective.key}"] = f"{validation.score:.6g}"
            row["validation_interval"] = f"{validation.interval:.6g}"
            mean = objective.interval(validation.score, validation.interval)
            console.detail(
                f"iteration {self.iteration}: validation {objective.metric} "
                f"{mean} {objective.unit}".strip()
            )
            # Of equals the earliest.
            better = self.best is None or objective.better(validation.score, self.best.score)
            if better:
                self.best = validation
        metrics.write(row)
        waited = time.monotonic() - self._saved_when
        if due or self.iteration == outer.iterations or waited >= self.settings.run.save_seconds:
            self._save(run, metrics, best=better)
        shown = f", val {objective.shown(self.best.score)} {objective.unit}" if self.best else ""
        advance(self.iteration, f"loss {step.outcome.loss:.2f}, {rate:.1f} tasks/s{shown}".strip())

    @contextlib.contextmanager
    def _saved_if_it_fails(self, run: RunDir, metrics: MetricsFile) -> Iterator[None]:
        """No memory, not finite, a plugin's fault, a lost process: the steps before are whole."""
        try:
            yield
        except Exception:
            if self._whole:
                self._save(run, metrics)
            raise

    def _stop(self, run: RunDir, metrics: MetricsFile, number: int) -> NoReturn:
        self._save(run, metrics)
        raise StoppedError(
            f"after iteration {self.iteration}, which is saved in {run.last}",
            signal_number=number,
            why=f"{signal.Signals(number).name} was received",
            fix=f"hidra meta-train --resume {run.path}",
        )

    def _validate_at_end(self, run: RunDir) -> Validation:
        """A run shorter than the time to its first validation still has a best checkpoint.

        It is no part of the state, so that a longer run is the same whether it paused here.
        """
        validation = self.validate()
        self._write(run.best)
        return validation

    def _save(self, run: RunDir, metrics: MetricsFile, *, best: bool = False) -> None:
        """Save the state: what it builds on first, so that a kill in between loses nothing."""
        metrics.flush_to_disk()
        if best:
            self._write(run.best)
        self._write(run.last, run.previous)
        self._saved_at, self._saved_when = self.iteration, time.monotonic()

    def _write(self, path: Path, keep_old_as: Path | None = None) -> None:
        if not self.group.main:
            return
        tensors = {f"model.{name}": value for name, value in self.learner.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer, self.names)
        meta = CheckpointMeta(
            settings=self.settings,
            plugins=self.plugins,
            problem=self.objective.name,
            image_shape=self.data.image_shape,
            max_ways=max(self.settings.tasks.ways),
            dataset_hash=self.data.content_hash,
            store=Path(self.data.place).name,
            invert=self.data.attributes["invert"] == "True",
            preprocessing=json.loads(self.data.attributes.get("preprocessing", "null")),
            network=network_record(self.learner),
            iteration=self.iteration,
            best=self.best.record(self.objective) if self.best else None,
            skipped=(self.skipped, self.skipped_in_a_row),
        )
        write_atomically(path, checkpoint_bytes(tensors, meta.to_json()), keep_old_as=keep_old_as)

    def _with_last_good(self, error: RunError, run: RunDir) -> RunError:
        kept = next((path for path in (run.last, run.previous) if path.is_file()), None)
        if kept is None or not self.group.main:
            return error
        safe = f"iteration {self._saved_at} is safe in {kept}"
        return RunError(
            error.what,
            why=error.why,
            fix=f"{error.fix}; {safe}: then hidra meta-train --resume {run.path}",
        )

    def _clip(self, limit: float) -> float:
        """Clip each gradient tensor to a norm (the authors' rule); returns the whole norm."""
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if limit > 0:
            for parameter in self.learner.parameters():
                torch.nn.utils.clip_grad_norm_(parameter, limit)
        return norm

    def _not_finite(self, step: Step) -> NotFiniteError:
        outer, seed = self.settings.outer, self.settings.run.seed
        first, size = self.iteration * outer.meta_batch, outer.meta_batch
        # The first process looks through all tasks, and tells of it; the others need not.
        culprit, replay = self._culprit(first, step) if self.group.main else None, ""
        if culprit is None:  # each task is finite, their sum is not
            task = f"training episodes {first} to {first + size - 1} of seed {seed}"
        else:
            index, loss = culprit
            task = f"task {index + 1} of {size}, loss {loss}: "
            task += f"training episode {first + index} of seed {seed}"
            if self.objective is CLASSIFICATION:  # `hidra adapt` learns classes only
                replay = f"; to replay that task: {self._replay(first + index, step)}"
        if outer.nonfinite == "skip":
            task += f"; {self.skipped_in_a_row} steps before this one were skipped"
        skip = ", or skip such steps with --nonfinite skip" if outer.nonfinite == "stop" else ""
        return NotFiniteError(
            f"the loss or its gradient is not finite at iteration {self.iteration + 1}",
            why=f"loss {step.outcome.loss}, gradient norm {step.gradient_norm}, "
            f"{step.shape.ways} ways, {step.shape.shots} shots; {task}",
            fix=f"lower --inner-lr or --outer-lr, or set --clip{skip}{replay}",
        )

    def _replay(self, episode: int, step: Step) -> str:
        return (
            f"hidra adapt --checkpoint RUN/checkpoints/last.safetensors --split train "
            f"--episode {episode} --seed {self.settings.run.seed} --ways {step.shape.ways} "
            f"--shots {step.shape.shots} --queries {self.settings.tasks.queries} "
            f"--steps {self.inner.steps}"
        )

    def _culprit(self, first: int, step: Step) -> tuple[int, float] | None:
        """The first task of a meta-batch that is not finite by itself, and its loss."""
        episodes = range(first, first + self.settings.outer.meta_batch)
        batch = self.train_episodes.batch(episodes, step.shape)
        for index in range(len(batch)):
            outcome = self._gradient(batch.only(index), self.inner_now)
            if not (math.isfinite(outcome.loss) and math.isfinite(self._clip(0))):
                return index, outcome.loss
        return None


def _parameter_groups(learner: Learner, outer: OuterSettings) -> list[dict[str, Any]]:
    """The meta-parameters and their rates, in the order of `named_parameters`.

    Learned inner rates are last, and move at a rate of their own.
    """
    rates = [] if learner.rates is None else list(learner.rates.parameters())
    others = list(learner.parameters())[: -len(rates) or None]
    groups = [(others, outer.outer_lr), (rates, outer.rates_lr)]
    return [{"params": group, "lr": lr, "initial_lr": lr} for group, lr in groups if group]


def _ways_within(data: TaskSource, split: Split, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of ways that the split has classes for."""
    ways = feasible_ways(data, split, wanted)
    if not ways:
        raise DataError(
            f"{data.dataset} has too few classes in its {split} split",
            why=f"{data.most_ways(split)} classes; every number of --ways needs more",
            fix="lower --ways, or put more classes into the split",
        )
    return ways
