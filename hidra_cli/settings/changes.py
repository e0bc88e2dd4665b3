"""What differs between two runs' settings, and what a resumed run may change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hidra_cli.errors import UsageError
from hidra_cli.settings.declarations import SETTINGS
from hidra_cli.settings.layers import Resolved, flatten
from hidra_cli.settings.schema import Settings

# What a resumed run may do otherwise: the steps already taken would have been the same.
MAY_CHANGE = {setting.key for setting in SETTINGS if setting.about.may_change}


def check_resumable(before: Settings, now: Resolved) -> None:
    """Refuse to go on with other settings than a run was begun with.

    Raises:
        UsageError: lists each changed setting, old and new.
    """
    # A schedule over the whole run would have made the steps already taken otherwise.
    fixed = set() if before.outer.schedule == "constant" else {"outer.iterations"}
    may_change = MAY_CHANGE - fixed
    if changed := changes(before, now, may_change):
        raise UsageError(
            "a run is resumed with the settings it was begun with",
            why="\n     ".join(changed),
            fix="leave these out, or begin a new run; only these may change: "
            + ", ".join(sorted(may_change)),
        )


def changes(before: Settings, now: Resolved, may_change: Collection[str]) -> list[str]:
    """A line for each setting that differs, old and new, but for those that may."""
    return [
        f"{key}: {old} → {new} ({now.origins.get(key, 'default')})"
        for key, old, new in differing(before, now.settings)
        if key not in may_change
    ]


def differing(one: Settings, other: Settings) -> list[tuple[str, Any, Any]]:
    """(dotted key, its value in one, in the other) of each setting that differs."""
    values, others = (flatten(s.model_dump()) for s in (one, other))
    return [
        (key, value, others[key])
        for key, value in values.items()
        if _comparable(value) != _comparable(others[key])
    ]


def _comparable(value: Any) -> Any:
    """Options of plugins are equal however they were written: 8 in a file, "8" in a flag."""
    if isinstance(value, Mapping):
        return {name: str(option).lower() for name, option in value.items()}
    return value
