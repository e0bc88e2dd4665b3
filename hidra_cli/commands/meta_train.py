"""`hidra meta-train`: tasks → a meta-trained model, tested."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hidra_cli.commands import completion, flags
from hidra_cli.commands.setting_flags import with_setting_flags

if TYPE_CHECKING:
    from hidra_cli.jobs.training.resume import Resumed
    from hidra_cli.runs.directory import RunDir
    from hidra_cli.settings.layers import Resolved
    from hidra_cli.system.console import Console

Resume = Annotated[
    str | None,
    typer.Option(
        help="Go on with a run: its directory or name, or latest.",
        metavar="RUN",
        autocompletion=completion.runs_to_resume,
    ),
]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings.")]
Preset = Annotated[
    str | None,
    typer.Option(help="Settings that ship with hidra.", autocompletion=completion.presets),
]
Name = Annotated[str | None, typer.Option(help="Name of the run directory.")]
DryRun = Annotated[
    bool,
    typer.Option(
        help="Check all, take steps, report memory and speed, write nothing.", show_default=False
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        help="Show each setting, its value and where it came from, and stop.", show_default=False
    ),
]


@with_setting_flags
@flags.with_console
def meta_train(
    console: Console,
    setting_flags: Mapping[str, Any],
    resume: Resume = None,
    config: Config = None,
    preset: Preset = None,
    name: Name = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
) -> None:
    """Meta-train a model and test it.

    With no flags every setting has its default: it needs no data and ends in under five minutes.

    Examples:

      hidra meta-train

      hidra meta-train --dataset omniglot --head maml --ways 5 --iterations 1000

      hidra meta-train --resume latest

    Next: hidra evaluate RUN --ways 2,5,10,20
    """
    from hidra_cli.jobs.training import job
    from hidra_cli.jobs.training.resume import is_finished
    from hidra_cli.jobs.training.resume import resume as resume_run
    from hidra_cli.runs.locate import runs_dir_of
    from hidra_cli.settings.layers import resolve

    console = flags.of_first_process(console)
    with contextlib.ExitStack() as owner:
        resumed = None
        if resume is None:
            resolved = resolve(setting_flags, config=config, preset=preset)
        else:
            _check_no_name(name)
            run = _run_to_resume(resume, runs_dir, owner if not (print_config or dry_run) else None)
            resumed = resume_run(run, setting_flags, config=config, preset=preset)
            resolved = resumed.settings
        if print_config:
            _print_config(resolved, console)
        elif dry_run:
            job.try_out(resolved.settings, cache_dir=cache_dir, resumed=resumed, console=console)
        elif resumed is not None and is_finished(resumed):
            _show_finished(resumed, console)
        else:
            job.meta_train(
                resolved.settings,
                name=name,
                runs_dir=runs_dir_of(runs_dir),
                cache_dir=cache_dir,
                resumed=resumed,
                console=console,
            )


def _check_no_name(name: str | None) -> None:
    from hidra_cli.errors import UsageError

    if name is not None:
        raise UsageError(
            "--name and --resume cannot go together",
            why="a resumed run keeps its directory",
            fix="leave --name out",
        )


def _run_to_resume(run: str, runs_dir: Path | None, owner: contextlib.ExitStack | None) -> RunDir:
    """The run to go on with; the first process owns it until `owner` ends."""
    from hidra_cli.runs.directory import owning
    from hidra_cli.runs.locate import run_to_resume, runs_dir_of
    from hidra_cli.system.torchrun import this_rank

    directory = run_to_resume(run, runs_dir_of(runs_dir))
    if owner is not None and this_rank().main:
        owner.enter_context(owning(directory))
    return directory


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
