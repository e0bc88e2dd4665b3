"""`hidra plugins`: what is installed, what it declares, whether it keeps its contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.jobs.new_plugin import Skeleton
    from hidra_cli.system.console import Console

app = typer.Typer(
    help="List, show, check and begin backbones, heads and datasets.", no_args_is_help=True
)


Kind = Annotated[Literal["head", "backbone", "dataset"], typer.Argument(help="Kind of plugin.")]
Name = Annotated[
    str, typer.Argument(help="Its name.", autocompletion=completion.plugins_of_the_kind)
]


@app.command("list")
@flags.with_console
def list_plugins(console: Console) -> None:
    """List every installed plugin, without importing any.

    Next: hidra plugins show head hidra
    """
    from hidra_cli.api.registry import KINDS, plugins
    from hidra_cli.reports.plugins import show_list

    show_list([plugin for kind in KINDS for plugin in plugins(kind)], console)


@app.command("show")
@flags.with_console
def show(console: Console, kind: Kind, name: Name) -> None:
    """Show what a plugin declares, its options, where it comes from and whether it loads.

    Examples:

      hidra plugins show head hidra

      hidra plugins show dataset omniglot
    """
    from hidra_cli.jobs.plugins import declared
    from hidra_cli.reports.plugins import show_declared

    show_declared(declared(kind, name), console)


@app.command("check")
@flags.with_console
def check(
    console: Console,
    kind: Kind,
    name: Name,
    opt: Annotated[
        list[str] | None, typer.Option(help="Option of the plugin.", metavar="NAME=VALUE")
    ] = None,
    source: flags.Source = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Check a plugin against its contract: what it gives, what it leaves, what it declares.

    A fault names the line of the plugin's code and says what to write instead.

    Examples:

      hidra plugins check head hidra

      hidra plugins check backbone conv4 --opt filters=8

      hidra plugins check dataset glyphs
    """
    from hidra_cli.jobs.plugins import CheckRequest, check_plugin
    from hidra_cli.reports.plugins import show_checked

    options = flags.assignments("--opt", opt)
    show_checked(check_plugin(CheckRequest(kind, name, options, source, cache_dir)), console)


@app.command("new")
@flags.with_console
def new(
    console: Console,
    kind: Annotated[
        Literal["head", "backbone", "dataset", "functions"], typer.Argument(help="What to begin.")
    ],
    name: Annotated[str, typer.Argument(help="Its name, for example prototype.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help=flags.with_default("Folder to make.", "./hidra-NAME-KIND"), show_default=False
        ),
    ] = None,
) -> None:
    """Write a package with a plugin that works as it is: change it into yours.

    It has one module, a test that checks the contract, a pyproject.toml and a README.

    Examples:

      hidra plugins new head mine

      hidra plugins new dataset birds --out ~/src/birds

      hidra plugins new functions lines

    Next: pip install -e 'FOLDER[test]'
    """
    import shlex

    from hidra_cli.jobs.new_plugin import Skeleton

    skeleton = Skeleton(kind, name)
    _check_free(skeleton)
    folder = (out or Path(skeleton.distribution)).expanduser()
    _write(skeleton, folder)
    console.print(f"{folder}: a package with the {kind} '{name}'")
    for path in skeleton.files():
        console.print(f"  {path}")
    commands = [f"cd {shlex.quote(str(folder))}", *skeleton.commands]
    for command in commands:
        console.note(f"next: {command}" if command is commands[0] else f"      {command}")
    console.result(
        {
            "kind": kind,
            "name": name,
            "path": str(folder),
            "distribution": skeleton.distribution,
            "class": f"{skeleton.module}:{skeleton.class_name}",
            "files": list(skeleton.files()),
            "next": commands,
        }
    )


def _check_free(skeleton: Skeleton) -> None:
    """Refuse a name that cannot be a plugin's, or is one's already."""
    from hidra_cli.api.registry import plugins
    from hidra_cli.errors import UsageError
    from hidra_cli.jobs.new_plugin import fault_of

    kind, name, registered = skeleton.kind, skeleton.name, skeleton.registered
    if fault := fault_of(name):
        raise UsageError(
            f"'{name}' cannot be the name of a {kind}",
            why=fault,
            fix=f"choose another: hidra plugins new {kind} my-{kind}",
        )
    taken = next((p for p in plugins(registered) if p.name == name), None)
    if taken is not None:
        raise UsageError(
            f"there is a {registered} called '{name}' already",
            why=f"{taken.distribution} {taken.version} brings it, and one of two that share a name "
            "must always be written with its distribution",
            fix="choose another name (`hidra plugins list` shows those that are taken)",
        )


def _write(skeleton: Skeleton, folder: Path) -> None:
    from hidra_cli.errors import RunError, UsageError

    try:
        skeleton.write(folder)
    except FileExistsError as exc:
        raise UsageError(
            f"{folder} exists already",
            why="nothing is ever written over",
            fix="choose another folder with --out, or remove this one",
        ) from exc
    except OSError as exc:
        raise RunError(
            f"{folder} could not be written",
            why=exc.strerror or str(exc).split("\n")[0],
            fix="choose another place with --out; nothing half-written was left",
        ) from exc
