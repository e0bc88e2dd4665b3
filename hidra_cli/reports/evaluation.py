"""Tables, picture and files of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hidra_cli.runs.scores import _episodes
from hidra_cli.system.files import made

if TYPE_CHECKING:
    from hidra_cli.runs.model import TrainedModel
    from hidra_cli.runs.scores import Cell
    from hidra_cli.system.console import Console
    from hidra_cli.tasks.objective import Objective


def _write(
    out: Path | None, chosen: Path, model: TrainedModel, cells: list[Cell], result: dict[str, Any]
) -> tuple[Path, str]:
    """The folder of the results, and the name of the picture in it."""
    from datetime import datetime

    from hidra_cli.reports.figures import scores_over_ways
    from hidra_cli.runs.locate import results_home
    from hidra_cli.system.files import write_atomically, write_json

    home = results_home(chosen if chosen.is_dir() else model.path)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{result['dataset']}-{result['split']}"
    folder = made(out or home / "evaluations" / name, own=out is None)
    title = f"{_where(result)}, {cells[0].to_json()['episodes']} episodes"
    picture = f"{cells[0].objective.key}.png"
    write_atomically(folder / picture, scores_over_ways(cells, title))
    write_atomically(folder / "episodes.csv", _episodes(cells).encode())
    write_json(folder / "result.json", result)
    return folder, picture


def _where(result: dict[str, Any]) -> str:
    groups = ", classes of one group" if result["within_groups"] else ""
    return f"{result['dataset']}, {result['split']} split{groups}"


def _show(cells: list[Cell], result: dict[str, Any], console: Console) -> None:
    objective = cells[0].objective
    rows = [cell.to_json() for cell in cells]
    most_steps = max(len(row.get("per_step", [0])) for row in rows)
    console.table(
        f"{_titled(objective)} on {_where(result)}, "
        f"{rows[0]['episodes']} episodes, {result['queries']} queries {objective.per}",
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
                row["model"],
                row["normalization"],
                str(row["ways"]),
                str(row["shots"]),
                *_earlier_steps(row, most_steps, objective),
                objective.interval(row[objective.key], row["interval"]),
            ]
            for row in rows
        ],
        left=2,
    )
    if result["comparisons"]:
        console.table(
            f"Paired differences of {objective.metric} on the same episodes"
            + (" (percentage points)" if objective.unit else " (less is better)"),
            ["model", "minus", "ways", "shots", "difference"],
            [
                [
                    c["model"],
                    c["minus"],
                    str(c["ways"]),
                    str(c["shots"]),
                    objective.interval(c["difference"], c["interval"]),
                ]
                for c in result["comparisons"]
            ],
            left=2,
        )


def _titled(objective: Objective) -> str:
    metric = objective.metric.capitalize()
    return f"{metric} ({objective.unit})" if objective.unit else f"{metric} per output"


def _earlier_steps(row: dict[str, Any], most: int, objective: Objective) -> list[str]:
    earlier = [objective.shown(step[objective.key]) for step in row.get("per_step", [])[:-1]]
    return earlier + ["–"] * (most - 1 - len(earlier))
