"""A plugin on the screen: what it declares, and that it keeps its contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hidra_cli.api.registry import Plugin
    from hidra_cli.jobs.plugins import Declared
    from hidra_cli.system.console import Console


def show_list(plugins: list[Plugin], console: Console) -> None:
    """Print the names of plugins and where they come from."""
    columns = ["kind", "name", "distribution", "version"]
    rows = [[p.kind, p.name, p.distribution, p.version] for p in plugins]
    console.table("Plugins", columns, rows, left=4)
    console.result({"plugins": [dict(zip(columns, row, strict=True)) for row in rows]})


def show_declared(facts: Declared, console: Console) -> None:
    """Print what a plugin declares, and its options."""
    plugin = facts.plugin
    summary = f" — {facts.summary.splitlines()[0]}" if facts.summary else ""
    console.print(f"{plugin.kind} {plugin.name}{summary}")
    lines = {
        "from": f"{plugin.distribution} {plugin.version} ({plugin.entry_point.value})",
        "status": f"loads, plugin API {facts.api_version}",
        **facts.abilities,
    }
    for key, value in lines.items():
        console.print(f"  {key:<9} {value}")
    if facts.options:
        console.table(
            "Options",
            ["name", "type", "default", "meaning"],
            [
                [o.name, o.type_name, "must be given" if o.required else str(o.default), o.help]
                for o in facts.options
            ],
            left=4,
        )
    console.result(facts.to_json())


def show_checked(plugin: Plugin, console: Console) -> None:
    """Print that a plugin keeps its contract."""
    console.print(f"{plugin.label} keeps its contract")
    console.result(
        {
            "kind": plugin.kind,
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "status": "keeps its contract",
        }
    )
