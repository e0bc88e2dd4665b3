"""What a study found: tables, differences, learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hidra_cli.jobs.study.plan import Study, Training
from hidra_cli.reports.figures import Curve
from hidra_cli.reports.run_facts import read_metrics
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.scores import Cell, compare, interval
from hidra_cli.settings.numbers import format_numbers
from hidra_cli.tasks.objective import OBJECTIVES, Objective


def pooled(study: Study, tested: Iterable[tuple[Training, Sequence[Cell]]]) -> list[Cell]:
    """One cell per model, ways and shots: the episodes of all its seeds, one after the other.

    Args:
        study: the study.
        tested: all its trainings, each with its cells.
    """
    parts: dict[tuple[str, int, int], list[Cell]] = {}
    for training, cells in tested:
        for cell in cells:
            parts.setdefault((training.model, cell.ways, cell.shots), []).append(cell)
    return [
        Cell(
            study.models[model].label or model,
            seeds[0].normalization,
            ways,
            shots,
            np.concatenate([cell.scores for cell in seeds]),
            seeds[0].objective,
        )
        for (model, ways, shots), seeds in parts.items()
    ]


def learning(
    study: Study, runs: Iterable[tuple[Training, RunDir]], objective: Objective
) -> list[Curve]:
    """The validations of each training; none of a run that is elsewhere."""
    curves = []
    for training, run in runs:
        if points := read_metrics(run, [], objective).validation:
            ways = format_numbers(training.resolved.settings.tasks.ways)
            label = study.models[training.model].label or training.model
            scores = tuple((step, mean) for step, mean, _ in points)
            curves.append(Curve(label, ways, training.seed, scores))
    return curves


def summary(study: Study, cells: Sequence[Cell]) -> dict[str, Any]:
    """What `study.json` holds of the results: per seed and together."""
    rows = []
    for cell in cells:
        mean, half = interval(cell.final)
        each = [float(part.mean()) for part in np.split(cell.final, len(study.seeds))]
        rows.append(
            {
                "model": cell.contender,
                "normalization": cell.normalization,
                "ways": cell.ways,
                "shots": cell.shots,
                cell.objective.key: mean,
                "interval": half,
                "per_seed": each,
                "seed_deviation": float(np.std(each, ddof=1)) if len(each) > 1 else None,
            }
        )
    differences = [row.to_json() for row in compare(cells, _references(study))]
    return {"metric": cells[0].objective.key, "results": rows, "differences": differences}


def _references(study: Study) -> dict[str, str]:
    """The label of each model that is compared → that of the model it is compared with."""
    first = next(iter(study.models))
    minus = {name: model.minus or first for name, model in study.models.items()}
    references = {first} | {model.minus for model in study.models.values()}
    label = {name: model.label or name for name, model in study.models.items()}
    return {label[name]: label[minus[name]] for name in minus if name not in references}


def markdown(study: Study, found: Mapping[str, Any]) -> str:
    """The table of a study: a row per model, a column per number of ways."""
    evaluation, objective = study.evaluation, OBJECTIVES[found["metric"]]
    lines = [
        f"Test {objective.heading}, mean ± 95 % interval over {evaluation.episodes} episodes of "
        f"each seed ({', '.join(map(str, study.seeds))}), {evaluation.queries} queries "
        f"{objective.per}; below it paired differences, on the same tasks.",
    ]
    for shots in evaluation.shots:
        lines += ["", f"| {shots}-shot | {' | '.join(f'{n} ways' for n in evaluation.ways)} |"]
        lines.append("|---|" + "---:|" * len(evaluation.ways))
        here = [row for row in found["results"] if row["shots"] == shots]
        compared = [row for row in found["differences"] if row["shots"] == shots]
        for label in dict.fromkeys(row["model"] for row in here):
            own = [row for row in here if row["model"] == label]
            lines.append(_line(label, own, objective.key, objective, study))
            if own := [row for row in compared if row["model"] == label]:
                minus = f"minus {own[0]['minus']}"
                lines.append(_line(minus, own, "difference", objective, study))
    return "\n".join(lines) + "\n"


def _line(
    label: str, rows: Sequence[Mapping[str, Any]], what: str, objective: Objective, study: Study
) -> str:
    """One row of the table: what a model has at each number of ways."""
    texts = []
    by_ways = {row["ways"]: row for row in rows}
    for n in study.evaluation.ways:
        row = by_ways.get(n)
        sign = "+" if row and what == "difference" and row[what] > 0 else ""
        texts.append(sign + objective.interval(row[what], row["interval"]) if row else "–")
    return f"| {label} | {' | '.join(texts)} |"
