"""`hidra meta-train`: tasks → a meta-trained model, tested."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.jobs.training.resume import Resumed
    from hidra_cli.settings.layers import Resolved
    from hidra_cli.system.console import Console

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
        _option("Dataset", "Name of a dataset. [glyphs]", autocompletion=completion.datasets),
    ] = None,
    source: flags.Source = None,
    data_opt: flags.DataOpt = None,
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
        _option("Model", "Name of a backbone. [conv4]", autocompletion=completion.backbones),
    ] = None,
    bb_opt: Annotated[
        list[str] | None, _option("Model", "Option of the backbone.", metavar="NAME=VALUE")
    ] = None,
    head: Annotated[
        str | None, _option("Model", "Name of a head. [hidra]", autocompletion=completion.heads)
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
            autocompletion=completion.run_paths,
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
    device: flags.Device = None,
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
            autocompletion=completion.runs_to_resume,
        ),
    ] = None,
    config: Annotated[Path | None, _option("Run", "TOML file of settings.")] = None,
    preset: Annotated[
        str | None,
        _option("Run", "Settings that ship with hidra.", autocompletion=completion.presets),
    ] = None,
    name: Annotated[str | None, _option("Run", "Name of the run directory.")] = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
    dry_run: Annotated[
        bool,
        _option("Run", "Check all, take steps, report memory and speed, write nothing."),
    ] = False,
    print_config: Annotated[
        bool, _option("Run", "Show each setting, its value and where it came from, and stop.")
    ] = False,
    json_output: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
    debug: flags.Debug = False,
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
    from hidra_cli.jobs.training.job import _train
    from hidra_cli.jobs.training.resume import _is_finished, _resumed
    from hidra_cli.runs.locate import runs_dir_of
    from hidra_cli.settings.layers import parse_assignments, resolve
    from hidra_cli.system.torchrun import launch

    console = flags.make_console(json_output, quiet, verbose, main=launch().main)
    chosen = {key: given[flag] for flag, key in _FLAGS.items() if given[flag] is not None}
    for flag, (key, spelled) in _OPTION_FLAGS.items():
        if given[flag]:
            chosen[key] = parse_assignments(given[flag], spelled)
    place = runs_dir_of(runs_dir)
    with contextlib.ExitStack() as stack:
        resumed = None
        if resume is None:
            resolved = resolve(chosen, config=config, preset=preset)
        else:
            owner = stack if launch().main and not (print_config or dry_run) else None
            resumed = _resumed(resume, place, chosen, config, preset, name, owner)
            resolved = resumed.settings
        if print_config:
            _print_config(resolved, console)
        elif resumed is not None and not dry_run and _is_finished(resumed):
            _show_finished(resumed, console)
        else:
            _train(resolved.settings, place, name, resumed, cache_dir, dry_run, console, stack)


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
