"""`hidra study`: several models, several seeds → one table and picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hidra_cli.commands import flags

if TYPE_CHECKING:
    from hidra_cli.jobs.study.plan import Study
    from hidra_cli.jobs.study.runner import _Worker
    from hidra_cli.system.console import Console


@flags.with_console
def study(
    console: Console,
    file: Annotated[Path, typer.Argument(help="A TOML file that describes the study.")],
    jobs: Annotated[
        int, typer.Option(help="Runs at a time; they share the cores.", min=1, max=1024)
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and list its runs.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help=flags.with_default("Folder of its runs and results.", "studies/NAME")),
    ] = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Train and test all models of a study; run it again, and it goes on where it was.

    Writes table.md, study.json, scores.png, differences.png and learning.png.

    Examples:

      hidra study benchmarks/studies/losses.toml --dry-run

      hidra study benchmarks/studies/losses.toml --jobs 2
    """
    from hidra_cli.jobs.study.plan import load_study, trainings
    from hidra_cli.jobs.study.runner import _work, _Worker
    from hidra_cli.system.files import made

    chosen = load_study(file)
    runs = list(trainings(chosen))
    place = out or Path("studies") / file.stem
    if dry_run:
        console.table(
            chosen.title,
            ["run", "iterations", "tested at ways"],
            [[run.name, str(run.iterations), ", ".join(map(str, run.ways))] for run in runs],
        )
        console.result({"title": chosen.title, "runs": [run.name for run in runs]})
        return
    workers = [_Worker(chosen, run, place, cache_dir) for run in runs]
    for worker in workers:
        worker.check_unchanged()
    for part in ("runs", "configs", "logs", "evaluations"):
        made(place / part)
    _work(workers, jobs, console)
    _report(chosen, workers, place, console)


def _report(chosen: Study, workers: list[_Worker], place: Path, console: Console) -> None:
    from hidra_cli.reports.figures import differences_over_ways, learning_curves, scores_over_ways
    from hidra_cli.reports.study import learning, markdown, pooled, summary
    from hidra_cli.runs.directory import RunDir
    from hidra_cli.runs.records import EvaluationResult, RunResult, load_record, record_or_none
    from hidra_cli.runs.scores import read_episodes
    from hidra_cli.system.files import write_atomically, write_json

    cells = pooled(
        chosen, ((w.training, read_episodes(w.tested / "episodes.csv")) for w in workers)
    )
    found = summary(chosen, cells)
    table = markdown(chosen, found)
    objective = cells[0].objective
    curves = learning(chosen, ((w.training, RunDir(w.run)) for w in workers), objective)
    first = load_record(workers[0].tested / "result.json", EvaluationResult)
    trained = {w.name: record_or_none(w.run / "result.json", RunResult) for w in workers}
    result: dict[str, Any] = {
        "format_version": 1,
        "study": chosen.model_dump(mode="json", exclude_none=True),
        **found,
        "learning": [asdict(curve) for curve in curves],
        "tasks_per_second": {
            name: None if result is None else result.tasks_per_second
            for name, result in trained.items()
        },
        "dataset_hash": first.dataset_hash,
        "environment": first.environment.to_json(),
    }
    write_atomically(place / "table.md", f"# {chosen.title}\n\n{table}".encode())
    pictures = {"scores.png": scores_over_ways(cells, chosen.title)}
    if minus := found["differences"]:
        pictures["differences.png"] = differences_over_ways(minus, chosen.title, objective)
    if curves:
        pictures["learning.png"] = learning_curves(curves, chosen.title, objective)
    for name, picture in pictures.items():
        write_atomically(place / name, picture)
    write_json(place / "study.json", result)
    console.print(f"{chosen.title}\n\n{table}")
    console.print(f"written: {place / 'table.md'}, {place / 'study.json'}, {', '.join(pictures)}")
    console.result(result | {"folder": str(place)})
