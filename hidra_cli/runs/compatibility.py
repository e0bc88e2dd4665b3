"""Whether weights fit a model: sizes, settings, plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hidra_cli.api import registry
from hidra_cli.api.building import component_of
from hidra_cli.api.registry import Kind, Plugin
from hidra_cli.errors import HidraError, PluginError
from hidra_cli.runs.components import ModelComponents
from hidra_cli.runs.model_records import ModelMeta
from hidra_cli.settings.changes import differing
from hidra_cli.settings.schema import Settings


def differing_models(one: Settings, other: Settings, *more: str) -> list[tuple[str, Any, Any]]:
    """What differs of the model, the inner loop and `more`; where it began does not count."""
    return [
        difference
        for difference in differing(one, other)
        if difference[0].startswith(("model.", "inner.", *more))
        and difference[0] != "model.start_from"
    ]


_Size = tuple[int, ...] | None  # None: there is no such tensor


def first_unlike(
    held: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[str, _Size, _Size] | None:
    """The first name, with both sizes, of which only one has a tensor or they differ in size."""
    for name in sorted(held.keys() | expected.keys()):
        sizes = [tuple(of[name].shape) if name in of else None for of in (held, expected)]
        if sizes[0] != sizes[1]:
            return name, sizes[0], sizes[1]
    return None


def require_plugins(path: Path, meta: ModelMeta) -> ModelComponents:
    """Find the backbone and the head that a file names.

    Its dataset is not needed: a model may be used on another one.

    Raises:
        PluginError: one is missing; names the package.
        UsageError: it does not know an option or value.
    """
    model = meta.settings.model
    return ModelComponents(
        backbone=component_of(
            _required(path, meta, "backbone", model.backbone), model.backbone_options
        ),
        head=component_of(_required(path, meta, "head", model.head), model.head_options),
    )


def _required(path: Path, meta: ModelMeta, kind: Kind, name: str) -> Plugin:
    plugin = meta.plugins[kind]
    try:
        recorded = registry.find(kind, plugin.name)
        return recorded if plugin.name == name else registry.find(kind, name)
    except HidraError as exc:
        raise PluginError(
            f"{path} needs the {kind} '{plugin.name}'",
            why=f"the file says it came from {plugin.distribution} {plugin.version}, which is "
            "not installed or has no such plugin",
            fix=f"pip install {plugin.distribution}=={plugin.version}",
        ) from exc


def other_versions(meta: ModelMeta, components: ModelComponents) -> list[str]:
    """The plugins of a file that are here in another version than it was written with.

    hidra's own are left out: its later versions read files of earlier ones.
    """
    return [
        f"the {here.kind} '{here.name}' is of {here.distribution} {here.version} here, and was of "
        f"{record.distribution} {record.version} when the model was trained"
        for here in (components.backbone.plugin, components.head.plugin)
        if (record := meta.plugins[here.kind]).version != here.version
        and here.distribution != registry.OWN_DISTRIBUTION
    ]


def _empty_matrix(rows: int, columns: int | None = None, **kwargs: Any) -> Tensor:
    return torch.empty(rows, rows if columns is None else columns, **kwargs)


# What makes a tensor whose size its arguments give → what makes one of that size on the meta
# device. Not always itself: there, randn and eye would first import a compiler, for seconds.
_MAKERS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    torch.arange: torch.arange,
    torch.empty: torch.empty,
    torch.empty_strided: torch.empty_strided,
    torch.eye: _empty_matrix,
    torch.full: torch.full,
    torch.linspace: torch.linspace,
    torch.logspace: torch.logspace,
    torch.ones: torch.empty,
    torch.rand: torch.empty,
    torch.randint: torch.randint,
    torch.randn: torch.empty,
    torch.randperm: torch.randperm,
    torch.zeros: torch.empty,
}


class MemoryLimit(TorchFunctionMode):
    """A context in which new tensors may take so many bytes in all.

    The tensor that would take more is refused before it gets its memory: a file of a few bytes may
    describe a model that no memory holds.

    Args:
        size: bytes.
        error: what is raised instead of making that tensor.
    """

    def __init__(self, size: int, error: HidraError) -> None:
        super().__init__()
        self.left = size
        self.error = error

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            # On the meta device a tensor has a size and no memory.
            like = {k: v for k, v in kwargs.items() if k not in ("generator", "pin_memory")}
            self.left -= _MAKERS[func](*args, **like | {"device": "meta"}).nbytes
            if self.left < 0:
                raise self.error
        return func(*args, **kwargs)
