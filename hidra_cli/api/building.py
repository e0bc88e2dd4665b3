"""A plugin that was found, imported and given options; its faults as errors of the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hidra_cli.api import registry
from hidra_cli.api.contract import ContractError
from hidra_cli.api.options import options as options_of
from hidra_cli.api.options import plugin_options
from hidra_cli.api.places import place_of, place_raised, summary
from hidra_cli.errors import HidraError, PluginError, UsageError


@dataclass(frozen=True)
class Component:
    """A plugin's class and the options that it is built with.

    Attributes:
        plugin: its name, distribution and version.
        type: its class.
        options: values that were set, checked and converted.
    """

    plugin: registry.Plugin
    type: type[Any]
    options: Mapping[str, Any]

    @property
    def all_options(self) -> dict[str, Any]:
        """Every option: the value that was set, or the default."""
        known = options_of(self.type)
        return {option.name: self.options.get(option.name, option.default) for option in known}

    def build(self, *arguments: Any) -> Any:
        """Construct the class.

        Raises:
            UsageError: the plugin refused a value (it raised ValueError).
            PluginError: it raised anything else.
        """
        with plugin_errors(self.plugin, "could not be built", self.type):
            return self.type(*arguments, **self.options)


def resolve(kind: registry.Kind, name: str, options: Mapping[str, Any]) -> Component:
    """Find a plugin, import it and check its options.

    Raises:
        UsageError: unknown plugin, option or value.
        PluginError: two distributions offer the name, or the plugin cannot be imported.
    """
    return component_of(registry.find(kind, name), options)


def component_of(plugin: registry.Plugin, options: Mapping[str, Any]) -> Component:
    """Import a plugin and check its options; raises as `resolve`."""
    loaded = registry.load(plugin)
    try:
        known = options_of(loaded)
    except PluginError as error:
        raise PluginError(
            f"{plugin.label} has an option of a type that is not known",
            why=f"{error.what}\n{error.why}",
            fix=f"{error.fix}\n{registry.remedy(plugin)}",
        ) from error
    return Component(plugin, loaded, plugin_options(plugin.label, known, options))


def failure(
    plugin: registry.Plugin, exc: BaseException, what: str = "failed", code: Any = None
) -> PluginError:
    """What to say of anything that a plugin's code raised, or the call of a class or function."""
    return PluginError(
        f"{plugin.label} {what}",
        why=_lines(summary(exc), place_raised(exc, plugin.package) or place_of(code)),
        fix=f"{registry.remedy(plugin)}\n`--debug` shows the traceback",
    )


def broken(plugin: registry.Plugin, fault: ContractError) -> PluginError:
    """What to say of a broken contract: to its author what to write, to others whom to tell."""
    remedy = registry.remedy(plugin)
    return PluginError(
        f"{plugin.label} breaks its contract",
        why=_lines(fault.fault, fault.where),
        fix=f"{remedy}\nin its code: {fault.instead}"
        if plugin.source is None
        else f"{fault.instead}\n{remedy}",
    )


@contextlib.contextmanager
def plugin_errors(
    plugin: registry.Plugin, what: str = "failed", code: Any = None
) -> Iterator[None]:
    """Faults of a plugin, with the line of its code, as errors of the command.

    Raises:
        UsageError: it refused its options (it raised ValueError).
        PluginError: it breaks its contract, or raised anything else.
    """
    try:
        yield
    except HidraError:
        raise
    except ContractError as fault:
        raise broken(plugin, fault) from fault
    except ValueError as exc:
        raise UsageError(
            f"{plugin.label} refuses its options",
            why=str(exc),
            fix=f"hidra plugins show {plugin.kind} {plugin.name}",
        ) from exc
    except Exception as exc:
        raise failure(plugin, exc, what, code) from exc


def _lines(fault: str, where: str) -> str:
    return f"{fault}\nin {where}" if where else fault
