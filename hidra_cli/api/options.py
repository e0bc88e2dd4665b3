"""Options of a plugin: read from its signature, checked, converted."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from hidra_cli.api.places import place_of
from hidra_cli.errors import PluginError, UsageError, nearest


def literal_choice(annotation: Any, value: Any) -> Any:
    """The choice of a Literal that a text spells: "2" is 2 for Literal[1, 2]."""
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return next((c for c in choices if isinstance(value, str) and str(c) == value), value)


def plugin_options(label: str, known: list[Option], assigned: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against a plugin's signature and convert them to their declared types.

    Raises:
        UsageError: lists every unknown option, bad value and missing one.
    """
    by_name = {option.name: option for option in known}
    problems, values = [], {}
    for name, value in assigned.items():
        option = by_name.get(name)
        if option is None:
            problems.append(f"{name}: unknown option. {nearest(name, by_name)}".strip())
            continue
        try:
            given_value = literal_choice(option.annotation, value)
            adapter = TypeAdapter(option.annotation, config=ConfigDict(allow_inf_nan=False))
            check_storable(given_value)
            values[name] = adapter.validate_python(given_value)
            check_storable(values[name])
        except PydanticUserError as exc:
            raise PluginError(
                f"{label} has an option of a type that cannot be given as text: {name}",
                why=str(exc).split("\n")[0],
                fix="its author must use int, float, bool, str, Path or a Literal",
            ) from exc
        except ValidationError as exc:
            problems.append(f"{name}={value}: {exc.errors()[0]['msg']}")
        except ValueError as exc:
            problems.append(f"{name}: {exc}")
    problems += [f"{o.name}: must be given" for o in known if o.required and o.name not in assigned]
    if problems:
        raise UsageError(
            f"the options of {label} are wrong",
            why="\n     ".join(problems),
            fix="its options are: " + (", ".join(by_name) or "none"),
        )
    return values


def check_storable(value: Any) -> None:
    """Refuse what a TOML file cannot hold, and Python cannot even print."""
    if isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("an integer of more than 64 bits")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("text that is not UTF-8") from None
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            check_storable(part)


@dataclass(frozen=True)
class Option:
    """One option of a plugin, read from its signature."""

    name: str
    annotation: Any
    default: Any
    required: bool
    help: str

    @property
    def type_name(self) -> str:
        if typing.get_origin(self.annotation) is Literal:
            return " | ".join(str(value) for value in get_args(self.annotation))
        return getattr(self.annotation, "__name__", str(self.annotation))


def options(component: type[Any]) -> list[Option]:
    """The options of a plugin class: the keyword-only arguments of its `__init__`."""
    declared = []
    for parameter in inspect.signature(component).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        annotation, text = _split_annotated(_hint(component, parameter))
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        declared.append(Option(parameter.name, annotation, default, required, text))
    return declared


def _hint(component: type[Any], parameter: inspect.Parameter) -> Any:
    """The type of one option. Other arguments may have types only the type checker knows."""
    if parameter.annotation is inspect.Parameter.empty:
        return str
    holder = type("holder", (), {"__annotations__": {parameter.name: parameter.annotation}})
    names = getattr(component.__init__, "__globals__", {})
    try:
        return typing.get_type_hints(holder, globalns=names, include_extras=True)[parameter.name]
    except Exception as exc:
        raise PluginError(
            f"the type of the option '{parameter.name}' of {component.__qualname__} is unknown",
            why=f"{type(exc).__name__}: {exc}\nin {place_of(component.__init__)}",
            fix=f"its author must import that type at run time in {component.__module__}",
        ) from exc


def _split_annotated(annotation: Any) -> tuple[Any, str]:
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, ""
    base, *extras = get_args(annotation)
    return base, next((extra for extra in extras if isinstance(extra, str)), "")
