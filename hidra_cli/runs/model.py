"""Meta-trained models, restored from their checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hidra_cli.engine.devices import choose_float32
from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.normalization import Mode
from hidra_cli.engine.strategies.base import Strategy
from hidra_cli.engine.strategies.choose import choose
from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.errors import PluginError, UsageError
from hidra_cli.runs.build import build_learner, fixed_ways_error
from hidra_cli.runs.checkpoint import (
    Checkpoint,
    check_entries,
    incomplete,
    load_checkpoint,
    load_weights,
    restore_error,
)
from hidra_cli.runs.compatibility import _require_plugins, differing_models, first_unlike
from hidra_cli.runs.locate import find_checkpoint
from hidra_cli.settings.numbers import MOST_WAYS_OR_SHOTS
from hidra_cli.settings.schema import Settings
from hidra_cli.system.memory import keep_freed_memory
from hidra_cli.tasks.objective import CLASSIFICATION, REGRESSION, Objective


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint, restored."""

    name: str
    path: Path
    settings: Settings
    learner: Learner
    image_shape: tuple[int, int, int]
    max_ways: int
    meta: dict[str, Any]
    steps: int

    @property
    def normalization(self) -> str:
        return self.settings.model.normalization

    @property
    def objective(self) -> Objective:
        """What it was trained for."""
        return REGRESSION if self.meta.get("problem") == REGRESSION.name else CLASSIFICATION

    @property
    def inner(self) -> InnerLoop:
        return inner_loop(self.settings)

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        if not self.learner.head.any_ways and set(ways) != {self.max_ways}:
            raise fixed_ways_error(self.settings.model.head, tuple(ways), self.max_ways)
        if image_shape != self.image_shape:
            c, h, w = self.image_shape
            oc, oh, ow = image_shape
            raise UsageError(
                f"{self.name} was trained on {h}×{w} images with {c} channel(s)",
                why=f"these are {oh}×{ow} with {oc}",
                fix="prepare the dataset with the same size (--data-opt size=…) and channels",
            )

    def scores(self, batch: TaskBatch, *, every_step: bool) -> list[list[float]]:
        choose_float32(self.learner.precision, self.learner.device)  # others may differ
        return self._strategy.scores(batch, self.inner, self.steps, every_step=every_step)

    @cached_property
    def _strategy(self) -> Strategy:
        keep_freed_memory()
        return choose("auto", self.learner, self.image_shape).strategy


def inner_loop(settings: Settings) -> InnerLoop:
    """The engine's inner loop as the settings describe it."""
    inner = settings.inner
    return InnerLoop(
        steps=inner.steps,
        inner_lr=inner.inner_lr,
        head_lr=inner.head_lr,
        adapt=inner.adapt,
        order=inner.order,
    )


def load_model(
    chosen: Path,
    device: torch.device,
    *,
    steps: int | None = None,
    normalization: Mode | None = None,
) -> TrainedModel:
    """Restore the model of a run directory (its best checkpoint) or of a checkpoint file.

    Args:
        chosen: the run directory or file.
        device: where its weights go.
        steps: inner steps, instead of the run's own.
        normalization: where statistics come from, instead of the run's own mode.

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
        UsageError: the mode's layers have other weights than the checkpoint holds.
        PluginError: a plugin it needs is missing; names the package.
        RunError: the weights do not fit.
    """
    path = find_checkpoint(chosen)
    checkpoint = load_checkpoint(path)
    check_entries(checkpoint, iteration=int, dataset_hash=str, invert=bool)
    settings, image_shape, max_ways, learner = restore_learner(checkpoint, normalization)
    choose_float32(settings.run.precision, device)
    of_run = path.parent.name == "checkpoints"
    name = f"{path.parents[1].name}/{path.stem}" if of_run else path.stem
    name = chosen.name if chosen.is_dir() else name
    return TrainedModel(
        name,
        path,
        settings,
        learner.to(device),
        image_shape,
        max_ways,
        checkpoint.meta,
        settings.inner.steps_at_test if steps is None else steps,
    )


def restore_learner(
    checkpoint: Checkpoint, normalization: Mode | None = None
) -> tuple[Settings, tuple[int, int, int], int, Learner]:
    """Build what a checkpoint describes and give it the checkpoint's weights, on the CPU.

    Returns:
        Settings, image shape (C, H, W), the ways of a fixed-way head, and the learner.

    Raises:
        DataError: an entry is missing or wrong.
        UsageError: the mode's layers have other weights than the checkpoint holds.
        PluginError: a plugin it needs is missing; names the package.
        RunError: the weights do not fit.
    """
    settings, image_shape, max_ways = described(checkpoint)
    trained = settings.model.normalization
    if normalization is not None:
        model = replace(settings.model, normalization=normalization)
        settings = settings.model_copy(update={"model": model})
    learner = build_learner(settings, image_shape, max_ways, restoring=True)
    if learner.state_dict().keys() != checkpoint.part("model").keys() and normalization != trained:
        raise UsageError(
            f"{checkpoint.path} cannot be used with {normalization} normalization",
            why=f"it was trained with {trained}, whose layers have other weights",
            fix=f"--normalization {trained}, or train with --normalization {normalization}",
        )
    load_weights(learner, checkpoint)
    return settings, image_shape, max_ways, learner


def begin_with(learner: Learner, settings: Settings, chosen: Path) -> dict[str, str]:
    """Give a new learner the weights of a trained model, learned rates among them.

    Args:
        learner: as `settings` build it, on the CPU.
        settings: of the run that begins.
        chosen: a run directory, a checkpoint, or the name of a model that ships with hidra.

    Returns:
        The checkpoint's path, and the SHA-256 of the file.

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
        UsageError: it is another model; names each setting that differs.
    """
    checkpoint = load_checkpoint(find_checkpoint(chosen))
    theirs, *_ = described(checkpoint)
    weights = checkpoint.part("model")
    if (unlike := first_unlike(weights, learner.state_dict())) is not None:
        name, *sizes = unlike
        there, here = ("absent" if size is None else size for size in sizes)
        reasons = [f"{name} is {there} there and {here} here"] + [
            f"{key} is {there} there and {here} here"
            for key, there, here in differing_models(theirs, settings, "tasks.ways")
        ]
        raise UsageError(
            f"the run cannot begin with the weights of {checkpoint.path}",
            why="\n     ".join(reasons),
            fix="give the settings that it was trained with (its run's config.toml as --config, or "
            "its --preset), or leave --start-from out",
        )
    learner.load_state_dict(weights)
    return {"checkpoint": str(checkpoint.path), "sha256": checkpoint.sha256}


def described(checkpoint: Checkpoint) -> tuple[Settings, tuple[int, int, int], int]:
    """The settings, image shape and largest ways of a checkpoint, checked against its weights.

    A file of a few bytes may describe a model that no memory holds: nothing is built unless its
    weights are as large as the file says.

    Raises:
        DataError: an entry is missing or wrong.
        PluginError: a plugin it needs is missing; names the package.
        RunError: the weights do not fit.
    """
    try:
        settings = Settings.model_validate(checkpoint.meta["settings"])
        c, h, w = map(int, checkpoint.meta["image_shape"])
        max_ways = int(checkpoint.meta["max_ways"])
        if min(c, h, w, max_ways) < 1 or max(c, h, w, max_ways) > MOST_WAYS_OR_SHOTS:
            raise ValueError(f"images of shape {(c, h, w)} and {max_ways} ways cannot be")
        _require_plugins(checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise incomplete(checkpoint, exc) from exc
    with contextlib.suppress(PluginError), torch.device("meta"):  # not every plugin can do without
        built = build_learner(settings, (c, h, w), max_ways, restoring=True)
        if (unlike := first_unlike(checkpoint.part("model"), built.state_dict())) is not None:
            name, held, expected = unlike
            raise restore_error(checkpoint, f"{name} should be {expected}, but is {held}")
    return settings, (c, h, w), max_ways
