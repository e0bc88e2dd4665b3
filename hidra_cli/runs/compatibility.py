"""Whether weights fit a model: sizes, settings, plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hidra_cli.api.registry import Kind, find
from hidra_cli.errors import HidraError, PluginError
from hidra_cli.runs.checkpoint import Checkpoint
from hidra_cli.settings.changes import differing
from hidra_cli.settings.schema import Settings


def differing_models(one: Settings, other: Settings, *more: str) -> list[tuple[str, Any, Any]]:
    """What differs of the model, the inner loop and `more`; where it began does not count."""
    return [
        found
        for found in differing(one, other)
        if found[0].startswith(("model.", "inner.", *more)) and found[0] != "model.start_from"
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


def _require_plugins(checkpoint: Checkpoint) -> None:
    kinds: tuple[Kind, ...] = ("backbone", "head", "dataset")
    for kind in kinds:
        recorded = checkpoint.meta["plugins"][kind]
        name, distribution, version = (
            str(recorded[k]) for k in ("name", "distribution", "version")
        )
        if kind == "dataset":  # a model may be used on another one
            continue
        try:
            find(kind, name)
        except HidraError as exc:
            raise PluginError(
                f"{checkpoint.path} needs the {kind} '{name}'",
                why=f"the file says it came from {distribution} {version}, which is not installed "
                "or has no such plugin",
                fix=f"pip install {distribution}=={version}",
            ) from exc
