"""The evaluation protocol: fixed episodes, accuracy per inner step, intervals, paired differences.

Shapes: E episodes, S inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from hidra_cli.components import build_learner, fixed_ways_error
from hidra_cli.console import Advance
from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.inner_loop import InnerLoop, accuracy, adapt, query_accuracy
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.normalization import Mode
from hidra_cli.episodes import EpisodeSampler, Task
from hidra_cli.errors import DataError, HidraError, PluginError, UsageError
from hidra_cli.registry import Kind, find
from hidra_cli.runs import Checkpoint, find_checkpoint, load_checkpoint, restore_error
from hidra_cli.settings import Settings
from hidra_cli.store.reader import PreparedImages

Float64 = npt.NDArray[np.float64]

# The normal quantile: with 100 episodes or more it differs from Student's t by 1 % or less.
Z_95 = 1.959964
_EPISODES_AT_ONCE = 16


class Contender(Protocol):
    """Something that can be evaluated on tasks."""

    @property
    def name(self) -> str: ...

    @property
    def normalization(self) -> str: ...

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        """Raise UsageError where it cannot do what is asked."""

    def accuracies(self, task: Task, *, every_step: bool) -> list[float]:
        """Query accuracy in 0..1 before and after each inner step (S + 1 numbers), or only last."""


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

    def accuracies(self, task: Task, *, every_step: bool) -> list[float]:
        path = adapt(self.learner, task, self.inner, meta=False, steps=self.steps)
        if every_step:
            return [query_accuracy(self.learner, weights, task) for weights in path]
        *_, adapted = path
        return [query_accuracy(self.learner, adapted, task)]


@dataclass(frozen=True)
class NearestPixels:
    """The baseline that learns nothing: the label of the nearest support image (L2 on pixels)."""

    name: str = "nearest neighbour on pixels"
    normalization: str = "–"

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        """It can do any number of ways and any image."""

    def accuracies(self, task: Task, *, every_step: bool) -> list[float]:
        distances = torch.cdist(task.query_images.flatten(1), task.support_images.flatten(1))
        return [accuracy(-_nearest_by_class(distances, task), task.query_labels)]


@dataclass(frozen=True)
class Cell:
    """One contender at one number of ways and shots.

    Attributes:
        accuracies: (E, S + 1) in 0..1, before and after each inner step; or (E, 1), the last.
    """

    contender: str
    normalization: str
    ways: int
    shots: int
    accuracies: Float64

    @property
    def final(self) -> Float64:
        return self.accuracies[:, -1]

    def to_json(self) -> dict[str, Any]:
        mean, half = interval(self.final)
        row: dict[str, Any] = {
            "model": self.contender,
            "normalization": self.normalization,
            "ways": self.ways,
            "shots": self.shots,
            "episodes": len(self.accuracies),
            "accuracy": mean,
            "interval": half,
        }
        if self.accuracies.shape[1] > 1:
            row["per_step"] = [
                {"step": step, "accuracy": mean, "interval": half}
                for step, (mean, half) in enumerate(map(interval, self.accuracies.T))
            ]
        return row


def _nearest_by_class(distances: torch.Tensor, task: Task) -> torch.Tensor:
    """Distances (n, N·K) to the support images → smallest per class (n, N)."""
    return distances.reshape(len(distances), task.ways, -1).amin(2)


def interval(values: Float64) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval over episodes: (mean, half-width)."""
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(Z_95 * values.std(ddof=1) / math.sqrt(len(values)))


def percent(mean: float, half: float) -> str:
    """`(0.8912, 0.0061)` → `89.12 ± 0.61`."""
    return f"{100 * mean:.2f} ± {100 * half:.2f}"


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


def evaluate_cell(
    contender: Contender,
    images: PreparedImages,
    sampler: EpisodeSampler,
    *,
    ways: int,
    shots: int,
    episodes: int,
    device: torch.device,
    every_step: bool = True,
    advance: Advance | None = None,
) -> Cell:
    """Accuracy over episodes 0..E−1 of the sampler's stream at one number of ways and shots."""
    found: list[list[float]] = []
    for start in range(0, episodes, _EPISODES_AT_ONCE):
        chosen = range(start, min(start + _EPISODES_AT_ONCE, episodes))
        with memory_errors():
            batch = sampler.batch(images, chosen, ways, shots, device)
            tasks = map(batch.task, range(len(batch)))
            found += [contender.accuracies(task, every_step=every_step) for task in tasks]
        if advance is not None:
            advance(len(found))
    return Cell(contender.name, contender.normalization, ways, shots, np.array(found))


def compare(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Paired differences of every model to the first, on the same episodes.

    Returns:
        For each further model, ways and shots: the mean difference and its 95 % half-width.
    """
    first = cells[0].contender if cells else ""
    base = {(c.ways, c.shots): c for c in cells if c.contender == first}
    rows = []
    for cell in cells:
        reference = base.get((cell.ways, cell.shots))
        if cell.contender == first or reference is None:
            continue
        mean, half = interval(cell.final - reference.final)
        rows.append(
            {
                "model": cell.contender,
                "minus": first,
                "ways": cell.ways,
                "shots": cell.shots,
                "difference": mean,
                "interval": half,
            }
        )
    return rows


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
        PluginError: a plugin it needs is missing; names the package.
        RunError: the weights do not fit.
    """
    path = find_checkpoint(chosen)
    checkpoint = load_checkpoint(path)
    settings, image_shape, max_ways, learner = restore_learner(checkpoint, normalization)
    name = chosen.name if chosen.is_dir() else f"{path.parent.parent.name}/{path.stem}"
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
        PluginError: a plugin it needs is missing; names the package.
        RunError: the weights do not fit.
    """
    try:
        settings = Settings.model_validate(checkpoint.meta["settings"])
        c, h, w = map(int, checkpoint.meta["image_shape"])
        max_ways = int(checkpoint.meta["max_ways"])
        _require_plugins(checkpoint)
    except (KeyError, TypeError, ValueError) as exc:
        raise DataError(
            f"{checkpoint.path} is incomplete", why=f"{type(exc).__name__}: {exc}".split("\n")[0]
        ) from exc
    if normalization is not None:
        model = settings.model.model_copy(update={"normalization": normalization})
        settings = settings.model_copy(update={"model": model})
    learner = build_learner(
        settings.model,
        (c, h, w),
        max_ways,
        seed=settings.run.seed,
        precision=settings.run.precision,
    )
    try:
        learner.load_state_dict(checkpoint.part("model"))
    except RuntimeError as exc:
        raise restore_error(checkpoint, str(exc).split("\n")[0]) from exc
    return settings, (c, h, w), max_ways, learner


def _require_plugins(checkpoint: Checkpoint) -> None:
    kinds: tuple[Kind, ...] = ("backbone", "head")
    for kind in kinds:
        recorded = checkpoint.meta["plugins"][kind]
        try:
            find(kind, recorded["name"])
        except HidraError as exc:
            raise PluginError(
                f"{checkpoint.path} needs the {kind} '{recorded['name']}'",
                why=f"it came from {recorded['distribution']} {recorded['version']}, "
                "which is not installed",
                fix=f"pip install {recorded['distribution']}=={recorded['version']}",
            ) from exc
