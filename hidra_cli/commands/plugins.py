"""`hidra plugins`: what is installed, and what each plugin can be told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.jobs.new_plugin import Skeleton
    from hidra_cli.system.console import Console

app = typer.Typer(
    help="List, inspect and begin backbones, heads and datasets.", no_args_is_help=True
)


@app.command("list")
@flags.with_console
def list_plugins(console: Console) -> None:
    """List every installed plugin, without importing any.

    Next: hidra plugins show head:hidra
    """
    from hidra_cli.api.registry import KINDS, plugins

    found = [plugin for kind in KINDS for plugin in plugins(kind)]
    console.table(
        "Plugins",
        ["kind", "name", "distribution", "version"],
        [[p.kind, p.name, p.distribution, p.version] for p in found],
        left=4,
    )
    console.result(
        {
            "plugins": [
                {
                    "kind": p.kind,
                    "name": p.name,
                    "distribution": p.distribution,
                    "version": p.version,
                }
                for p in found
            ]
        }
    )


@app.command("show")
@flags.with_console
def show(
    console: Console,
    plugin: Annotated[
        str,
        typer.Argument(
            help="KIND:NAME, for example head:hidra.", autocompletion=completion.kinds_and_plugins
        ),
    ],
) -> None:
    """Show a plugin's distribution, abilities, options and whether it loads.

    Examples:

      hidra plugins show head:hidra

      hidra plugins show dataset:omniglot
    """
    import inspect

    from hidra_cli.api import registry
    from hidra_cli.api.options import options
    from hidra_cli.errors import UsageError, nearest

    kind, colon, name = plugin.partition(":")
    if not colon or kind not in registry.KINDS:
        raise UsageError(
            f"'{plugin}' does not name a plugin",
            why=nearest(kind, registry.KINDS),
            fix="write KIND:NAME with a kind of " + ", ".join(registry.KINDS),
        )
    found = registry.find(kind, name)
    component = registry.load(found)
    known = options(component)
    summary = inspect.getdoc(component) or ""
    abilities = _abilities(component)
    console.print(f"{kind}:{found.name} — {summary.splitlines()[0] if summary else ''}")
    console.print(f"  from      {found.distribution} {found.version} ({found.entry_point.value})")
    console.print(f"  status    loads, plugin API {component.api_version}")
    for key, value in abilities.items():
        console.print(f"  {key:<9} {value}")
    console.table(
        "Options",
        ["name", "type", "default", "meaning"],
        [
            [o.name, o.type_name, "must be given" if o.required else str(o.default), o.help]
            for o in known
        ],
        left=4,
    )
    console.result(
        {
            "kind": kind,
            "name": found.name,
            "distribution": found.distribution,
            "version": found.version,
            "status": "loads",
            "api_version": component.api_version,
            "summary": summary,
            "abilities": abilities,
            "options": [
                {
                    "name": o.name,
                    "type": o.type_name,
                    "required": o.required,
                    "default": o.default,
                    "help": o.help,
                }
                for o in known
            ],
        }
    )


@app.command("new")
@flags.with_console
def new(
    console: Console,
    kind: Annotated[Literal["head", "backbone", "dataset"], typer.Argument(help="What to begin.")],
    name: Annotated[str, typer.Argument(help="Its name, for example prototype.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help=flags.with_default("Folder to make.", "./hidra-NAME-KIND"), show_default=False
        ),
    ] = None,
) -> None:
    """Write a package with a plugin that works as it is, to begin one's own from.

    It has one module, a test that checks the contract, a pyproject.toml and a README.

    Examples:

      hidra plugins new head mine

      hidra plugins new dataset birds --out ~/src/birds

    Next: pip install -e FOLDER
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

    kind, name = skeleton.kind, skeleton.name
    if fault := fault_of(name):
        raise UsageError(
            f"'{name}' cannot be the name of a {kind}",
            why=fault,
            fix=f"choose another: hidra plugins new {kind} my-{kind}",
        )
    taken = next((p for p in plugins(kind) if p.name == name), None)
    if taken is not None:
        raise UsageError(
            f"there is a {kind} called '{name}' already",
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


def _abilities(component: type[Any]) -> dict[str, str]:
    from hidra_cli.api import FunctionFamily

    if hasattr(component, "any_ways"):
        return {"ways": "any number" if component.any_ways else "one fixed number"}
    if issubclass(component, FunctionFamily):
        tasks = "functions, drawn as needed"
        return {"licence": component.licence, "homepage": component.homepage, "tasks": tasks}
    if hasattr(component, "licence"):
        source = "--source or a download" if component.downloadable else "--source"
        source = "generated, no download" if component.embedded else source
        return {"licence": component.licence, "homepage": component.homepage, "images": source}
    return {}
