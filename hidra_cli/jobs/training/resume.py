"""Going on with a run exactly where its last whole checkpoint was saved."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidra_cli.engine.learner import Learner
from hidra_cli.errors import DataError, UsageError
from hidra_cli.runs.checkpoint import Checkpoint, load_checkpoint
from hidra_cli.runs.compatibility import require_plugins
from hidra_cli.runs.components import Components, resolve_components
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.model import restore_learner
from hidra_cli.runs.records import RunResult, record_or_none
from hidra_cli.settings.changes import check_resumable
from hidra_cli.settings.layers import Resolved, resolve
from hidra_cli.settings.schema import Settings


@dataclass(frozen=True)
class Resumed:
    """A run to go on with.

    Attributes:
        run: its directory.
        checkpoint: where it goes on; None where it was stopped before its first checkpoint.
        settings: those it was begun with, with what may change changed, and their origins.
        warnings: what a person should know.
        components: its plugins; None without a checkpoint, as is the learner.
        learner: with the weights of the checkpoint.
    """

    run: RunDir
    checkpoint: Checkpoint | None
    settings: Resolved
    warnings: list[str]
    components: Components | None = None
    learner: Learner | None = None

    @property
    def iteration(self) -> int:
        return self.checkpoint.model_meta.iteration if self.checkpoint else 0


def resume(
    run: RunDir,
    settings: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    preset: str | None = None,
) -> Resumed:
    """Find where a run goes on, and check that nothing is asked that would change it.

    Args:
        run: its directory.
        settings: dotted keys and values of what changes, such as the number of iterations.
        config: a TOML file of settings.
        preset: settings that ship with hidra.

    Raises:
        UsageError: a setting differs from the run's, or it is longer already than asked.
        DataError: it has checkpoints, and none is whole.
        PluginError, RunError: as `restore_learner`.
    """
    checkpoint, damage = newest_checkpoint(run)
    before = settings_of(run) if checkpoint is None else checkpoint.model_meta.settings
    base = (f"run {run.path.name}", before.model_dump(exclude_none=True))
    now = resolve(settings or {}, config=config, preset=preset, base=base)
    check_resumable(before, now)
    warnings = [damage] if damage else []
    if checkpoint is None:
        return Resumed(run, None, now, warnings)
    meta, iterations = checkpoint.model_meta, now.settings.outer.iterations
    components = resolve_components(now.settings, require_plugins(checkpoint.path, meta))
    learner = restore_learner(checkpoint, meta, now.settings, components)
    if iterations < meta.iteration:
        raise UsageError(
            f"the run {run.path} is at iteration {meta.iteration} already",
            why=f"--iterations {iterations} is less",
            fix=f"--iterations {meta.iteration} or more",
        )
    warnings += _changed_plugins(checkpoint, components)
    return Resumed(run, checkpoint, now, warnings, components, learner)


def newest_checkpoint(run: RunDir) -> tuple[Checkpoint | None, str]:
    """The last checkpoint that is whole, and what was wrong with a newer one.

    Returns:
        (None, "") where the run was stopped before its first checkpoint.

    Raises:
        DataError: there are checkpoints, and none is whole.
    """
    damage: list[DataError] = []
    for path in (run.last, run.previous):
        if not path.exists():
            continue
        try:
            checkpoint = load_checkpoint(path)
            _ = checkpoint.model_meta  # checked
        except DataError as error:
            damage.append(error)
            continue
        reasons = "; ".join(f"{error.what} ({error.why})" for error in damage)
        return checkpoint, f"{reasons}; going on from {path.name}" if reasons else ""
    if damage:
        raise damage[0]
    return None, ""


def settings_of(run: RunDir) -> Settings:
    """The settings that a run was begun with, from its config.toml.

    Raises:
        DataError: the file is damaged.
        UsageError: it has settings that there are not.
    """
    try:
        tables = tomllib.loads(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise DataError(
            f"{run.config} cannot be read",
            why=str(exc),
            fix="the run has no checkpoint either: begin a new one",
        ) from exc
    return resolve({}, environ={}, base=(str(run.config), tables)).settings


def _changed_plugins(checkpoint: Checkpoint, components: Components) -> list[str]:
    """Versions that differ from those the run was begun with."""
    recorded = checkpoint.model_meta.plugins
    return [
        f"the {kind} '{now.name}' is of {now.distribution} {now.version} now, "
        f"the run was begun with {recorded[kind].version}"
        for kind, now in components.records.items()
        if recorded[kind] != now
    ]


def is_finished(resumed: Resumed) -> bool:
    """Whether nothing is left to do: no step, and no test."""
    wanted = resumed.settings.settings.outer.iterations
    result = record_or_none(resumed.run.result, RunResult)
    return result is not None and resumed.iteration == wanted == result.iterations
