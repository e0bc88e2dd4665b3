"""Layers of settings, merged and checked together, and where each value came from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hidra_cli.api.options import check_storable
from hidra_cli.errors import UsageError, nearest
from hidra_cli.settings.declarations import SECTIONS, SETTINGS
from hidra_cli.settings.presets import preset_text
from hidra_cli.settings.schema import DatasetSettings, Settings

# The variables of hidra that are not settings, and their meaning.
OTHER_VARIABLES = {
    "HIDRA_HOME": "Folder for hidra's own files, instead of `~/.cache/hidra`.",
    "HIDRA_CACHE_DIR": "Folder for prepared images, as `--cache-dir`; wins over HIDRA_HOME.",
    "HIDRA_RUNS_DIR": "Folder for runs, as `--runs-dir`, instead of `./runs`.",
    "HIDRA_PLUGINS": "`none` leaves out all plugins except the built-in ones.",
    "HIDRA_DEBUG": "Any value except an empty one shows the traceback of an error, as `--debug`.",
}


_SETTINGS = {setting.key: setting for setting in SETTINGS}
_VARIABLES = {setting.variable: setting.key for setting in SETTINGS}
# The setting that names a plugin → the setting that holds the plugin's options.
_OPTIONS_OF = {
    f"{setting.section}.{setting.about.options_of}": setting.key
    for setting in SETTINGS
    if setting.about.options_of
}


@dataclass(frozen=True)
class Resolved:
    """Settings together with the origin of each value, by dotted key."""

    settings: Settings
    origins: Mapping[str, str]

    def rows(self) -> list[tuple[str, str, str]]:
        """(dotted key, value, origin), in the order of the models."""
        flat = flatten(self.settings.model_dump())
        return [
            (key, "–" if value is None else str(value), self.origins.get(key, "default"))
            for key, value in flat.items()
        ]


def resolve(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    preset: str | None = None,
    environ: Mapping[str, str] | None = None,
    base: tuple[str, Mapping[str, Any]] | None = None,
) -> Resolved:
    """Merge all layers of settings and check them together.

    Args:
        flags: dotted key → value, for the flags on the command line only.
        config: the user's TOML file.
        preset: the name of a TOML file that ships with hidra.
        environ: environment variables; by default those of the process.
        base: an origin and its settings as nested tables, instead of the defaults.

    Raises:
        UsageError: lists every unknown key and bad value of all layers at once.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if base is not None:
        layers.append((base[0], flatten(base[1])))
    if preset is not None:
        layers.append((f"preset {preset}", flatten(_parse_toml(preset_text(preset), preset))))
    if config is not None:
        layers.append((str(config), flatten(_parse_toml(_read(config), str(config)))))
    layers.append(("environment", _from_environment(os.environ if environ is None else environ)))
    layers.append(("flag", flags))

    merged: dict[str, Any] = {name: _SETTINGS[name].default for name in _OPTIONS_OF}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for origin, layer in layers:
        good = {}
        for key, value in layer.items():
            if key not in _SETTINGS:
                known = _VARIABLES if origin == "environment" else _SETTINGS
                problems.append(f"{key} ({origin}): unknown key. {nearest(key, known)}".strip())
                continue
            try:
                good[key] = _checked(key, value)
            except ValueError as exc:
                problems.append(f"{key} ({origin}): {exc}")
        lay_over(merged, good)
        for key, value in good.items():
            joined = key in origins and merged[key] != value
            origins[key] = f"{origins[key]}, {origin}" if joined else origin
    try:
        settings = Settings.model_validate(nest(merged))
    except ValidationError as exc:
        problems += [_describe(error, origins) for error in exc.errors()]
    if problems:
        raise UsageError(
            f"{len(problems)} setting{'s are' if len(problems) > 1 else ' is'} wrong",
            why="\n     ".join(problems),
            fix="`hidra meta-train --print-config` shows every setting, its value and origin",
        )
    return Resolved(settings, {key: origin for key, origin in origins.items() if key in merged})


def lay_over(below: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a layer of flat settings over others; options of the same plugin are merged."""
    for name, options in _OPTIONS_OF.items():
        if name in below and layer.get(name, below[name]) != below[name]:
            below.pop(options, None)
    for key, value in layer.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        below[key] = {**below[key], **value} if both else value


def parse_assignments(pairs: Iterable[str], flag: str) -> dict[str, str]:
    """`name=value` strings of a repeatable flag → a dictionary.

    Raises:
        UsageError: a string is not of that form.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name.strip()):
            raise UsageError(
                f"{flag} {pair} is not understood",
                why="it has no name or no '='",
                fix=f"write {flag} name=value",
            )
        values[name.strip()] = value.strip()
    return values


def another_dataset(
    own: DatasetSettings, name: str | None, source: str | None, dataset_options: Mapping[str, str]
) -> DatasetSettings:
    """The dataset with this name, or else the model's dataset.

    Raises:
        UsageError: a source or options, but no name.
    """
    if name is not None:
        return DatasetSettings(name=name, source=source, options=dict(dataset_options))
    if source is not None or dataset_options:
        raise UsageError(
            "--source and --data-opt describe another dataset, but --dataset names none",
            why=f"without --dataset, the dataset of the model is used: {own.name}",
            fix=f"add --dataset {own.name}, or leave them out",
        )
    return own


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """{"tasks": {"ways": 5}} → {"tasks.ways": 5}; option tables stay whole."""
    flat: dict[str, Any] = {}
    for section, content in nested.items():
        if isinstance(content, Mapping) and (content or section in SECTIONS):
            flat.update({f"{section}.{key}": value for key, value in content.items()})
        else:
            flat[section] = content
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    return nested


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are not settings, as the environment of another process."""
    return {name: value for name, value in environ.items() if name not in _VARIABLES}


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    ours = {
        name: value
        for name, value in environ.items()
        if name.startswith("HIDRA_") and name not in OTHER_VARIABLES
    }
    # An unknown variable keeps its own name and is reported with the unknown keys.
    return {_VARIABLES.get(name, name): value for name, value in ours.items()}


def _describe(error: Any, origins: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in error["loc"][:2])
    message = error["msg"].removeprefix("Value error, ")
    value = "" if isinstance(error["input"], dict) else f" = {error['input']}"
    origin = f" ({origins[key]})" if key in origins else ""
    return f"{key}{value}{origin}: {message}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(
            f"the configuration file {path} cannot be read",
            why=str(exc),
            fix="give --config the path of a TOML file",
        ) from exc


def _parse_toml(text: str, origin: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(text)
        check_storable(tables)
        return tables
    except (ValueError, RecursionError) as exc:  # also numbers and nesting that are far too large
        raise UsageError(f"{origin} is not valid TOML", why=str(exc)) from exc


def _checked(key: str, value: Any) -> Any:
    """A layer's value; the options in a variable, a=1,b=2, become a table."""
    check_storable(value)
    if isinstance(value, str) and key in _OPTIONS_OF.values():
        try:
            return parse_assignments(filter(str.strip, value.split(",")), key)
        except UsageError as exc:
            raise ValueError(f"{exc.why}: write name=value,other=value") from exc
    return value
