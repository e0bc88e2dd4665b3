"""The evaluation protocol: fixed episodes, scores per inner step, intervals, paired differences.

Shapes: E episodes, S inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from hidra_cli.console import Advance, Console
from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.inner_loop import score
from hidra_cli.engine.tasks import Task, TaskBatch
from hidra_cli.problems import CLASSIFICATION, Problem
from hidra_cli.task_sources import Sampler, TaskSource
from hidra_cli.world import ALONE, World

Float64 = npt.NDArray[np.float64]

# The normal quantile: with 100 episodes or more it differs from Student's t by 1 % or less.
Z_95 = 1.959964
_EPISODES_AT_ONCE = 16
# Of the file that holds every episode's score.
EPISODES_HEADER = ("model", "normalization", "ways", "shots", "metric", "episode", "score")


class Contender(Protocol):
    """Something that can be evaluated on tasks."""

    @property
    def name(self) -> str: ...

    @property
    def normalization(self) -> str: ...

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        """Raise UsageError where it cannot do what is asked."""

    def scores(self, batch: TaskBatch, *, every_step: bool) -> list[list[float]]:
        """For each task the query score before and after each step (S + 1), or only the last."""


@dataclass(frozen=True)
class NearestPixels:
    """The baseline that learns nothing: the label of the nearest support image (L2 on pixels)."""

    name: str = "nearest neighbour on pixels"
    normalization: str = "–"

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        """It can do any number of ways and any image."""

    def scores(self, batch: TaskBatch, *, every_step: bool) -> list[list[float]]:
        return [[self._score(task)] for task in batch.tasks()]

    def _score(self, task: Task) -> float:
        distances = torch.cdist(task.query_images.flatten(1), task.support_images.flatten(1))
        return score(-_nearest_by_class(distances, task), task.query_labels)


@dataclass(frozen=True)
class Cell:
    """One contender at one number of ways and shots.

    Attributes:
        scores: (E, S + 1) before and after each inner step; or (E, 1), the last. Accuracies
            in 0..1, or mean squared errors, as the problem says.
    """

    contender: str
    normalization: str
    ways: int
    shots: int
    scores: Float64
    problem: Problem = CLASSIFICATION

    @property
    def final(self) -> Float64:
        return self.scores[:, -1]

    def to_json(self) -> dict[str, Any]:
        mean, half = interval(self.final)
        row: dict[str, Any] = {
            "model": self.contender,
            "normalization": self.normalization,
            "ways": self.ways,
            "shots": self.shots,
            "episodes": len(self.scores),
            self.problem.key: mean,
            "interval": half,
        }
        if self.scores.shape[1] > 1:
            row["per_step"] = [
                {"step": step, self.problem.key: mean, "interval": half}
                for step, (mean, half) in enumerate(map(interval, self.scores.T))
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


def evaluate_cell(
    contender: Contender,
    data: TaskSource,
    sampler: Sampler,
    *,
    ways: int,
    shots: int,
    episodes: int,
    device: torch.device,
    every_step: bool = True,
    advance: Advance | None = None,
    world: World = ALONE,
) -> Cell:
    """Scores of episodes 0..E−1 of the sampler's stream at one number of ways and shots.

    The processes of a world take a share of the episodes each, and get the scores of all.
    """
    mine = world.share(range(episodes))
    found: list[list[float]] = []
    for start in range(0, len(mine), _EPISODES_AT_ONCE):
        chosen = mine[start : start + _EPISODES_AT_ONCE]
        with memory_errors():
            batch = sampler.batch(data, chosen, ways, shots, device)
            found += contender.scores(batch, every_step=every_step)
        if advance is not None:
            advance(round(episodes * len(found) / len(mine)))
    scores = world.gather(found)
    return Cell(contender.name, contender.normalization, ways, shots, scores, data.problem)


def evaluate_plan(
    plan: Sequence[tuple[Contender, int]],
    data: TaskSource,
    sampler: Sampler,
    *,
    episodes: int,
    device: torch.device,
    console: Console,
    every_step: bool = True,
    world: World = ALONE,
) -> list[Cell]:
    """Each contender at each number of ways, at all shots of the sampler: the same episodes."""
    cells = []
    for contender, ways in plan:
        for shots in sampler.shots:
            what = f"{contender.name}, {ways} ways, {shots} shots"
            with console.progress(what, episodes) as advance:
                cell = evaluate_cell(
                    contender,
                    data,
                    sampler,
                    ways=ways,
                    shots=shots,
                    episodes=episodes,
                    device=device,
                    every_step=every_step,
                    advance=advance,
                    world=world,
                )
            cells.append(cell)
    return cells


def compare(
    cells: Sequence[Cell], references: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Paired differences of models to another, on the same episodes.

    Args:
        cells: what they have.
        references: contender → the contender it is compared with; all others → the first, if left
            out.

    Returns:
        For each of them, ways and shots: the mean difference and its 95 % half-width.
    """
    if references is None:
        names = list(dict.fromkeys(cell.contender for cell in cells))
        references = dict.fromkeys(names[1:], names[0] if names else "")
    found = {(c.contender, c.ways, c.shots): c for c in cells}
    rows = []
    for cell in cells:
        minus = references.get(cell.contender, "")
        reference = found.get((minus, cell.ways, cell.shots))
        if reference is None:
            continue
        mean, half = interval(cell.final - reference.final)
        rows.append(
            {
                "model": cell.contender,
                "minus": minus,
                "ways": cell.ways,
                "shots": cell.shots,
                "difference": mean,
                "interval": half,
            }
        )
    return rows
