"""Write commands.md and settings.md from the program itself: python docs/generate.py."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer
from typer.models import ArgumentInfo, OptionInfo

from hidra_cli.api import registry
from hidra_cli.api.options import options
from hidra_cli.app import app
from hidra_cli.commands.setting_flags import parameter_name
from hidra_cli.settings.changes import MAY_CHANGE
from hidra_cli.settings.declarations import SECTIONS, SETTINGS
from hidra_cli.settings.layers import OTHER_VARIABLES
from hidra_cli.settings.setting import Setting

HOW = "python docs/generate.py"
GLOSSARY = "The words are explained in the [glossary](quick-start.md#the-words-in-this-table)."
NOTE = f"<!-- Written by `{HOW}`, from the help texts of the program: change them there. -->"


@dataclass(frozen=True)
class Parameter:
    """One option or argument of a command, as its signature declares it.

    Attributes:
        shown: as one types it.
        default: what it is when left out.
        panel: of --help, if it has one.
    """

    shown: str
    meaning: str
    default: str
    panel: str | None


def pages() -> dict[str, str]:
    """File name → content of every page that is written here."""
    return {"commands.md": commands_page(), "settings.md": settings_page()}


def commands_page() -> str:
    found = dict(_commands(app, "hidra"))
    each = [{p.shown: p for p in parameters(command)} for command in found.values()]
    everywhere = [p for shown, p in each[0].items() if all(shown in of for of in each)]
    lines = [
        "# Commands",
        NOTE,
        f"`hidra COMMAND --help` shows the same. {GLOSSARY}",
        "Results go to standard output, everything else to standard error. "
        "[settings.md](settings.md) has the environment variable and the TOML key of each setting.",
        "Exit codes: 0 done · 1 run failed · 2 usage or configuration · 3 data missing or damaged "
        "· 4 plugin · 5 device or memory · 130 or 143 interrupted, after saving.",
        "Every command has these:",
        _table(["option", "default", "meaning"], [_row(p) for p in everywhere]),
    ]
    for name, command in found.items():
        own = [p for p in parameters(command) if p not in everywhere]
        lines += [f"## {name}", *_described(command)]
        for panel in dict.fromkeys(p.panel for p in own):
            rows = [_row(p) for p in own if p.panel == panel]
            lines.append(_table([panel or "option", "default", "meaning"], rows))
    return "\n\n".join(lines) + "\n"


def settings_page() -> str:
    lines = [
        "# Settings",
        NOTE,
        "Every setting of a training is a flag of `hidra meta-train`, an environment variable, and "
        f"a key of the TOML files of `--config` and `--preset`. {GLOSSARY}",
        "If a setting has several values, the first of these wins: flag, variable, `--config`, "
        "`--preset`, default. `--print-config` shows each value and its origin:",
        "```\nhidra meta-train --preset omniglot-5way --ways 10 --print-config\n```",
        "Write numbers of ways or shots as `5`, `2-20` or `2,5,10`.",
        "Write options of plugins as repeated flags (`--bb-opt filters=32 --bb-opt init=torch`), "
        "as `filters=32,init=torch` in a variable, or as a table in TOML. The last section lists "
        "the options. hidra merges options of one plugin from all these places. If a place names "
        "another plugin, that plugin starts with its own defaults.",
        "A resumed run may change only " + ", ".join(f"`{k}`" for k in sorted(MAY_CHANGE)) + ".",
    ]
    for section, declarations in SECTIONS.items():
        lines += [f"## [{section}]", inspect.cleandoc(declarations.__doc__ or "")]
        rows = [_setting_row(setting) for setting in SETTINGS if setting.section == section]
        lines.append(_table(["key", "flag, variable", "value", "default", "meaning"], rows))
    lines += [
        "## Variables that are not settings",
        _table(["variable", "meaning"], [[f"`{k}`", v] for k, v in OTHER_VARIABLES.items()]),
        "## Options of the built-in plugins",
        *_plugin_options(),
    ]
    return "\n\n".join(lines) + "\n"


def _setting_row(setting: Setting) -> list[str]:
    names = f"`{setting.flag}`, `{setting.variable}`"
    default = _setting_default(setting)
    return [f"`{setting.name}`", names, f"`{setting.values}`", default, setting.about.help]


def _setting_default(setting: Setting) -> str:
    """As one would type it; what stands for it, as words."""
    return setting.about.unset or _code(setting.default_text)


def parameters(command: Callable[..., Any]) -> list[Parameter]:
    """The arguments and options of a command, in their order."""
    settings = {parameter_name(setting): setting for setting in SETTINGS}
    return [
        _of_setting(settings[name]) if name in settings else _of_command(parameter)
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
    ]


def _of_setting(setting: Setting) -> Parameter:
    shown = f"`{setting.flag} {setting.values}`"
    return Parameter(shown, setting.about.help, _setting_default(setting), setting.title)


def _of_command(parameter: inspect.Parameter) -> Parameter:
    kind, declared = typing.get_args(parameter.annotation)[:2]
    meaning, default = _split_default(declared.help)
    shown = _shown(parameter.name, kind, declared)
    if default is None:
        default = _default(parameter.default)
    return Parameter(shown, meaning, default, declared.rich_help_panel)


def _shown(name: str, kind: Any, declared: OptionInfo | ArgumentInfo) -> str:
    if isinstance(declared, ArgumentInfo):
        many = "…" if "list" in str(kind) else ""
        return f"`{name.upper()}{many}`"
    # In an annotation, the first spelling stands where a default otherwise does.
    first = [declared.default] if isinstance(declared.default, str) else []
    spelled = [*first, *(declared.param_decls or ())] or [f"--{name.replace('_', '-')}"]
    value = "" if kind is bool else f" {declared.metavar or _placeholder(kind)}"
    return ", ".join(f"`{flag}{value}`" for flag in spelled)


def _placeholder(kind: Any) -> str:
    """What stands for the value: its choices, or its type."""
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) is Literal:
            return "|".join(map(str, typing.get_args(part)))
    first = next((part for part in typing.get_args(kind) if part is not type(None)), kind)
    return f"<{first.__name__.lower()}>"


def _split_default(text: str | None) -> tuple[str, str | None]:
    """The meaning, and the default that a help text ends with; see `flags.with_default`."""
    match = re.fullmatch(r"(.*?) \[dim\]\\\[default: (.*)\]\[/dim\]", text or "", re.DOTALL)
    return (match[1], match[2]) if match else (text or "", None)


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "must be given"
    return "" if value is None or value is False else _code(value)


def _row(parameter: Parameter) -> list[str]:
    return [parameter.shown, parameter.default, parameter.meaning]


def _described(command: Callable[..., Any]) -> Iterator[str]:
    """The paragraphs of a docstring; its examples as one block."""
    text = inspect.getdoc(command) or ""
    before, found, after = text.partition("\n\nExamples:\n")
    examples = re.findall(r"^  (hidra .*)$", after, re.MULTILINE)
    yield from before.split("\n\nNext: ")[0].split("\n\n")
    if found:
        yield "```\n" + "\n".join(examples) + "\n```"


def _commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{prefix} {inner.name}")


def _plugin_options() -> Iterator[str]:
    for kind in registry.KINDS:
        rows = [
            [
                f"`{kind}:{plugin.name}`",
                f"`{option.name}`",
                "must be given" if option.required else _code(option.default),
                f"{option.help}" + (f" ({option.type_name})" if "|" in option.type_name else ""),
            ]
            for plugin in registry.plugins(kind)
            if plugin.distribution == registry.OWN_DISTRIBUTION
            for option in options(registry.load(plugin))
        ]
        yield _table([kind, "option", "default", "meaning"], rows)


def _code(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )


if __name__ == "__main__":
    for file, content in pages().items():
        Path(__file__).with_name(file).write_text(content, encoding="utf-8")
        print(f"written: docs/{file}")
