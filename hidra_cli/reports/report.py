"""The report: runs are read, measured where that is wanted, and written as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hidra_cli.engine.devices import resolve_device
from hidra_cli.errors import UsageError
from hidra_cli.reports.collect import Report, collect
from hidra_cli.reports.page import render
from hidra_cli.reports.run_facts import read_run
from hidra_cli.settings.numbers import format_numbers
from hidra_cli.system.files import check_file, write_atomically

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

MOST_RUNS = 12
DEFAULT_EPISODES = 100


@dataclass(frozen=True)
class ReportRequest:
    """A page that someone asks for.

    Attributes:
        runs: run directories; several are compared.
        ways: numbers of ways to measure at now; None: a few.
        episodes: per number of ways, to measure on now; 0: measure nothing; None: 100 where runs
            are compared, ways are given or the only run has no test results, else 0.
        device: "auto" or a device of torch.
        cache_dir: where prepared images are kept; None: the usual place.
    """

    runs: Sequence[Path]
    ways: tuple[int, ...] | None = None
    episodes: int | None = None
    device: str = "auto"
    cache_dir: Path | None = None


def write_report(request: ReportRequest, out: Path | None, console: Console) -> Path:
    """Write the page.

    Args:
        out: its file, or a folder; None: in the first run.

    Returns:
        The path of the file.

    Raises:
        UsageError: too many runs, a single episode, or fewer than 2 ways.
        DataError: a path is no run directory.
        RunError: the page cannot be written.
    """
    _check(request)
    path = _place(out, request.runs)
    device = resolve_device(request.device)
    runs = [read_run(path) for path in request.runs]
    episodes = request.episodes
    if episodes is None:
        needed = len(runs) > 1 or runs[0].tested is None or request.ways is not None
        episodes = DEFAULT_EPISODES if needed else 0
    report = collect(runs, request.ways, episodes, device, request.cache_dir, console)
    page = render(report)
    write_atomically(path, page)
    _show(report, path, len(page), console)
    return path


def _check(request: ReportRequest) -> None:
    if len(request.runs) > MOST_RUNS:
        raise UsageError(
            f"{len(request.runs)} runs are too many for a page",
            why=f"it compares up to {MOST_RUNS}",
            fix="name fewer",
        )
    if request.episodes == 1:
        raise UsageError(
            "--episodes 1 cannot be used",
            why="one episode has no interval",
            fix="--episodes 2 or more, or 0",
        )
    if request.ways is not None and min(request.ways) < 2:
        raise UsageError(
            f"--ways {format_numbers(request.ways)} cannot be used",
            why="a task needs at least 2 ways",
            fix="--ways 2,5",
        )


def _place(out: Path | None, runs: Sequence[Path]) -> Path:
    """Where the page goes. One that compares several runs does not replace the report of one."""
    name = "report.html" if len(runs) == 1 else "comparison.html"
    if out is None:
        return runs[0] / name
    path = out / name if out.is_dir() else out
    check_file(path, "--out", ".html", ".htm")
    return path


def _show(report: Report, path: Path, size: int, console: Console) -> None:
    for note in report.all_notes:
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
                for name, facts in zip(report.names, report.runs, strict=True)
            ],
            "measured": [row.to_json() for row in report.measured.rows] if report.measured else [],
            "comparisons": [row.to_json() for row in report.differences],
            "notes": report.all_notes,
        }
    )
