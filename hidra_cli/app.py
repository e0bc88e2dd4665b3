"""The `hidra` command: what is installed as the console script."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from hidra_cli import __version__
from hidra_cli.commands import (
    adapt,
    average,
    completion,
    evaluate,
    export,
    info,
    meta_train,
    plugins,
    predict,
    prepare,
    presets,
    report,
    study,
)
from hidra_cli.errors import EXIT_FAILED, HidraError, PluginError, UsageError

app = typer.Typer(
    name="hidra",
    help="Few-shot image classification with any number of classes.",
    epilog="Start with `hidra meta-train`: it needs no data and ends in under five minutes.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prepare")(prepare.prepare)
app.command("meta-train")(meta_train.meta_train)
app.command("evaluate")(evaluate.evaluate)
app.command("adapt")(adapt.adapt)
app.command("predict")(predict.predict)
app.command("average")(average.average)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("study")(study.study)
app.add_typer(plugins.app, name="plugins")
app.add_typer(presets.app, name="presets")
app.command("info")(info.info)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hidra {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Few-shot image classification with any number of classes."""


def main() -> None:
    """Run the command line; every failure ends in a message and an exit code."""
    if completion.VARIABLE in os.environ:
        completion.complete(app)
    debug = "--debug" in sys.argv or bool(os.environ.get("HIDRA_DEBUG"))
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack letters like →
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_no_empty_value(sys.argv[1:])
        app()
    except HidraError as exc:
        _fail(str(exc), exc.code, debug)
    except KeyboardInterrupt:
        _fail("error: interrupted", 130, debug)
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): nothing to tell anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except _Terminated:
        raise
    except (Exception, SystemExit) as exc:
        error = _fault_of_plugin(exc)
        if error is not None:
            _fail(str(error), error.code, debug)
        if isinstance(exc, SystemExit):  # how every command ends
            raise
        _fail(
            f"error: {type(exc).__name__}: {exc}\nwhy: this is a fault of hidra\n"
            "fix: run again with --debug and report the traceback",
            EXIT_FAILED,
            debug,
        )


def _check_no_empty_value(arguments: Sequence[str]) -> None:
    """Refuse `--support ""`: as a path it would be the current folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, _, value = argument.partition("=")
        if not argument or (flag.startswith("--") and "=" in argument and not value):
            raise UsageError(
                f"{before if not argument else flag} has an empty value".strip(),
                why="it may come from a shell variable that is not set",
                fix='write the value, or leave the flag out; "." is the current folder',
            )


class _Terminated(SystemExit):
    """SIGTERM came, in whatever code."""


def _terminate(number: int, _frame: FrameType | None) -> None:
    """Leave as by an exception, so that half-written files are removed on the way."""
    raise _Terminated(128 + number)


def _fault_of_plugin(exc: BaseException) -> PluginError | None:
    """What to say of an exception from another distribution's plugin, which may even exit."""
    from hidra_cli.api.building import failure
    from hidra_cli.api.registry import plugin_at_fault

    plugin = plugin_at_fault(exc)
    return None if plugin is None else failure(plugin, exc)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    from hidra_cli.system.console import printable

    print(printable(message), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
