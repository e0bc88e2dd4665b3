"""`hidra report`: one self-contained page about a run, or about several compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.reports.collect import Report
    from hidra_cli.system.console import Console

MOST_RUNS = 12
USUAL_EPISODES = 100


@flags.with_console
def report(
    console: Console,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help=flags.with_default("Run directories.", "the latest run"),
            show_default=False,
            autocompletion=completion.run_paths,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=flags.with_default(
                "File of the page.", "RUN/report.html; of several FIRST/comparison.html"
            )
        ),
    ] = None,
    ways: Annotated[
        str | None,
        typer.Option(
            help=flags.with_default(
                "Measure now at these: 5, 2-20 or 2,5.", "2,5,10; of several runs 5"
            )
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            help=flags.with_default(
                "Episodes per number of ways to measure now; 0: none.",
                "100 where several runs are compared or a run has no test results",
            ),
            min=0,
            show_default=False,
        ),
    ] = None,
    device: flags.Device = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Write a page with curves, test accuracy and example tasks: one HTML file, works offline.

    Examples:

      hidra report

      hidra report runs/hidra runs/maml --ways 5 --episodes 600 --out compared.html
    """
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.reports.collect import collect
    from hidra_cli.reports.page import render
    from hidra_cli.reports.run_facts import read_run
    from hidra_cli.runs.locate import latest_run, runs_dir_of
    from hidra_cli.system.files import write_atomically

    numbers = _checked(runs or [], ways, episodes)
    where = resolve_device(device or "auto")
    chosen = runs or [latest_run(runs_dir_of(runs_dir))]
    found = [read_run(path) for path in chosen]
    if episodes is None:
        needed = len(found) > 1 or found[0].tested is None or ways is not None
        episodes = USUAL_EPISODES if needed else 0

    made = collect(found, numbers, episodes, where, cache_dir, console)
    page = render(made)
    path = _place(out, chosen)
    write_atomically(path, page)
    _show(made, path, len(page), console)


def _checked(
    runs: Sequence[Path], ways: str | None, episodes: int | None
) -> tuple[int, ...] | None:
    """The numbers of ways, where the flags can be used."""
    from hidra_cli.errors import UsageError
    from hidra_cli.settings.numbers import parse_numbers

    if len(runs) > MOST_RUNS:
        why = f"it compares up to {MOST_RUNS}"
        raise UsageError(f"{len(runs)} runs are too many for a page", why=why, fix="name fewer")
    if episodes == 1:
        why = "one episode has no interval"
        raise UsageError("--episodes 1 cannot be used", why=why, fix="--episodes 2 or more, or 0")
    try:
        numbers = None if ways is None else parse_numbers(ways)
        if numbers is not None and min(numbers) < 2:
            raise ValueError("a task needs at least 2 ways")
    except ValueError as exc:
        raise UsageError(f"--ways {ways} cannot be used", why=str(exc), fix="--ways 2,5") from exc
    return numbers


def _place(out: Path | None, chosen: Sequence[Path]) -> Path:
    """Where the page goes. One that compares several runs does not replace the report of one."""
    from hidra_cli.system.files import writing_to

    usual = "report.html" if len(chosen) == 1 else "comparison.html"
    path = out or chosen[0] / usual
    with writing_to(path):
        if path.is_dir():
            return path / usual
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _show(made: Report, path: Path, size: int, console: Console) -> None:
    runs = list(zip(made.names, made.runs, strict=True))
    for note in made.all_notes:
        console.note(note)
    console.print(f"report: {path} ({size / 1000:.0f} kB)")
    console.result(
        {
            "report": str(path),
            "bytes": size,
            "runs": [
                {
                    "name": name,
                    "path": str(facts.run.path),
                    "finished": facts.finished,
                    "iterations": facts.metrics.last,
                }
                for name, facts in runs
            ],
            "measured": [row.to_json() for row in made.measured.rows] if made.measured else [],
            "comparisons": [row.to_json() for row in made.differences],
            "notes": made.all_notes,
        }
    )
