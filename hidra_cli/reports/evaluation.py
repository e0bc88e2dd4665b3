"""Tables, picture and files of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hidra_cli.runs.scores import episodes_csv
from hidra_cli.system.files import made

if TYPE_CHECKING:
    from hidra_cli.runs.model import TrainedModel
    from hidra_cli.runs.records import EvaluationResult, ScoreRecord
    from hidra_cli.runs.scores import Cell
    from hidra_cli.system.console import Console
    from hidra_cli.tasks.objective import Objective


def _write(
    out: Path | None, chosen: Path, model: TrainedModel, cells: list[Cell], result: EvaluationResult
) -> tuple[Path, str]:
    """The folder of the results, and the name of the picture in it."""
    from datetime import datetime

    from hidra_cli.reports.figures import scores_over_ways
    from hidra_cli.runs.locate import results_home
    from hidra_cli.system.files import write_atomically, write_json

    home = results_home(chosen if chosen.is_dir() else model.path)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{result.dataset}-{result.split}"
    folder = made(out or home / "evaluations" / name, own=out is None)
    title = f"{_where(result)}, {result.results[0].episodes} episodes"
    picture = f"{cells[0].objective.key}.png"
    write_atomically(folder / picture, scores_over_ways(cells, title))
    write_atomically(folder / "episodes.csv", episodes_csv(cells).encode())
    write_json(folder / "result.json", result.to_json())
    return folder, picture


def _where(result: EvaluationResult) -> str:
    groups = ", classes of one group" if result.within_groups else ""
    return f"{result.dataset}, {result.split} split{groups}"


def _show(cells: list[Cell], result: EvaluationResult, console: Console) -> None:
    objective = cells[0].objective
    rows = result.results
    most_steps = max(len(row.per_step or [0]) for row in rows)
    console.table(
        f"{_titled(objective)} on {_where(result)}, "
        f"{rows[0].episodes} episodes, {result.queries} queries {objective.per}",
        [
            "model",
            "normalization",
            "ways",
            "shots",
            *(f"after {s}" for s in range(most_steps - 1)),
            objective.metric,
        ],
        [
            [
                row.model,
                row.normalization,
                str(row.ways),
                str(row.shots),
                *_earlier_steps(row, most_steps, objective),
                objective.interval(row.score, row.interval),
            ]
            for row in rows
        ],
        left=2,
    )
    if result.comparisons:
        console.table(
            f"Paired differences of {objective.metric} on the same episodes"
            + (" (percentage points)" if objective.unit else " (less is better)"),
            ["model", "minus", "ways", "shots", "difference"],
            [
                [
                    c.model,
                    c.minus,
                    str(c.ways),
                    str(c.shots),
                    objective.interval(c.difference, c.interval),
                ]
                for c in result.comparisons
            ],
            left=2,
        )


def _titled(objective: Objective) -> str:
    metric = objective.metric.capitalize()
    return f"{metric} ({objective.unit})" if objective.unit else f"{metric} per output"


def _earlier_steps(row: ScoreRecord, most: int, objective: Objective) -> list[str]:
    earlier = [objective.shown(step.score) for step in (row.per_step or ())[:-1]]
    return earlier + ["–"] * (most - 1 - len(earlier))
