"""`hidra report`: one self-contained page about a run, or about several compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        help=flags.with_default("Run directories.", "the latest run"),
        show_default=False,
        autocompletion=completion.run_paths,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help=flags.with_default(
            "File of the page.", "RUN/report.html; of several FIRST/comparison.html"
        )
    ),
]
Ways = Annotated[
    str | None,
    typer.Option(
        help=flags.with_default(
            "Measure now at these: 5, 2-20 or 2,5.", "2,5,10; of several runs 5"
        )
    ),
]
Episodes = Annotated[
    int | None,
    typer.Option(
        help=flags.with_default(
            "Episodes per number of ways to measure now; 0: none.",
            "100 where several runs are compared or a run has no test results",
        ),
        min=0,
        show_default=False,
    ),
]


@flags.with_console
def report(
    console: Console,
    runs: Runs = None,
    out: Out = None,
    ways: Ways = None,
    episodes: Episodes = None,
    device: flags.Device = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Write a page with curves, test accuracy and example tasks: one HTML file, works offline.

    Examples:

      hidra report

      hidra report runs/hidra runs/maml --ways 5 --episodes 600 --out compared.html
    """
    from hidra_cli.reports.report import ReportRequest, write_report

    request = ReportRequest(
        runs=flags.models_or_latest(runs, runs_dir),
        ways=flags.numbers("--ways", ways),
        episodes=episodes,
        device=device or "auto",
        cache_dir=cache_dir,
    )
    write_report(request, out, console)
