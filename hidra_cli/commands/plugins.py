"""`hidra plugins`: what is installed, and what each plugin can be told."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hidra_cli.commands import common

app = typer.Typer(help="List and inspect backbones, heads and datasets.", no_args_is_help=True)


@app.command("list")
def list_plugins(
    json_output: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """List every installed plugin, without importing any.

    Next: hidra plugins show head:hidra
    """
    from hidra_cli.registry import KINDS, plugins

    console = common.make_console(json_output, quiet, verbose=False)
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
def show(
    plugin: Annotated[str, typer.Argument(help="KIND:NAME, for example head:hidra.")],
    json_output: common.Json = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Show a plugin's distribution, abilities, options and whether it loads.

    Examples:

      hidra plugins show head:hidra

      hidra plugins show dataset:omniglot
    """
    import inspect

    from hidra_cli import registry
    from hidra_cli.errors import UsageError

    console = common.make_console(json_output, quiet, verbose=False)
    kind, colon, name = plugin.partition(":")
    if not colon or kind not in registry.KINDS:
        raise UsageError(
            f"'{plugin}' does not name a plugin",
            why=registry.nearest(kind, registry.KINDS),
            fix="write KIND:NAME with a kind of " + ", ".join(registry.KINDS),
        )
    found = registry.find(kind, name)
    component = registry.load(found)
    options = registry.options(component)
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
            for o in options
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
                for o in options
            ],
        }
    )


def _abilities(component: type[Any]) -> dict[str, str]:
    if hasattr(component, "any_ways"):
        return {"ways": "any number" if component.any_ways else "one fixed number"}
    if hasattr(component, "licence"):
        source = "--source or a download" if component.downloadable else "--source"
        source = "generated, no download" if component.embedded else source
        return {"licence": component.licence, "homepage": component.homepage, "images": source}
    return {}
