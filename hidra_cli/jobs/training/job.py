"""Settings → a trained and tested run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidra_cli.engine.devices import has_tf32
from hidra_cli.images.features import NetworkChoice
from hidra_cli.images.open import choose_dataset
from hidra_cli.jobs.device import join
from hidra_cli.jobs.scoring import evaluate_plan
from hidra_cli.jobs.training.dry_run import dry_run
from hidra_cli.jobs.training.loop import train
from hidra_cli.jobs.training.resume import Resumed
from hidra_cli.jobs.training.state import restore
from hidra_cli.jobs.training.trainer import MetaTrainer
from hidra_cli.runs.build import frozen_network
from hidra_cli.runs.components import Components, resolve_components
from hidra_cli.runs.directory import RunDir, create_run, owning
from hidra_cli.runs.environment import environment
from hidra_cli.runs.locate import runs_dir_of
from hidra_cli.runs.metrics import check_log
from hidra_cli.runs.model import load_model
from hidra_cli.runs.plugin_check import check_plugins
from hidra_cli.runs.records import Environment, RunResult, ScoreRecord, Session, record_or_none
from hidra_cli.settings.layers import resolve
from hidra_cli.settings.schema import Settings
from hidra_cli.system.console import Console, Silence
from hidra_cli.system.distributed import ProcessGroup
from hidra_cli.system.files import write_atomically, write_json
from hidra_cli.tasks.objective import CLASSIFICATION
from hidra_cli.tasks.sources import (
    Sampler,
    feasible_ways,
    objective_of,
    open_tasks,
    sampler_of,
)


@dataclass(frozen=True)
class TrainedRun:
    """A run that was trained and tested.

    Attributes:
        directory: its files.
        result: what `result.json` holds: the best validation, and the test at each number of ways.
    """

    directory: RunDir
    result: RunResult

    @property
    def path(self) -> Path:
        return self.directory.path


def meta_train(
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    name: str | None = None,
    runs_dir: Path | None = None,
    cache_dir: Path | None = None,
    resumed: Resumed | None = None,
    console: Console | None = None,
) -> TrainedRun:
    """Train a model, test its best checkpoint and write the run.

    The processes that torchrun started share each meta-batch.

    Args:
        settings: of the run: all of them, or dotted keys and their values; the others come from
            the environment, the preset and the defaults, as they do in `hidra meta-train`.
        preset: settings that ship with hidra.
        name: of the run directory; None: the time and the main settings.
        runs_dir: where that directory is made; None: the usual place.
        cache_dir: where prepared images are kept; None: the usual place.
        resumed: a run to go on with, instead of a new one; it has its settings.
        console: of messages and progress; None: silent.

    Raises:
        UsageError: the settings are wrong, or cannot work with this data.
        DataError: the data is missing or damaged.
        PluginError: a plugin cannot be imported or breaks its contract.
        StoppedError, NotFiniteError, DeviceError, RunError: see `train`.
    """
    console = console or Silence()
    if resumed is not None:
        settings = resumed.settings.settings
    elif not isinstance(settings, Settings):
        settings = resolve(settings or {}, preset=preset).settings
    with contextlib.ExitStack() as stack:
        trainer = _trainer(settings, resumed, cache_dir, console, stack)
        test_episodes = _test_episodes(trainer, console)
        if resumed is not None:
            run = resumed.run
        else:
            run = _new_run(runs_dir_of(runs_dir), name, settings, trainer.group, stack)
        with console.logging_to(run.log):
            result = _train_and_test(trainer, test_episodes, run, resumed, console)
    return TrainedRun(run, result)


def try_out(
    settings: Settings,
    *,
    cache_dir: Path | None = None,
    resumed: Resumed | None = None,
    console: Console | None = None,
) -> None:
    """Check all that a training needs, take steps and show what they take; write nothing.

    Raises:
        HidraError: as `meta_train`.
    """
    console = console or Silence()
    with contextlib.ExitStack() as stack:
        trainer = _trainer(settings, resumed, cache_dir, console, stack)
        _test_episodes(trainer, console)
        image_shape, ways = trainer.data.image_shape, max(settings.tasks.ways)
        check_plugins(trainer.components, image_shape, trainer.learner, ways)
        dry_run(trainer, console)


def _trainer(
    settings: Settings,
    resumed: Resumed | None,
    cache_dir: Path | None,
    console: Console,
    stack: contextlib.ExitStack,
) -> MetaTrainer:
    """The trainer before its next step; all processes have the same one."""
    components = resumed.components if resumed is not None else None
    components = components or resolve_components(settings)  # before any image is prepared
    check_log(settings.run.log)
    device, group = join(settings.run.device, console, stack)
    network = _network(settings, components)
    data = open_tasks(settings.dataset, cache_dir, console, device, network, components.dataset)
    learner = resumed.learner if resumed is not None else None
    trainer = MetaTrainer(
        settings, data, device, components=components, learner=learner, group=group
    )
    if resumed is not None and resumed.checkpoint is not None:
        restore(trainer, resumed.checkpoint)
    group.check_equal("settings and data", f"{settings.to_toml()}\n{data.content_hash}")
    group.check_equal("checkpoint", str(trainer.progress.iteration))
    if settings.run.precision == "tf32" and not has_tf32(device):
        console.note(f"--precision tf32: {device} has no TF32, it is float32 in full there")
    if trainer.choice.why:
        console.warn(f"--strategy {trainer.strategy.name}: {trainer.choice.why}")
    return trainer


def _network(settings: Settings, components: Components) -> NetworkChoice | None:
    """The frozen network whose features tasks are drawn from; None where images are."""
    if settings.model.normalization != "frozen":
        return None
    dataset = choose_dataset(settings.dataset, components.dataset).dataset
    return frozen_network(settings.model, dataset.image_shape, components.backbone)


def _new_run(
    runs_dir: Path,
    name: str | None,
    settings: Settings,
    group: ProcessGroup,
    stack: contextlib.ExitStack,
) -> RunDir:
    """A run directory that the first process makes, and owns until `stack` ends."""
    path = ""
    if group.main:
        run = create_run(runs_dir, name, settings)
        stack.enter_context(owning(run))
        path = str(run.path)
    return RunDir(Path(group.broadcast_text(path)))


def _test_episodes(trainer: MetaTrainer, console: Console) -> Sampler | None:
    """The episodes of the final table. They are checked before the run, not after it."""
    settings, data = trainer.settings, trainer.data
    if not settings.outer.test_episodes:
        return None
    wanted = set(settings.tasks.ways)
    if trainer.learner.head.any_ways:
        wanted = {*objective_of(data).default_ways, max(wanted)}
    ways = feasible_ways(data, "test", sorted(wanted))
    if not ways:
        console.warn(f"the test split of {data.dataset} has too few classes for a test table")
        return None
    shots = (min(settings.tasks.shots),)
    queries, seed = settings.tasks.queries, settings.run.seed
    return sampler_of(data, "test", ways, shots, queries, seed, device=trainer.device)


def _train_and_test(
    trainer: MetaTrainer,
    test_episodes: Sampler | None,
    run: RunDir,
    resumed: Resumed | None,
    console: Console,
) -> RunResult:
    settings, group = trainer.settings, trainer.group
    facts = _record_start(trainer, run, resumed, console) if group.main else Environment()
    if trainer.validator.ways != settings.tasks.ways:
        console.note(
            f"the validation split has fewer classes than --ways asks for: "
            f"validating at up to {max(trainer.validator.ways)} ways"
        )
    trained = train(trainer, run, console)
    rate = trained.tasks_per_second
    result = RunResult(
        run=str(run.path),
        iterations=settings.outer.iterations,
        skipped=trained.skipped,
        tasks_per_second=None if rate is None else round(rate, 2),
        best_validation=trained.best.record(trainer.objective),
        test=_test(run, trainer, test_episodes, console) if test_episodes else (),
        environment=facts,
    )
    if group.main:
        write_json(run.result, result.to_json())
    if trained.skipped:
        console.warn(f"{trained.skipped} of {settings.outer.iterations} steps were skipped")
    speed = "" if rate is None else f"{rate:.1f} tasks/s; "
    console.print(f"{speed}best checkpoint: {run.best}")
    ways = ",".join(map(str, trainer.objective.default_ways))
    adapt = "   or   hidra adapt --ways 7" if trainer.objective is CLASSIFICATION else ""
    console.note(f"next: hidra evaluate {run.path} --ways {ways}{adapt}")
    console.result(result.to_json())
    return result


def _record_start(
    trainer: MetaTrainer, run: RunDir, resumed: Resumed | None, console: Console
) -> Environment:
    """Write what the run depends on, and say where it begins."""
    now = environment(trainer.device, trainer.components.records, trainer.group.size).model_copy(
        update={"strategy": trainer.strategy.name, "start": trainer.start}
    )
    facts = now.model_copy(update={"dataset": dict(trainer.data.attributes)})
    if resumed is None:
        console.note(f"run {run.path}")
    else:
        console.note(f"run {run.path}, resumed after iteration {trainer.progress.iteration}")
        for warning in resumed.warnings:
            console.warn(warning)
        write_atomically(run.config, trainer.settings.to_toml().encode())
        before = record_or_none(run.environment, Environment) or facts
        sessions = before.resumed or ()
        last = sessions[-1] if sessions else before
        if change := _changed_rounding(last, now, trainer.settings.outer.meta_batch):
            console.warn(f"{change}: from here on it is the same but for rounding")
        session = Session.model_validate(
            now.model_dump() | {"after_iteration": trainer.progress.iteration}
        )
        facts = before.model_copy(update={"resumed": (*sessions, session)})
    write_json(run.environment, facts.to_json())
    return facts


def _changed_rounding(before: Session, now: Session, meta_batch: int) -> str:
    """Why the sums of a resumed run come in another order; "" where they do not.

    A task on its own thread is computed as by the loop with one thread.
    """

    def order(session: Session) -> tuple[str, int, int]:
        strategy, threads = session.strategy or "loop", session.threads or 1
        processes = session.processes or 1
        if strategy in ("threads", "processes"):
            at_once = min(threads, math.ceil(meta_batch / processes))
            return "loop", threads // at_once, processes
        return strategy, threads, processes

    if order(before) != order(now):
        then, here = (
            f"{session.processes or 1} process(es) of {session.threads} threads and "
            f"--strategy {session.strategy or 'loop'}"
            for session in (before, now)
        )
        return f"the run was at work with {then}, now with {here} (OMP_NUM_THREADS sets threads)"
    if bool(before.kernels) != bool(now.kernels):
        return "the compiled kernels are " + ("here now" if now.kernels else "no longer here")
    return ""


def _test(
    run: RunDir, trainer: MetaTrainer, sampler: Sampler, console: Console
) -> tuple[ScoreRecord, ...]:
    """Test the best checkpoint over ways: the table that ends a run."""
    settings, objective, (shots,) = trainer.settings, trainer.objective, sampler.shots
    trainer.group.wait()  # until the first process has written that model
    model = load_model(run.path, trainer.device, components=trainer.components)
    episodes = settings.outer.test_episodes
    cells = evaluate_plan(
        [(model, ways) for ways in sampler.ways],
        sampler,
        episodes=episodes,
        console=console,
        every_step=False,
        group=trainer.group,
    )
    rows = tuple(cell.record() for cell in cells)
    chance = objective is CLASSIFICATION
    console.table(
        f"Test {objective.metric} of {settings.model.head} on {trainer.data.dataset}, "
        f"{shots}-shot, {episodes} episodes, {settings.model.normalization} normalization",
        ["ways", objective.heading, *(["chance, %"] if chance else [])],
        [
            [
                str(row.ways),
                objective.interval(row.score, row.interval),
                *([f"{100 / row.ways:.1f}"] if chance else []),
            ]
            for row in rows
        ],
    )
    return rows
