"""Construct a plugin's class; its faults are told as its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hidra_cli.api import registry
from hidra_cli.errors import HidraError, PluginError, UsageError


def build(plugin: registry.Plugin, component: type[Any], *args: Any, **options: Any) -> Any:
    """Construct a plugin's class, telling a refused value from a fault of the plugin.

    Raises:
        UsageError: the plugin refused a value (it raised ValueError).
        PluginError: it raised anything else.
    """
    with _told(plugin):
        return component(*args, **options)


@contextlib.contextmanager
def _told(plugin: registry.Plugin) -> Iterator[None]:
    try:
        yield
    except HidraError:
        raise
    except ValueError as exc:
        raise UsageError(
            f"{plugin.label} refuses its options",
            why=str(exc),
            fix=f"hidra plugins show {plugin.kind}:{plugin.name}",
        ) from exc
    except Exception as exc:
        raise PluginError(
            f"{plugin.label} could not be built",
            why=f"{type(exc).__name__}: {exc}".split("\n")[0],
            fix=registry.blame(plugin),
        ) from exc
