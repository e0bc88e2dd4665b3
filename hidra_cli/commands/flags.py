"""Flags that several commands share, and the two steps they begin with."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Literal, ParamSpec

import typer

from hidra_cli.settings.declarations import SETTINGS

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

P = ParamSpec("P")


def with_default(text: str, default: str) -> str:
    """A help text and what holds without the flag, where the flag's own default does not say it."""
    return rf"{text} [dim]\[default: {default}][/dim]"  # rich takes a bare [word] for markup


def _switch(name: str, help: str, *spellings: str) -> Parameter:
    annotation: Any = Annotated[bool, typer.Option(*spellings, help=help)]
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=annotation)


_OUTPUT = (
    _switch("json_output", "Print one JSON object instead of tables.", "--json"),
    _switch("quiet", "Only errors and results.", "--quiet", "-q"),
    _switch("verbose", "Say more.", "--verbose", "-v"),
    _switch("debug", "Show the traceback of an error.", "--debug"),  # `main` reads it, for all
)
_SETTING = {setting.key: setting for setting in SETTINGS}
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


def with_console(command: Callable[Concatenate[Console, P], None]) -> Callable[..., None]:
    """Give a command --json, --quiet, --verbose and --debug, and a console that follows them.

    What anything else prints meanwhile, such as a plugin, goes to stderr: stdout is for results.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from hidra_cli.system.terminal import Terminal

        json_output, quiet, verbose, _ = (bool(kwargs.pop(flag.name)) for flag in _OUTPUT)
        console = Terminal(json_output=json_output, verbosity=-1 if quiet else int(verbose))
        with contextlib.redirect_stdout(sys.stderr):
            command(console, *args, **kwargs)

    return with_parameters(run, [*parameters_of(command, without="console"), *_OUTPUT])


def parameters_of(command: Callable[..., Any], *, without: str) -> list[Parameter]:
    """The parameters of a command, but for the one that a decorator passes.

    Their types are evaluated, that one's not: only the type checker may know it.
    """
    return [
        parameter.replace(annotation=eval(parameter.annotation, command.__globals__))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != without
    ]


def with_parameters(
    command: Callable[..., None], parameters: Sequence[Parameter]
) -> Callable[..., None]:
    """A command for which Typer makes flags of these parameters."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def of_first_process(console: Console) -> Console:
    """The console; silence in all but the first of several processes that share a command."""
    from hidra_cli.system.console import Silence
    from hidra_cli.system.torchrun import this_rank

    return console if this_rank().main else Silence()


def models_or_latest(models: list[Path] | None, runs_dir: Path | None) -> list[Path]:
    """The runs or checkpoints that a command names, or else the latest run."""
    from hidra_cli.runs.locate import latest_run, runs_dir_of

    return models or [latest_run(runs_dir_of(runs_dir))]


def numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """The numbers that a flag such as --ways lists: 5, 2-20 or 2,5."""
    from hidra_cli.errors import UsageError
    from hidra_cli.settings.numbers import parse_numbers

    try:
        return None if text is None else parse_numbers(text)
    except ValueError as exc:
        raise UsageError(
            f"{flag} {text} cannot be used",
            why=str(exc),
            fix=f"{flag} 5, {flag} 2-20 or {flag} 2,5",
        ) from exc


def assignments(flag: str, pairs: list[str] | None) -> dict[str, str]:
    """The names and values of a flag such as --data-opt NAME=VALUE, which may be repeated."""
    from hidra_cli.settings.layers import parse_assignments

    return parse_assignments(pairs or [], flag)
