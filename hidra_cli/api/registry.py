"""Entry points → named components. Lists without importing; imports a plugin only when chosen.

Names, distributions and versions are packaging metadata, so a broken plugin can be listed and
never breaks a command that does not use it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import traceback
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlparse

from hidra_cli.api.places import place_of, place_raised
from hidra_cli.api.version import API_VERSION
from hidra_cli.errors import PluginError, UsageError, nearest

Kind = Literal["backbone", "head", "dataset"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OWN_DISTRIBUTION = "hidra-cli"


@dataclass(frozen=True)
class Plugin:
    """One registered component, not yet imported."""

    kind: Kind
    name: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint

    @property
    def label(self) -> str:
        return f"{self.kind} '{self.name}' of {self.distribution} {self.version}"

    @property
    def package(self) -> str:
        """The top-level module that it is imported from."""
        return self.entry_point.module.partition(".")[0]

    @property
    def source(self) -> Path | None:
        """The folder that pip was given, where it was installed from one: its author's."""
        return self._installed_from[0]

    @property
    def editable(self) -> bool:
        """Whether changes in `source` need no further installation."""
        return self._installed_from[1]

    @property
    def _installed_from(self) -> tuple[Path | None, bool]:
        """From `direct_url.json` (PEP 610), which pip writes for folders and archives."""
        text = self.entry_point.dist.read_text("direct_url.json") if self.entry_point.dist else None
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            origin = json.loads(text or "{}")
            url = urlparse(str(origin.get("url", "")))
            if url.scheme == "file" and "dir_info" in origin:
                return Path(unquote(url.path)), bool(origin["dir_info"].get("editable"))
        return None, False


@cache
def plugins(kind: Kind) -> tuple[Plugin, ...]:
    """Every registered plugin of a kind, own ones first, then by name. Imports none of them."""
    only_own = os.environ.get("HIDRA_PLUGINS", "") == "none"
    found: dict[tuple[str, str], Plugin] = {}
    for entry in metadata.entry_points(group=f"hidra.{kind}s"):
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"
        if only_own and distribution != OWN_DISTRIBUTION:
            continue
        # The same distribution may be seen twice (an editable install on the path as well).
        found.setdefault(
            (distribution, entry.name), Plugin(kind, entry.name, distribution, version, entry)
        )
    return tuple(sorted(found.values(), key=lambda p: (p.distribution != OWN_DISTRIBUTION, p.name)))


def find(kind: Kind, name: str) -> Plugin:
    """The plugin called `name`, or `distribution:name` where two distributions share a name.

    Raises:
        UsageError: there is none; says the nearest name.
        PluginError: two distributions offer it and neither is named.
    """
    distribution, _, short = name.rpartition(":")
    matches = [p for p in plugins(kind) if p.name == short and distribution in ("", p.distribution)]
    if not matches:
        known = sorted({p.name for p in plugins(kind)})
        raise UsageError(
            f"there is no {kind} called '{name}'",
            why=nearest(short, known),
            fix=f"choose one of {', '.join(known)}, or install the package that brings it "
            "(`hidra plugins list` shows what is installed)",
        )
    if len(matches) > 1:
        raise PluginError(
            f"{len(matches)} distributions offer a {kind} called '{short}'",
            why=" and ".join(f"{p.distribution} {p.version}" for p in matches),
            fix="write " + " or ".join(f"{p.distribution}:{p.name}" for p in matches),
        )
    return matches[0]


def load(plugin: Plugin) -> type[Any]:
    """Import a plugin's class and check that it was made for this version of the API.

    Raises:
        PluginError: the import failed, or the class is not what its entry point promises.
    """
    try:
        loaded = plugin.entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # a plugin may even raise SystemExit; the command must go on
        raise PluginError(
            f"{plugin.label} could not be imported",
            why=f"{type(exc).__name__}: {exc} (in {plugin.entry_point.value})" + _line(plugin, exc),
            fix=remedy(plugin),
        ) from exc
    bases = _contracts(plugin.kind)
    if not (inspect.isclass(loaded) and issubclass(loaded, bases)):
        names = " or ".join(base.__name__ for base in bases)
        raise PluginError(
            f"{plugin.label} is not a {names}",
            why=f"{plugin.entry_point.value} is {loaded!r}",
            fix=f"write class {plugin.entry_point.attr}({bases[0].__name__}), of hidra_cli.api\n"
            f"{remedy(plugin)}",
        )
    _check_version(plugin, loaded)
    _loaded[plugin.package] = plugin
    return loaded


def _check_version(plugin: Plugin, component: type[Any]) -> None:
    version = getattr(component, "api_version", None)
    if version == API_VERSION:
        return
    place = place_of(component)
    line = f"write `api_version = {API_VERSION}` below `class {component.__name__}`"
    if version is None:
        raise PluginError(
            f"{plugin.label} does not say which version of the plugin API it was made for",
            why=f"{component.__name__} declares no api_version"
            + (f"\nin {place}" if place else ""),
            fix=f"{line}\n{remedy(plugin)}",
        )
    raise PluginError(
        f"{plugin.label} was made for another version of the plugin API",
        why=f"it declares api_version = {version}, this hidra has {API_VERSION}\nin {place}",
        fix=f"install a release of {plugin.distribution} for API version {API_VERSION}"
        if plugin.source is None
        else f"follow its changes in docs/plugins.md, then {line}",
    )


def _line(plugin: Plugin, exc: BaseException) -> str:
    """The line of a plugin's code that an import failed in."""
    if isinstance(exc, SyntaxError) and exc.filename:
        return f"\nin {exc.filename}:{exc.lineno}"
    place = place_raised(exc, plugin.package)
    return f"\nin {place}" if place else ""


# Top-level module → a plugin that was loaded from it.
_loaded: dict[str, Plugin] = {}


def plugin_at_fault(exc: BaseException) -> Plugin | None:
    """The plugin of another distribution in whose code an exception was raised, if it was.

    The exceptions that it came from are searched too.
    """
    for frame, _ in traceback.walk_tb(exc.__traceback__):
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        plugin = _loaded.get(top)
        if plugin is not None and plugin.distribution != OWN_DISTRIBUTION:
            return plugin
    before = exc.__cause__ or exc.__context__
    return plugin_at_fault(before) if before is not None else None


def _contracts(kind: Kind) -> tuple[type[Any], ...]:
    if kind == "dataset":
        from hidra_cli.api.data import Dataset, FunctionFamily

        return Dataset, FunctionFamily
    from hidra_cli.api.models import Backbone, Head

    return (Backbone,) if kind == "backbone" else (Head,)


def remedy(plugin: Plugin) -> str:
    """A fix for a failing plugin: its author can mend it, others report or remove it."""
    if plugin.distribution == OWN_DISTRIBUTION:
        return f"reinstall {OWN_DISTRIBUTION}; this is a fault of hidra itself"
    if plugin.source is not None:
        again = "" if plugin.editable else f", then `pip install {plugin.source}`"
        return f"mend it in {plugin.source}{again}; `hidra plugins check` finds more"
    return (
        f"report it to the authors of {plugin.distribution}, or remove it with "
        f"`pip uninstall {plugin.distribution}` (HIDRA_PLUGINS=none leaves all others out)"
    )
