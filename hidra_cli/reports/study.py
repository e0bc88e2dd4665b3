"""The results of a study: tables, differences, learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hidra_cli.jobs.study.plan import Study, Training, trainings
from hidra_cli.jobs.study.runner import StudyRun
from hidra_cli.reports.figures import (
    Curve,
    differences_over_ways,
    learning_curves,
    scores_over_ways,
)
from hidra_cli.reports.run_facts import read_metrics
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.records import EvaluationResult, load_record
from hidra_cli.runs.scores import Cell, compare, interval, read_episodes
from hidra_cli.settings.numbers import format_numbers
from hidra_cli.system.files import write_atomically, write_json
from hidra_cli.tasks.objective import OBJECTIVES, Objective

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


def show_plan(study: Study, console: Console) -> None:
    """Print the runs of a study."""
    runs = list(trainings(study))
    console.table(
        study.title,
        ["run", "iterations", "tested at ways"],
        [[run.name, str(run.iterations), ", ".join(map(str, run.ways))] for run in runs],
    )
    console.result({"title": study.title, "runs": [run.name for run in runs]})


def report_study(study: Study, runs: Sequence[StudyRun], place: Path, console: Console) -> None:
    """Write table.md, study.json and the figures of a study, and print its table."""
    cells = pooled(study, ((r.training, read_episodes(r.tested / "episodes.csv")) for r in runs))
    scores = summary(study, cells)
    table = markdown(study, scores)
    objective = cells[0].objective
    curves = learning(study, ((r.training, r.run) for r in runs), objective)
    first = load_record(runs[0].tested / "result.json", EvaluationResult)
    results = {run.name: run.result for run in runs}
    content: dict[str, Any] = {
        "format_version": 1,
        "study": study.model_dump(mode="json", exclude_none=True),
        **scores,
        "learning": [asdict(curve) for curve in curves],
        "tasks_per_second": {n: r.tasks_per_second if r else None for n, r in results.items()},
        "dataset_hash": first.dataset_hash,
        "environment": first.environment.to_json(),
    }
    write_atomically(place / "table.md", f"# {study.title}\n\n{table}".encode())
    figures = {"scores.png": scores_over_ways(cells, study.title)}
    if differences := scores["differences"]:
        figures["differences.png"] = differences_over_ways(differences, study.title, objective)
    if curves:
        figures["learning.png"] = learning_curves(curves, study.title, objective)
    for name, figure in figures.items():
        write_atomically(place / name, figure)
    write_json(place / "study.json", content)
    for line in (study.title, "", *table.split("\n")):
        console.print(line)
    console.print(f"written: {place / 'table.md'}, {place / 'study.json'}, {', '.join(figures)}")
    console.result(content | {"folder": str(place)})


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
    """The results as `study.json` holds them: per seed and together."""
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


def markdown(study: Study, scores: Mapping[str, Any]) -> str:
    """The table of a study: a row per model, a column per number of ways."""
    evaluation, objective = study.evaluation, OBJECTIVES[scores["metric"]]
    lines = [
        f"Test {objective.heading}, mean ± 95 % interval over {evaluation.episodes} episodes of "
        f"each seed ({', '.join(map(str, study.seeds))}), {evaluation.queries} queries "
        f"{objective.per}; below it paired differences, on the same tasks.",
    ]
    for shots in evaluation.shots:
        lines += ["", f"| {shots}-shot | {' | '.join(f'{n} ways' for n in evaluation.ways)} |"]
        lines.append("|---|" + "---:|" * len(evaluation.ways))
        here = [row for row in scores["results"] if row["shots"] == shots]
        compared = [row for row in scores["differences"] if row["shots"] == shots]
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
