"""`hidra study`: several models, several seeds → one table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import flags

if TYPE_CHECKING:
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
    from hidra_cli.jobs.study.plan import load_study
    from hidra_cli.jobs.study.runner import run_study
    from hidra_cli.reports.study import report_study, show_plan
    from hidra_cli.system.files import check_folder

    plan = load_study(file)
    if dry_run:
        show_plan(plan, console)
        return
    place = out or Path("studies") / file.stem
    check_folder(place, "--out")
    runs = run_study(plan, place, jobs=jobs, cache_dir=cache_dir, console=console)
    report_study(plan, runs, place, console)
