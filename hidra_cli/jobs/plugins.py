"""What a plugin declares, and whether it keeps its contract."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidra_cli.api import registry
from hidra_cli.api.building import plugin_errors, resolve
from hidra_cli.api.data import FunctionFamily
from hidra_cli.api.options import Option, options
from hidra_cli.images.cache import cache_dir as resolve_cache
from hidra_cli.images.open import existing_source

_HOOKS = ("before_outer_step", "after_outer_step")
# Of the built-in datasets. The larger ones are for backbones that refuse small images.
_IMAGE_SHAPES = ((1, 28, 28), (3, 84, 84), (3, 224, 224))


@dataclass(frozen=True)
class Declared:
    """What a plugin says of itself.

    Attributes:
        summary: its docstring.
        abilities: what it declares, by name; what is empty is left out.
    """

    plugin: registry.Plugin
    api_version: int
    summary: str
    abilities: dict[str, str]
    options: list[Option]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.plugin.kind,
            "name": self.plugin.name,
            "distribution": self.plugin.distribution,
            "version": self.plugin.version,
            "status": "loads",
            "api_version": self.api_version,
            "summary": self.summary,
            "abilities": self.abilities,
            "options": [
                {
                    "name": o.name,
                    "type": o.type_name,
                    "required": o.required,
                    "default": o.default,
                    "help": o.help,
                }
                for o in self.options
            ],
        }


def declared(kind: registry.Kind, name: str) -> Declared:
    """Import a plugin and read what it declares.

    Raises:
        UsageError: there is none of that name.
        PluginError: it cannot be imported.
    """
    plugin = registry.find(kind, name)
    component = registry.load(plugin)
    abilities = _of_dataset(component) if kind == "dataset" else _of_module(component)
    abilities = {key: value for key, value in abilities.items() if value}
    summary = inspect.getdoc(component) or ""
    return Declared(plugin, component.api_version, summary, abilities, options(component))


def _of_module(component: type[Any]) -> dict[str, str]:
    """Of a head or a backbone."""
    if not hasattr(component, "any_ways"):
        return {
            "inputs": "images, or numbers (vectors)" if component.vectors else "images",
            "frozen": "a published network: --normalization frozen" if component.freezable else "",
        }
    hooks = [name for name in _HOOKS if name in vars(component)]
    return {
        "ways": "any number" if component.any_ways else "one fixed number",
        "support": "initialize reads the support features" if component.needs_support else "",
        "neurons": "all start alike (identical_neurons)" if component.identical_neurons else "",
        "common": ", ".join(component.common_parameters),
        "hooks": ", ".join(hooks),
    }


def _of_dataset(component: type[Any]) -> dict[str, str]:
    about = {key: getattr(component, key) for key in ("title", "licence", "citation", "homepage")}
    if issubclass(component, FunctionFamily):
        return about | {"tasks": "functions, drawn as needed"}
    source = "--source or a download" if component.downloadable else "--source"
    return about | {"images": "generated, no download" if component.embedded else source}


@dataclass(frozen=True)
class CheckRequest:
    """What to check.

    Attributes:
        options: of the plugin, as text.
        source: of a dataset.
        cache_dir: holds the downloads of datasets.
    """

    kind: registry.Kind
    name: str
    options: Mapping[str, str]
    source: str | None = None
    cache_dir: Path | None = None


def check_plugin(request: CheckRequest) -> registry.Plugin:
    """Check a plugin against its contract.

    Raises:
        UsageError: there is none of that name, or it refuses its options.
        DataError: a dataset misses its source.
        PluginError: it breaks its contract; says where, and what to write instead.
    """
    resolved = resolve(request.kind, request.name, request.options)
    plugin, component, options = resolved.plugin, resolved.type, resolved.options
    with plugin_errors(plugin):
        if plugin.kind == "head":
            from hidra_cli.api.contract_heads import check_head_class

            check_head_class(component, options)
        elif plugin.kind == "backbone":
            _check_backbone(component, options)
        elif issubclass(component, FunctionFamily):
            from hidra_cli.api.contract_data import check_family_class

            check_family_class(component, options)
        else:
            from hidra_cli.api.contract_data import check_dataset_class

            downloads = resolve_cache(request.cache_dir) / "downloads"
            check_dataset_class(component, existing_source(request.source), downloads, options)
    return plugin


def _check_backbone(component: type[Any], options: Mapping[str, Any]) -> None:
    from hidra_cli.api.contract_backbones import check_backbone_class

    *smaller, largest = _IMAGE_SHAPES
    for shape in smaller:
        try:
            return check_backbone_class(component, shape, options)
        except ValueError:
            continue
    return check_backbone_class(component, largest, options)
