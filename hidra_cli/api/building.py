"""Construct a plugin's class; its faults are told as its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hidra_cli.api import registry
from hidra_cli.api.contract import ContractError
from hidra_cli.api.places import place_of, place_raised, summary
from hidra_cli.errors import HidraError, PluginError, UsageError


def build(plugin: registry.Plugin, component: type[Any], *args: Any, **options: Any) -> Any:
    """Construct a plugin's class, telling a refused value from a fault of the plugin.

    Raises:
        UsageError: the plugin refused a value (it raised ValueError).
        PluginError: it raised anything else.
    """
    with plugin_errors(plugin, "could not be built", component):
        return component(*args, **options)


def failure(
    plugin: registry.Plugin, exc: BaseException, what: str = "failed", code: Any = None
) -> PluginError:
    """What to say of anything that a plugin's code raised, or the call of a class or function."""
    return PluginError(
        f"{plugin.label} {what}",
        why=_lines(summary(exc), place_raised(exc, plugin.package) or place_of(code)),
        fix=f"{registry.blame(plugin)}\n`--debug` shows the traceback",
    )


def broken(plugin: registry.Plugin, fault: ContractError) -> PluginError:
    """What to say of a broken contract: to its author what to write, to others whom to tell."""
    blame = registry.blame(plugin)
    return PluginError(
        f"{plugin.label} breaks its contract",
        why=_lines(fault.fault, fault.where),
        fix=f"{blame}\nin its code: {fault.instead}"
        if plugin.source is None
        else f"{fault.instead}\n{blame}",
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
