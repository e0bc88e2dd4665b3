"""A flag for every setting, made from its declaration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from hidra_cli.commands import completion, flags
from hidra_cli.settings.declarations import SETTINGS
from hidra_cli.settings.setting import Setting

P = ParamSpec("P")
WIDEST_METAVAR = 20  # in a column of its own, which leaves the rest of 80 to the texts


def with_setting_flags(
    command: Callable[Concatenate[Mapping[str, Any], P], None],
) -> Callable[..., None]:
    """Give a command a flag for every setting, before the flags of its own.

    What was typed is its argument `setting_flags`, as a layer for `resolve`: dotted key → text, or
    a table of a plugin's options.
    """

    @functools.wraps(command)
    def with_flags(*args: P.args, **kwargs: P.kwargs) -> None:
        typed = [(setting, kwargs.pop(parameter_name(setting), None)) for setting in SETTINGS]
        command(_layer(typed), *args, **kwargs)

    own = flags.parameters_of(command, without="setting_flags")
    return flags.with_parameters(with_flags, [*map(_parameter, SETTINGS), *own])


def _layer(typed: list[tuple[Setting, Any]]) -> dict[str, Any]:
    from hidra_cli.settings.layers import parse_assignments

    return {
        setting.key: parse_assignments(value, setting.flag) if setting.is_table else value
        for setting, value in typed
        if value is not None and value != []
    }


def parameter_name(setting: Setting) -> str:
    return f"{setting.section}_{setting.name}"


def _parameter(setting: Setting) -> Parameter:
    """Its value is text, whatever the type: `resolve` reports all wrong values at once."""
    text, metavar = setting.about.help, setting.values
    if setting.choices and len(metavar) > WIDEST_METAVAR:
        text, metavar = f"{text} One of {', '.join(setting.choices)}.", "<choice>"
    if default := setting.default_text:
        text = flags.with_default(text, default)
    option = typer.Option(
        setting.flag,
        help=text,
        metavar=metavar,
        rich_help_panel=setting.title,
        show_default=False,
        autocompletion=completion.of_setting(setting),
    )
    annotation: Any = Annotated[list[str] | None if setting.is_table else str | None, option]
    kind = Parameter.POSITIONAL_OR_KEYWORD
    return Parameter(parameter_name(setting), kind, default=None, annotation=annotation)
