"""One step of meta-training: the meta-gradient of a meta-batch, and Adam's update with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hidra_cli.engine.devices import choose_float32, memory_errors
from hidra_cli.engine.inner_loop import InnerLoop, Outcome
from hidra_cli.engine.learner import Learner, meta_training
from hidra_cli.engine.strategies.choose import Choice, choose
from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.jobs.training.schedule import inner_at, outer_scale, parameter_groups
from hidra_cli.jobs.training.validation import Validation, Validator
from hidra_cli.runs.build import build_learner
from hidra_cli.runs.components import Components, check_objective, resolve_components
from hidra_cli.runs.model import begin_with, inner_loop
from hidra_cli.runs.plugin_check import check_learner
from hidra_cli.runs.records import StartRecord
from hidra_cli.settings.schema import Settings
from hidra_cli.system.distributed import SINGLE, ProcessGroup
from hidra_cli.system.memory import keep_freed_memory
from hidra_cli.system.random_streams import stream_key
from hidra_cli.tasks.episodes import EpisodeSampler
from hidra_cli.tasks.prefetch import Prefetcher
from hidra_cli.tasks.shape import TaskShape
from hidra_cli.tasks.sources import Sampler, TaskSource, objective_of, sampler_of


@dataclass
class Progress:
    """How far a run has come. A checkpoint holds it beside the weights and Adam's state.

    Attributes:
        iteration: outer steps so far.
        best: the best validation so far.
        skipped: steps that were skipped, in all.
        skipped_in_a_row: those directly before now.
    """

    iteration: int = 0
    best: Validation | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True)
class Step:
    """One outer step: query results, task shape, and the meta-gradient's norm before clipping."""

    outcome: Outcome
    shape: TaskShape
    gradient_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.outcome.loss) and math.isfinite(self.gradient_norm)


class MetaTrainer:
    """A learner and its optimizer, and how they take one step.

    Args:
        settings: of the run.
        data: what tasks are drawn from.
        device: where the model and the episodes live.
        components: the plugins, where they were found before.
        learner: that a checkpoint holds, to go on with; None builds a new one.
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
        components: Components | None = None,
        learner: Learner | None = None,
        group: ProcessGroup = SINGLE,
    ) -> None:
        components = components or resolve_components(settings)
        check_objective(settings.model, components, data)
        self.settings = settings
        self.components = components
        self.data = data
        self.device = device
        self.group = group
        self.inner = inner_loop(settings)
        self.objective = objective_of(data)
        self.train_episodes = _train_episodes(settings, data, device)
        self.validator = Validator(settings, data, device, group)
        self.start: StartRecord | None = None
        if learner is None:
            learner, self.start = _new_learner(settings, components, data)
            check_learner(learner, components, data.image_shape, min(settings.tasks.ways))
        self.learner = learner.to(device)
        self.choice = _strategy(settings, data, self.learner, device)
        self.strategy = self.choice.strategy
        self.names = [name for name, _ in self.learner.named_parameters()]
        self.optimizer = torch.optim.Adam(parameter_groups(self.learner, settings.outer))
        self.progress = Progress()

    @property
    def inner_now(self) -> InnerLoop:
        """The inner loop of the next step."""
        return inner_at(self.inner, self.settings, self.progress.iteration)

    def episodes(self, iteration: int) -> range:
        """The training episodes of a step's meta-batch."""
        size = self.settings.outer.meta_batch
        return range(iteration * size, (iteration + 1) * size)

    def gradient(self, shape: TaskShape | None = None, inner: InnerLoop | None = None) -> Step:
        """The clipped meta-gradient of the next meta-batch. Weights and counters stay as they are.

        Args:
            shape: instead of the one drawn for this meta-batch.
            inner: instead of the inner loop of this iteration.

        Raises:
            DeviceError: out of memory; names the flags that help.
        """
        iteration = self.progress.iteration
        shape = shape or self.train_episodes.shape(iteration)
        # Plugins may draw from torch's own generator (dropout): keyed, so that resuming is exact.
        torch.manual_seed(stream_key(self.settings.run.seed, "step", iteration))
        with memory_errors():
            self.learner.head.before_outer_step(shape.ways)
            outcome = self._shared_gradient(shape, inner or self.inner_now)
        return Step(outcome, shape, self.clip(self.settings.outer.clip))

    def update(self, shape: TaskShape) -> None:
        """Move the meta-parameters along the gradient of tasks of this shape."""
        scale = outer_scale(self.settings.outer, self.progress.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = scale * group["initial_lr"]
        self.optimizer.step()
        self.learner.head.after_outer_step(shape.ways)
        self.progress.skipped_in_a_row = 0
        self.progress.iteration += 1

    def gradient_of(self, batch: TaskBatch, inner: InnerLoop) -> Outcome:
        """The meta-gradient of some tasks."""
        self.optimizer.zero_grad(set_to_none=True)
        return self.strategy.meta_gradient(batch, inner)

    def clip(self, limit: float) -> float:
        """Clip each gradient tensor to a norm (the authors' rule); returns the whole norm."""
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if limit > 0:
            for parameter in self.learner.parameters():
                torch.nn.utils.clip_grad_norm_(parameter, limit)
        return norm

    def validate(self) -> Validation:
        """The mean score over the same validation episodes every time."""
        return self.validator.validate(self.strategy, self.inner, self.progress.iteration)

    def _shared_gradient(self, shape: TaskShape, inner: InnerLoop) -> Outcome:
        """The meta-gradient of a meta-batch, of which each process takes a share of the tasks."""
        episodes = self.episodes(self.progress.iteration)
        mine = self.group.share(episodes)
        if mine:
            batch = self.train_episodes.batch(mine, shape)
            self._prefetch(self.progress.iteration + 1)
            outcome = self.gradient_of(batch, inner)
        else:  # there are more processes than tasks
            self.optimizer.zero_grad(set_to_none=True)
            outcome = Outcome(0.0, 0.0)
        loss, score = self.group.mean_gradient_(
            self.learner.parameters(), (outcome.loss, outcome.score), len(mine) / len(episodes)
        )
        return Outcome(loss, score)

    def _prefetch(self, iteration: int) -> None:
        """Draw the tasks of the next step while this one is computed."""
        sampler = self.train_episodes
        if isinstance(sampler, Prefetcher) and iteration < self.settings.outer.iterations:
            mine = self.group.share(self.episodes(iteration))
            if mine:
                sampler.prefetch(mine, sampler.shape(iteration))


def _train_episodes(settings: Settings, data: TaskSource, device: torch.device) -> Sampler:
    tasks, seed = settings.tasks, settings.run.seed
    sampler = sampler_of(
        data,
        "train",
        tasks.ways,
        tasks.shots,
        tasks.queries,
        seed,
        device=device,
        augment=tasks.augment,
    )
    if device.type == "cuda" and isinstance(sampler, EpisodeSampler):
        return Prefetcher(sampler)  # on a CPU it gains nothing
    return sampler


def _new_learner(
    settings: Settings, components: Components, data: TaskSource
) -> tuple[Learner, StartRecord | None]:
    """The learner before its first step, and the checkpoint that it begins with."""
    begin_from, max_ways = settings.model.start_from, max(settings.tasks.ways)
    learner = build_learner(
        settings, components, data.image_shape, max_ways, restoring=begin_from is not None
    )
    if begin_from is None:
        return learner, None
    return learner, begin_with(learner, settings, Path(begin_from))


def _strategy(
    settings: Settings, data: TaskSource, learner: Learner, device: torch.device
) -> Choice:
    """The strategy that the settings ask for, or the fastest that the learner can use."""
    run = settings.run
    keep_freed_memory()
    choose_float32(run.precision, device)
    with meta_training(learner):
        return choose(
            run.strategy,
            learner,
            data.image_shape,
            recompute=run.graphs == "recompute",
            micro_batch=run.micro_batch,
        )
