"""Scores of episodes, their intervals, and the file that holds them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hidra_cli.errors import DataError
from hidra_cli.runs.records import DifferenceRecord, ScoreRecord, StepRecord
from hidra_cli.tasks.objective import CLASSIFICATION, OBJECTIVES, Objective

Float64 = npt.NDArray[np.float64]


# The normal quantile: with 100 episodes or more it differs from Student's t by 1 % or less.
Z_95 = 1.959964


# Of episodes.csv, which holds every episode's score.
EPISODES_HEADER = ("model", "normalization", "ways", "shots", "metric", "episode", "score")


@dataclass(frozen=True)
class Cell:
    """One contender at one number of ways and shots.

    Attributes:
        scores: (E, S + 1) before and after each inner step; or (E, 1), the last. Accuracies
            in 0..1, or mean squared errors, as the objective says.
    """

    contender: str
    normalization: str
    ways: int
    shots: int
    scores: Float64
    objective: Objective = CLASSIFICATION

    @property
    def final(self) -> Float64:
        return self.scores[:, -1]

    def record(self) -> ScoreRecord:
        """Means over the episodes."""
        steps = None
        if self.scores.shape[1] > 1:
            steps = tuple(
                StepRecord(step=step, metric=self.objective.key, score=mean, interval=half)
                for step, (mean, half) in enumerate(map(interval, self.scores.T))
            )
        mean, half = interval(self.final)
        return ScoreRecord(
            model=self.contender,
            normalization=self.normalization,
            ways=self.ways,
            shots=self.shots,
            episodes=len(self.scores),
            metric=self.objective.key,
            score=mean,
            interval=half,
            per_step=steps,
        )


def interval(values: Float64) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval over episodes: (mean, half-width)."""
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(Z_95 * values.std(ddof=1) / math.sqrt(len(values)))


def compare(
    cells: Sequence[Cell], references: Mapping[str, str] | None = None
) -> list[DifferenceRecord]:
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
    by_shape = {(c.contender, c.ways, c.shots): c for c in cells}
    rows = []
    for cell in cells:
        minus = references.get(cell.contender, "")
        reference = by_shape.get((minus, cell.ways, cell.shots))
        if reference is None:
            continue
        mean, half = interval(cell.final - reference.final)
        rows.append(
            DifferenceRecord(
                model=cell.contender,
                minus=minus,
                ways=cell.ways,
                shots=cell.shots,
                difference=mean,
                interval=half,
            )
        )
    return rows


def read_episodes(path: Path) -> list[Cell]:
    """The scores of single episodes that `hidra evaluate` wrote.

    Raises:
        DataError: the file is missing or not of that form.
    """
    scores: dict[tuple[str, str, int, int, Objective], list[float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                shape, objective = (int(row["ways"]), int(row["shots"])), OBJECTIVES[row["metric"]]
                key = row["model"], row["normalization"], *shape, objective
                scores.setdefault(key, []).append(float(row["score"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as exc:
        raise DataError(
            f"{path} is no list of episodes",
            why=f"{type(exc).__name__}: {exc}",
            fix="remove its folder: the study then evaluates that run again",
        ) from exc
    return [
        Cell(model, normalization, ways, shots, np.array(values)[:, None], objective)
        for (model, normalization, ways, shots, objective), values in scores.items()
    ]


def episodes_csv(cells: Sequence[Cell]) -> str:
    """The score of every single episode, for whoever compares models in pairs."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EPISODES_HEADER)
    for cell in cells:
        of_cell = cell.contender, cell.normalization, cell.ways, cell.shots, cell.objective.key
        writer.writerows((*of_cell, i, f"{a:.6g}") for i, a in enumerate(cell.final))
    return text.getvalue()
