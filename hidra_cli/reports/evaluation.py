"""Tables, figure and files of an evaluation."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hidra_cli.runs.locate import results_home
from hidra_cli.runs.scores import episodes_csv
from hidra_cli.system.files import result_folder, write_atomically, write_json

if TYPE_CHECKING:
    from hidra_cli.jobs.evaluate import Evaluation
    from hidra_cli.runs.records import EvaluationResult, ScoreRecord
    from hidra_cli.system.console import Console
    from hidra_cli.tasks.objective import Objective


def report_evaluation(
    evaluation: Evaluation, run: Path, out: Path | None, console: Console
) -> None:
    """Write result.json, episodes.csv and the figure, and print the tables.

    Args:
        run: the first model, as it was named.
        out: the folder of the files; None: a new one in the run.
    """
    result, figure = evaluation.result, f"{evaluation.cells[0].objective.key}.png"
    folder = _write(evaluation, figure, run, out)
    _show_scores(result, evaluation.cells[0].objective, console)
    if result.comparisons:
        _show_differences(result, evaluation.cells[0].objective, console)
    console.print(f"written: {folder / 'result.json'}, {folder / figure}")
    console.result(result.to_json() | {"folder": str(folder)})


def _write(evaluation: Evaluation, figure: str, run: Path, out: Path | None) -> Path:
    from hidra_cli.reports.figures import scores_over_ways

    cells, result = evaluation.cells, evaluation.result
    home = results_home(run if run.is_dir() else Path(result.models[0].checkpoint))
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{result.dataset}-{result.split}"
    folder = result_folder(out or home / "evaluations" / name, own=out is None)
    title = f"{_where(result)}, {result.results[0].episodes} episodes"
    write_atomically(folder / figure, scores_over_ways(cells, title))
    write_atomically(folder / "episodes.csv", episodes_csv(cells).encode())
    write_json(folder / "result.json", result.to_json())
    return folder


def _where(result: EvaluationResult) -> str:
    groups = ", classes of one group" if result.within_groups else ""
    return f"{result.dataset}, {result.split} split{groups}"


def _show_scores(result: EvaluationResult, objective: Objective, console: Console) -> None:
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


def _show_differences(result: EvaluationResult, objective: Objective, console: Console) -> None:
    unit = "percentage points" if objective.unit else "less is better"
    console.table(
        f"Paired differences of {objective.metric} on the same episodes ({unit})",
        ["model", "minus", "ways", "shots", "difference"],
        [
            [
                row.model,
                row.minus,
                str(row.ways),
                str(row.shots),
                objective.interval(row.difference, row.interval),
            ]
            for row in result.comparisons
        ],
        left=2,
    )


def _titled(objective: Objective) -> str:
    metric = objective.metric.capitalize()
    return f"{metric} ({objective.unit})" if objective.unit else f"{metric} per output"


def _earlier_steps(row: ScoreRecord, most: int, objective: Objective) -> list[str]:
    earlier = [objective.shown(step.score) for step in (row.per_step or ())[:-1]]
    return earlier + ["–"] * (most - 1 - len(earlier))
