"""What breaks a contract, said once: for a plugin's own tests, for the command line, at run time.

The checks of heads, backbones and data raise `ContractError`. `checks.py` makes it the
`AssertionError` of an author's test, `building.py` the `PluginError` of a command.
"""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from hidra_cli.api.options import Option, options
from hidra_cli.api.places import place_of, place_raised, summary
from hidra_cli.api.version import API_VERSION
from hidra_cli.errors import HidraError, PluginError

GIVEABLE: tuple[type, ...] = (int, float, bool, str, Path)


class ContractError(Exception):
    """One way in which a plugin breaks its contract.

    Args:
        fault: what is wrong, and in which method of which class.
        instead: what to write instead.
        where: file and line of the author's code; empty where it has no source.
    """

    def __init__(self, fault: str, *, instead: str, where: str) -> None:
        super().__init__(fault)
        self.fault = fault
        self.instead = instead
        self.where = where

    def __str__(self) -> str:
        where = [f"in {self.where}"] if self.where else []
        return "\n".join([self.fault, *where, f"instead: {self.instead}"])


class Subject:
    """The plugin class under a check, and how faults of it are said.

    Args:
        component: the class.
    """

    def __init__(self, component: type[Any]) -> None:
        self.component = component
        self.name = component.__name__
        self.package = component.__module__.partition(".")[0]

    def where(self, method: str = "") -> str:
        """Where a method is written, or the class where it has none of that name."""
        code = getattr(self.component, method, None) if method else None
        return (place_of(code) if code is not None else "") or place_of(self.component)

    def fault(self, method: str, fault: str, instead: str) -> ContractError:
        """A fault of a method: `Name.method` and then the words."""
        return ContractError(
            f"{self.name}.{method} {fault}", instead=instead, where=self.where(method)
        )

    def fault_of_class(self, fault: str, instead: str) -> ContractError:
        """A fault of the class: its name and then the words."""
        return ContractError(f"{self.name} {fault}", instead=instead, where=self.where())

    @contextlib.contextmanager
    def calling(self, method: str, arguments: str, *refusals: type[Exception]) -> Iterator[None]:
        """Say what the author's code raised, for which arguments, and in which line.

        A plugin may even raise SystemExit. What it may raise passes: `HidraError`, and `refusals`.
        """
        try:
            yield
        except (Exception, SystemExit) as exc:
            if isinstance(exc, (ContractError, HidraError, *refusals)):
                raise
            raise ContractError(
                f"{self.name}.{method} fails for {arguments}: {summary(exc)}",
                instead=_advice(exc),
                where=place_raised(exc, self.package) or self.where(method),
            ) from exc


def _advice(exc: BaseException) -> str:
    """What mends the mistakes that Python's or torch's words hide."""
    text = str(exc)
    if isinstance(exc, SystemExit):
        return "raise an exception: a plugin never ends the program"
    if "'NoneType'" in text and "support" not in text:
        return "set needs_support = True if initialize reads support_features; else they are None"
    if "dtype" in text or "scalar type" in text or "should be the same" in text:
        return (
            "make tensors of the type of the input, torch.zeros(n, dtype=x.dtype), and keep layers "
            "and parameters as attributes of self or in nn.ModuleList, so that they follow .to()"
        )
    if "leaf Variable" in text or "modified by an inplace operation" in text:
        return "compute a new tensor: x = x * 2, not x *= 2"
    if "positional argument" in text or "unexpected keyword" in text or "required argument" in text:
        return "take the arguments of the contract, with their names and in their order"
    if "before Module.__init__() call" in text:
        return "call super().__init__ with the arguments of the contract, first of all"
    if "abstract" in text:
        return "write every method that the contract has no default for"
    if isinstance(exc, RuntimeError) and ("shape" in text or "size" in text):
        return "make it work for every number of examples, classes and features"
    return "mend that line; `--debug` shows the traceback"


def check_declarations(subject: Subject, arguments: tuple[str, ...]) -> None:
    """Check what a class declares: the version of the contract, and its options.

    Args:
        subject: the class.
        arguments: the names of the arguments that `__init__` gets by position.

    Raises:
        ContractError: what is missing or cannot be given.
    """
    component = subject.component
    version = getattr(component, "api_version", None)
    if version != API_VERSION:
        raise subject.fault_of_class(
            "declares no api_version"
            if version is None
            else f"declares api_version = {version!r}, and this hidra has {API_VERSION}",
            f"write `api_version = {API_VERSION}` below the line `class {subject.name}(…):`",
        )
    if inspect.isabstract(component):
        missing = ", ".join(sorted(component.__abstractmethods__))
        raise subject.fault_of_class(f"does not define {missing}", f"write the method {missing}")
    _check_signature(subject, arguments)
    try:
        known = options(component)
    except PluginError as exc:
        raise subject.fault(
            "__init__", f"has an option of no known type: {exc.why}", exc.fix
        ) from exc
    for option in known:
        _check_option(subject, option)


def _check_signature(subject: Subject, arguments: tuple[str, ...]) -> None:
    """The arguments of the contract come by position, all options by keyword."""
    kinds = inspect.Parameter
    by_position, open_ended = [], False
    for parameter in inspect.signature(subject.component).parameters.values():
        if parameter.kind is kinds.VAR_KEYWORD:
            raise subject.fault(
                "__init__",
                f"hides its options in **{parameter.name}: nobody can list or check them",
                f"name each one: def __init__(self, {', '.join(arguments)}, *, size: int = 1)",
            )
        open_ended |= parameter.kind is kinds.VAR_POSITIONAL
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
            by_position.append(parameter.name)
    if len(by_position) > len(arguments):
        extra = by_position[len(arguments)]
        raise subject.fault(
            "__init__",
            f"takes '{extra}' by position, so that it is no option",
            f"write a * before it: def __init__(self, {', '.join(arguments)}, *, {extra}: …)",
        )
    if len(by_position) < len(arguments) and not open_ended:
        raise subject.fault(
            "__init__",
            f"does not take {' and '.join(arguments[len(by_position) :])}",
            f"def __init__(self, {', '.join(arguments)}, *, options)",
        )


def _check_option(subject: Subject, option: Option) -> None:
    """An option is of a type that text can spell, and its default is of that type."""
    types_of = ", ".join(kind.__name__ for kind in GIVEABLE)
    if not _giveable(option.annotation):
        raise subject.fault(
            "__init__",
            f"has the option '{option.name}' of type {option.type_name}, "
            "which no command line can give",
            f"one of {types_of} or a Literal",
        )
    if option.required:
        return
    try:
        TypeAdapter(option.annotation).validate_python(option.default)
    except ValidationError as exc:
        raise subject.fault(
            "__init__",
            f"has the option '{option.name}' of type {option.type_name} with the default "
            f"{option.default!r}, which is no {option.type_name}",
            f"write its type: {option.name}: {type(option.default).__name__} = {option.default!r}",
        ) from exc


def _giveable(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(value, int | str | float) for value in get_args(annotation))
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return all(part is types.NoneType or _giveable(part) for part in get_args(annotation))
    return annotation in GIVEABLE
