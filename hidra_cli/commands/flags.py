"""Flags that several commands share, and the two steps they begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hidra_cli.settings.declarations import SETTINGS

if TYPE_CHECKING:
    from hidra_cli.settings.schema import DatasetSettings
    from hidra_cli.system.console import Console


def with_default(text: str, default: str) -> str:
    """A help text and what holds without the flag, where the flag's own default does not say it."""
    return rf"{text} [dim]\[default: {default}][/dim]"  # rich takes a bare [word] for markup


_SETTING = {setting.key: setting for setting in SETTINGS}
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and results.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        help=with_default("Where prepared images are kept.", "HIDRA_CACHE_DIR, ~/.cache/hidra")
    ),
]
RunsDir = Annotated[
    Path | None,
    typer.Option(help=with_default("Where runs are kept.", "HIDRA_RUNS_DIR, ./runs")),
]
Source = Annotated[str | None, typer.Option(help=_SETTING["dataset.source"].about.help)]
DataOpt = Annotated[
    list[str] | None,
    typer.Option(
        help=_SETTING["dataset.options"].about.help, metavar=_SETTING["dataset.options"].values
    ),
]
Device = Annotated[
    str | None, typer.Option(help=with_default(_SETTING["run.device"].about.help, "auto"))
]
Split = Annotated[
    Literal["train", "val", "test"], typer.Option(help="Classes to take episodes from.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for the result files.")]


def make_console(json_output: bool, quiet: bool, verbose: bool, *, main: bool = True) -> Console:
    """What a command speaks through; of several processes that share it, only the main one does."""
    from hidra_cli.system.console import Silence
    from hidra_cli.system.terminal import Terminal

    if not main:
        return Silence()
    return Terminal(json_output=json_output, verbosity=-1 if quiet else int(verbose))


def another_dataset(
    trained_on: DatasetSettings, name: str | None, source: str | None, data_opt: list[str] | None
) -> DatasetSettings:
    """The dataset the flags name, or else the one a model was trained on."""
    from hidra_cli.errors import UsageError
    from hidra_cli.settings.layers import parse_assignments
    from hidra_cli.settings.schema import DatasetSettings

    if name is not None:
        options = parse_assignments(data_opt or [], "--data-opt")
        return DatasetSettings(name=name, source=source, options=options)
    if source is not None or data_opt:
        raise UsageError(
            "--source and --data-opt describe another dataset, but --dataset names none",
            why=f"without --dataset the model's own is used: {trained_on.name}",
            fix=f"add --dataset {trained_on.name}, or leave them out",
        )
    return trained_on
