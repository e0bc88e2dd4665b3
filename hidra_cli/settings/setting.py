"""The declaration of a setting, from which its flag, variable, choices and default are made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from hidra_cli.settings.numbers import Numbers, format_numbers

T = TypeVar("T")

Completion = Literal["datasets", "backbones", "heads", "runs"]
"""The values that the Tab key offers for a setting whose type has no choices."""


@dataclass(frozen=True)
class About:
    """The facts about a setting that its type and default do not say.

    Attributes:
        help: one line for --help and the docs, without the choices and the default.
        flag: its flag, if that differs from its name.
        metavar: the placeholder of its value in --help, if the type says too little.
        unset: the meaning of None as its default.
        completion: the values that the Tab key offers.
        options_of: the setting of the same section that names the plugin which has these options.
        may_change: a resumed run may change it, because it does not affect the steps before.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    unset: str = ""
    completion: Completion | None = None
    options_of: str = ""
    may_change: bool = False


def setting(
    default: T,
    help: str,
    *,
    flag: str = "",
    metavar: str = "",
    unset: str = "",
    completion: Completion | None = None,
    options_of: str = "",
    may_change: bool = False,
    **bounds: float,
) -> T:
    """Declare a field of a section; see `About`. The bounds are pydantic's: ge, gt, le, lt.

    For a type checker the result is the default, which has the type of the field.
    """
    about = About(help, flag, metavar, unset, completion, options_of, may_change)
    # Pydantic reads the arguments of its `Field` from the metadata of a dataclass's field.
    metadata = {"about": about, **bounds}
    declared: Any
    if isinstance(default, dict):
        declared = dataclasses.field(default_factory=dict, metadata=metadata)
    else:
        declared = dataclasses.field(default=default, metadata=metadata)
    return declared  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Setting:
    """One declared setting, for the command line, the docs and the layers of settings."""

    section: str
    title: str
    name: str
    type: Any
    default: Any
    about: About

    @property
    def key(self) -> str:
        """Its name in errors and origins: `inner.steps`."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        return self.about.flag or f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"HIDRA_{self.section}_{self.name}".upper()

    @property
    def is_table(self) -> bool:
        """Whether its value is a table of a plugin's options, name=value."""
        return get_origin(self.type) is dict

    @property
    def choices(self) -> tuple[str, ...]:
        """Its possible values, if its type lists them."""
        return tuple(map(str, get_args(self.type))) if get_origin(self.type) is Literal else ()

    @property
    def values(self) -> str:
        """Its placeholder or choices: `<int>`, `keep|recompute`."""
        if self.about.metavar or self.choices:
            return self.about.metavar or "|".join(self.choices)
        if self.is_table:
            return "NAME=VALUE"
        return "<numbers>" if self.type == Numbers else f"<{self.type.__name__}>"

    @property
    def default_text(self) -> str:
        """Its default as typed on the command line; the meaning of None; nothing for a table."""
        if self.default is None or self.is_table:
            return self.about.unset
        return format_numbers(self.default) if self.type == Numbers else str(self.default)


def settings_of(section: str, declarations: type[Any]) -> list[Setting]:
    """The settings that the fields of a dataclass declare, in their order."""
    return [
        Setting(
            section=section,
            title=declarations.title,
            name=field.name,
            type=_without_none(field.type),
            default=None if field.default is dataclasses.MISSING else field.default,
            about=field.metadata["about"],
        )
        for field in dataclasses.fields(declarations)
    ]


def _without_none(annotation: Any) -> Any:
    """`str` for `str | None`; any other type as it is."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    optional = NoneType in get_args(annotation)
    return parts[0] if optional else annotation
