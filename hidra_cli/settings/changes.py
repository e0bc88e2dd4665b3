"""The differences between two runs' settings, and which of them a resumed run may have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hidra_cli.errors import UsageError
from hidra_cli.settings.declarations import SETTINGS
from hidra_cli.settings.layers import Resolved, flatten
from hidra_cli.settings.schema import Settings

# A resumed run may change these: they do not affect the steps that are already done.
MAY_CHANGE = {setting.key for setting in SETTINGS if setting.about.may_change}


def check_resumable(before: Settings, now: Resolved) -> None:
    """Refuse to resume a run with other settings than it started with.

    Raises:
        UsageError: lists each changed setting, old and new.
    """
    # A schedule depends on the length of the run, so other iterations change the earlier steps.
    fixed = set() if before.outer.schedule == "constant" else {"outer.iterations"}
    may_change = MAY_CHANGE - fixed
    if changed := changes(before, now, may_change):
        raise UsageError(
            "a resumed run keeps the settings that it started with",
            why="\n     ".join(changed),
            fix="leave these out, or start a new run; only these may change: "
            + ", ".join(sorted(may_change)),
        )


def changes(before: Settings, now: Resolved, may_change: Collection[str]) -> list[str]:
    """A line for each setting that differs, old and new, except those that may change."""
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
    """Options of plugins are equal in any spelling: 8 in a file, "8" in a flag."""
    if isinstance(value, Mapping):
        return {name: str(option).lower() for name, option in value.items()}
    return value
