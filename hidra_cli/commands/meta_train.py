"""`hidra meta-train`: tasks → a meta-trained model, tested."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hidra_cli.commands import common, completing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hidra_cli.console import Console
    from hidra_cli.resuming import Resumed
    from hidra_cli.runs import RunDir
    from hidra_cli.settings import Resolved, Settings
    from hidra_cli.task_sources import Sampler
    from hidra_cli.training import MetaTrainer
    from hidra_cli.world import World

# Where each flag goes; the panels of --help follow the sections.
_FLAGS = {
    "dataset": "dataset.name",
    "source": "dataset.source",
    "ways": "tasks.ways",
    "shots": "tasks.shots",
    "queries": "tasks.queries",
    "augment": "tasks.augment",
    "backbone": "model.backbone",
    "head": "model.head",
    "normalization": "model.normalization",
    "loss": "model.loss",
    "start_from": "model.start_from",
    "steps": "inner.steps",
    "test_steps": "inner.test_steps",
    "inner_lr": "inner.inner_lr",
    "head_lr": "inner.head_lr",
    "rates": "inner.rates",
    "adapt": "inner.adapt",
    "order": "inner.order",
    "second_order_from": "inner.second_order_from",
    "iterations": "outer.iterations",
    "meta_batch": "outer.meta_batch",
    "outer_lr": "outer.outer_lr",
    "rates_lr": "outer.rates_lr",
    "multi_step": "outer.multi_step",
    "schedule": "outer.schedule",
    "clip": "outer.clip",
    "validate_every": "outer.validate_every",
    "validation_episodes": "outer.validation_episodes",
    "test_episodes": "outer.test_episodes",
    "nonfinite": "outer.nonfinite",
    "seed": "run.seed",
    "device": "run.device",
    "precision": "run.precision",
    "strategy": "run.strategy",
    "micro_batch": "run.micro_batch",
    "graphs": "run.graphs",
    "log": "run.log",
    "save_seconds": "run.save_seconds",
}
_OPTION_FLAGS = {
    "data_opt": ("dataset.options", "--data-opt"),
    "bb_opt": ("model.backbone_options", "--bb-opt"),
    "head_opt": ("model.head_options", "--head-opt"),
}


def _option(section: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=section, show_default=False, **more)


def meta_train(
    dataset: Annotated[
        str | None,
        _option("Dataset", "Name of a dataset. [glyphs]", autocompletion=completing.datasets),
    ] = None,
    source: common.Source = None,
    data_opt: common.DataOpt = None,
    ways: Annotated[
        str | None, _option("Tasks", "Classes per task: 5, 2-20 or 2,5. [2-20]")
    ] = None,
    shots: Annotated[str | None, _option("Tasks", "Support images per class. [1]")] = None,
    queries: Annotated[str | None, _option("Tasks", "Query images per class. [5]")] = None,
    augment: Annotated[
        str | None,
        _option(
            "Tasks",
            "Random training images: none, flip, crop, flip-crop, mirror (classes) or mirror-crop. "
            "[none]",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        _option("Model", "Name of a backbone. [conv4]", autocompletion=completing.backbones),
    ] = None,
    bb_opt: Annotated[
        list[str] | None, _option("Model", "Option of the backbone.", metavar="NAME=VALUE")
    ] = None,
    head: Annotated[
        str | None, _option("Model", "Name of a head. [hidra]", autocompletion=completing.heads)
    ] = None,
    head_opt: Annotated[
        list[str] | None, _option("Model", "Option of the head.", metavar="NAME=VALUE")
    ] = None,
    normalization: Annotated[
        str | None, _option("Model", "support, tasknorm, transductive or none. [support]")
    ] = None,
    loss: Annotated[
        str | None, _option("Model", "softmax, sigmoid (one-vs-rest) or mse. [softmax]")
    ] = None,
    start_from: Annotated[
        str | None,
        _option(
            "Model",
            "Begin with the weights of a run, a checkpoint or a model that ships with hidra.",
            metavar="RUN",
            autocompletion=completing.run_paths,
        ),
    ] = None,
    steps: Annotated[
        str | None, _option("Inner loop", "Gradient steps on the support set.")
    ] = None,
    test_steps: Annotated[
        str | None, _option("Inner loop", "Steps at validation and test. [as --steps]")
    ] = None,
    inner_lr: Annotated[str | None, _option("Inner loop", "Rate of the inner steps. [0.4]")] = None,
    head_lr: Annotated[
        str | None, _option("Inner loop", "by-ways (rate × N/5) or fixed. [by-ways]")
    ] = None,
    rates: Annotated[
        str | None, _option("Inner loop", "given, or learned per layer and step. [given]")
    ] = None,
    adapt: Annotated[str | None, _option("Inner loop", "all, head or body. [all]")] = None,
    order: Annotated[str | None, _option("Inner loop", "Meta-gradient order, 1 or 2. [2]")] = None,
    second_order_from: Annotated[
        str | None, _option("Inner loop", "Iteration at which order 2 begins. [0]")
    ] = None,
    iterations: Annotated[str | None, _option("Outer loop", "Outer steps.")] = None,
    meta_batch: Annotated[str | None, _option("Outer loop", "Tasks per outer step. [4]")] = None,
    outer_lr: Annotated[str | None, _option("Outer loop", "Adam's rate. [0.001]")] = None,
    rates_lr: Annotated[
        str | None, _option("Outer loop", "Adam's rate for learned inner rates. [0.01]")
    ] = None,
    multi_step: Annotated[
        str | None,
        _option("Outer loop", "Iteration until which all inner steps' losses count. [0]"),
    ] = None,
    schedule: Annotated[
        str | None, _option("Outer loop", "Of Adam's rate: constant or cosine. [constant]")
    ] = None,
    clip: Annotated[
        str | None, _option("Outer loop", "Largest norm of each gradient tensor, 0 for none. [10]")
    ] = None,
    validate_every: Annotated[
        str | None, _option("Outer loop", "Outer steps between validations.")
    ] = None,
    validation_episodes: Annotated[
        str | None, _option("Outer loop", "Fixed validation episodes.")
    ] = None,
    test_episodes: Annotated[
        str | None, _option("Outer loop", "Episodes of the final test table, 0 for none. [600]")
    ] = None,
    nonfinite: Annotated[
        str | None,
        _option("Outer loop", "A loss that is not finite: stop, or skip and count it. [stop]"),
    ] = None,
    seed: Annotated[str | None, _option("Run", "One seed for all random streams. [0]")] = None,
    device: common.Device = None,
    precision: Annotated[
        str | None, _option("Run", "float32, tf32 (of a GPU) or bfloat16. [float32]")
    ] = None,
    strategy: Annotated[
        str | None,
        _option("Run", "Of tasks: auto, loop, threads, processes, batched or compiled. [auto]"),
    ] = None,
    micro_batch: Annotated[
        str | None, _option("Run", "Tasks at once, of batched and compiled; 0 for all. [0]")
    ] = None,
    graphs: Annotated[
        str | None,
        _option("Run", "Of inner steps: keep, or recompute (memory of one step). [keep]"),
    ] = None,
    save_seconds: Annotated[
        str | None, _option("Run", "Longest time between two checkpoints. [60]")
    ] = None,
    log: Annotated[
        str | None,
        _option("Run", "csv, or tensorboard for events in RUN/tensorboard too. [csv]"),
    ] = None,
    resume: Annotated[
        str | None,
        _option(
            "Run",
            "Go on with a run: its directory or name, or latest.",
            metavar="RUN",
            autocompletion=completing.runs_to_resume,
        ),
    ] = None,
    config: Annotated[Path | None, _option("Run", "TOML file of settings.")] = None,
    preset: Annotated[
        str | None,
        _option("Run", "Settings that ship with hidra.", autocompletion=completing.presets),
    ] = None,
    name: Annotated[str | None, _option("Run", "Name of the run directory.")] = None,
    runs_dir: common.RunsDir = None,
    cache_dir: common.CacheDir = None,
    dry_run: Annotated[
        bool, _option("Run", "Check everything, tell the memory, take outer steps, write nothing.")
    ] = False,
    print_config: Annotated[
        bool, _option("Run", "Show each setting, its value and where it came from, and stop.")
    ] = False,
    json_output: common.Json = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
) -> None:
    """Meta-train a model and test it.

    With no flags: the embedded glyphs, a Conv4 and a HIDRA head, 2 to 20 ways.

    Examples:

      hidra meta-train

      hidra meta-train --dataset omniglot --head maml --ways 5 --iterations 1000

      hidra meta-train --resume latest

    Next: hidra evaluate RUN --ways 2,5,10,20
    """
    given = dict(locals())
    from hidra_cli.launch import launch
    from hidra_cli.settings import parse_assignments, resolve

    console = common.make_console(json_output, quiet, verbose, main=launch().main)
    flags = {key: given[flag] for flag, key in _FLAGS.items() if given[flag] is not None}
    for flag, (key, spelled) in _OPTION_FLAGS.items():
        if given[flag]:
            flags[key] = parse_assignments(given[flag], spelled)
    place = common.runs_dir_of(runs_dir)
    with contextlib.ExitStack() as stack:
        resumed = None
        if resume is None:
            resolved = resolve(flags, config=config, preset=preset)
        else:
            owner = stack if launch().main and not (print_config or dry_run) else None
            resumed = _resumed(resume, place, flags, config, preset, name, owner)
            resolved = resumed.settings
        if print_config:
            _print_config(resolved, console)
        elif resumed is not None and not dry_run and _is_finished(resumed):
            _show_finished(resumed, console)
        else:
            _train(resolved.settings, place, name, resumed, cache_dir, dry_run, console, stack)


def _resumed(
    chosen: str,
    runs_dir: Path,
    flags: dict[str, Any],
    config: Path | None,
    preset: str | None,
    name: str | None,
    owner: contextlib.ExitStack | None,
) -> Resumed:
    """The run to go on with; where it will be written, this process owns it until `owner` ends."""
    from hidra_cli.errors import UsageError
    from hidra_cli.resuming import resume
    from hidra_cli.runs import owning, run_to_resume

    if name is not None:
        raise UsageError(
            "--name and --resume cannot go together",
            why="a resumed run keeps its directory",
            fix="leave --name out",
        )
    run = run_to_resume(chosen, runs_dir)
    if owner is not None:
        owner.enter_context(owning(run))
    return resume(run, flags, config=config, preset=preset)


def _is_finished(resumed: Resumed) -> bool:
    """Whether nothing is left to do: no step, and no test."""
    from hidra_cli.runs import read_json

    wanted = resumed.settings.settings.outer.iterations
    tested = read_json(resumed.run.result).get("iterations")
    return resumed.iteration == wanted == tested


def _show_finished(resumed: Resumed, console: Console) -> None:
    """Nothing to do is no failure: a job that is queued again and again ends well."""
    console.print(f"{resumed.run.path} is finished, at iteration {resumed.iteration}")
    console.note(f"to train it longer: hidra meta-train --resume {resumed.run.path} --iterations N")
    console.result(
        {"run": str(resumed.run.path), "iterations": resumed.iteration, "finished_before": True}
    )


def _print_config(resolved: Resolved, console: Console) -> None:
    rows = resolved.rows()
    console.table("Settings", ["setting", "value", "from"], [list(row) for row in rows], left=3)
    console.result({key: {"value": value, "from": origin} for key, value, origin in rows})


def _train(
    settings: Settings,
    runs_dir: Path,
    name: str | None,
    resumed: Resumed | None,
    cache_dir: Path | None,
    dry_run: bool,
    console: Console,
    stack: contextlib.ExitStack,
) -> None:
    from hidra_cli.components import check_head_can
    from hidra_cli.engine.devices import has_tf32
    from hidra_cli.tensorboard import check_log
    from hidra_cli.training import MetaTrainer

    check_head_can(settings, settings.tasks.ways)  # before any image is prepared
    check_log(settings.run.log)
    device, world = common.join(settings.run.device, console, stack)
    data = common.open_tasks(settings.dataset, cache_dir, console, device)
    checkpoint = resumed.checkpoint if resumed is not None else None
    trainer = MetaTrainer(settings, data, device, restoring=checkpoint is not None, world=world)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    world.check_same("settings and data", f"{settings.to_toml()}\n{data.content_hash}")
    world.check_same("checkpoint", str(trainer.iteration))
    if settings.run.precision == "tf32" and not has_tf32(device):
        console.note(f"--precision tf32: {device} has no TF32, it is float32 in full there")
    if trainer.choice.why:
        console.warn(f"--strategy {trainer.strategy.name}: {trainer.choice.why}")
    test_episodes = _test_episodes(trainer, console)
    if dry_run:
        from hidra_cli.commands.dry_run import dry_run as try_out

        try_out(trainer, console)
        return
    run = resumed.run if resumed is not None else _new_run(runs_dir, name, settings, world, stack)
    with console.logging_to(run.log):
        _train_and_test(trainer, test_episodes, run, resumed, console)


def _new_run(
    runs_dir: Path,
    name: str | None,
    settings: Settings,
    world: World,
    stack: contextlib.ExitStack,
) -> RunDir:
    """A run directory that the first process makes, and owns until `stack` ends."""
    from hidra_cli.runs import RunDir, create_run, owning

    path = ""
    if world.main:
        run = create_run(runs_dir, name, settings)
        stack.enter_context(owning(run))
        path = str(run.path)
    return RunDir(Path(world.first_says(path)))


def _test_episodes(trainer: MetaTrainer, console: Console) -> Sampler | None:
    """What the final table is measured on; checked before the run, not after it."""
    from hidra_cli.task_sources import sampler_of, usual_ways

    settings, data = trainer.settings, trainer.data
    if not settings.outer.test_episodes:
        return None
    wanted = set(settings.tasks.ways)
    if trainer.learner.head.any_ways:
        wanted = {*usual_ways(data, "test"), max(wanted)}
    most = data.most_ways("test")
    ways = sorted(n for n in wanted if most is None or n <= most)
    if not ways:
        console.warn(f"the test split of {data.dataset} has too few classes for a test table")
        return None
    shots = (min(settings.tasks.shots),)
    return sampler_of(data, "test", ways, shots, settings.tasks.queries, settings.run.seed)


def _train_and_test(
    trainer: MetaTrainer,
    test_episodes: Sampler | None,
    run: RunDir,
    resumed: Resumed | None,
    console: Console,
) -> None:
    from hidra_cli.files import write_json
    from hidra_cli.problems import CLASSIFICATION

    settings, world = trainer.settings, trainer.world
    facts = _record_start(trainer, run, resumed, console) if world.main else {}
    if trainer.validation_ways != settings.tasks.ways:
        console.note(
            f"the validation split has fewer classes than --ways asks for: "
            f"validating at up to {max(trainer.validation_ways)} ways"
        )
    trained = trainer.run(run, console)
    rate = trained.tasks_per_second
    result: dict[str, Any] = {
        "format_version": 1,
        "run": str(run.path),
        "iterations": settings.outer.iterations,
        "skipped": trained.skipped,
        "tasks_per_second": None if rate is None else round(rate, 2),
        "best_validation": trained.best.to_json(trainer.data.problem),
        "test": _test(run, trainer, test_episodes, console) if test_episodes else [],
        "environment": facts,
    }
    if world.main:
        write_json(run.result, result)
    if trained.skipped:
        console.warn(f"{trained.skipped} of {settings.outer.iterations} steps were skipped")
    speed = "" if rate is None else f"{rate:.1f} tasks/s; "
    console.print(f"{speed}best checkpoint: {run.best}")
    ways = ",".join(map(str, trainer.data.problem.usual_ways))
    adapt = "   or   hidra adapt --ways 7" if trainer.data.problem is CLASSIFICATION else ""
    console.note(f"next: hidra evaluate {run.path} --ways {ways}{adapt}")
    console.result(result)


def _record_start(
    trainer: MetaTrainer, run: RunDir, resumed: Resumed | None, console: Console
) -> dict[str, Any]:
    """Write what the run depends on, and say where it begins."""
    from hidra_cli.files import write_atomically, write_json
    from hidra_cli.runs import environment, read_json

    facts = environment(trainer.device, trainer.plugins, trainer.world.size)
    now = facts | {"strategy": trainer.strategy.name} | trainer.start
    facts = now | {"dataset": dict(trainer.data.attributes)}
    if resumed is None:
        console.note(f"run {run.path}")
    else:
        console.note(f"run {run.path}, resumed after iteration {trainer.iteration}")
        for warning in resumed.warnings:
            console.warn(warning)
        write_atomically(run.config, trainer.settings.to_toml().encode())
        before = read_json(run.environment) or facts
        earlier = before.get("resumed")
        again = earlier if isinstance(earlier, list) else []
        last = next((entry for entry in reversed(again) if isinstance(entry, dict)), before)
        if change := _changed_rounding(last, now, trainer.settings.outer.meta_batch):
            console.warn(f"{change}: from here on it is the same but for rounding")
        facts = before | {"resumed": [*again, now | {"after_iteration": trainer.iteration}]}
    write_json(run.environment, facts)
    return facts


def _changed_rounding(before: Mapping[str, Any], now: Mapping[str, Any], meta_batch: int) -> str:
    """What makes the sums of a resumed run come in another order; "" where nothing does.

    A task on a thread of its own is computed as it is by the loop where that has one thread.
    """

    def order(facts: Mapping[str, Any]) -> tuple[str, int, int]:
        strategy, threads = str(facts.get("strategy", "loop")), int(facts.get("threads") or 1)
        processes = int(facts.get("processes", 1))
        if strategy in ("threads", "processes"):
            at_once = min(threads, math.ceil(meta_batch / processes))
            return "loop", threads // at_once, processes
        return strategy, threads, processes

    if order(before) != order(now):
        then, here = (
            f"{facts.get('processes', 1)} process(es) of {facts.get('threads')} threads and "
            f"--strategy {facts.get('strategy', 'loop')}"
            for facts in (before, now)
        )
        return f"the run was at work with {then}, now with {here} (OMP_NUM_THREADS sets threads)"
    if before.get("kernels", False) != now["kernels"]:
        return "the compiled kernels are " + ("here now" if now["kernels"] else "no longer here")
    return ""


def _test(
    run: RunDir, trainer: MetaTrainer, sampler: Sampler, console: Console
) -> list[dict[str, Any]]:
    """Test the best checkpoint over ways: the table that ends a run."""
    from hidra_cli.evaluation import evaluate_plan
    from hidra_cli.models import load_model
    from hidra_cli.problems import CLASSIFICATION

    settings, problem, (shots,) = trainer.settings, trainer.data.problem, sampler.shots
    trainer.world.wait()  # until the first process has written that model
    model = load_model(run.path, trainer.device)
    episodes = settings.outer.test_episodes
    found = evaluate_plan(
        [(model, ways) for ways in sampler.ways],
        trainer.data,
        sampler,
        episodes=episodes,
        device=trainer.device,
        console=console,
        every_step=False,
        world=trainer.world,
    )
    cells = [cell.to_json() for cell in found]
    chance = problem is CLASSIFICATION
    console.table(
        f"Test {problem.metric} of {settings.model.head} on {trainer.data.dataset}, {shots}-shot, "
        f"{episodes} episodes, {settings.model.normalization} normalization",
        ["ways", problem.heading, *(["chance, %"] if chance else [])],
        [
            [
                str(c["ways"]),
                problem.interval(c[problem.key], c["interval"]),
                *([f"{100 / c['ways']:.1f}"] if chance else []),
            ]
            for c in cells
        ],
    )
    return cells
