"""`hidra average`: one model from several, by the mean of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


@flags.with_console
def average(
    console: Console,
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more run directories or checkpoints.", autocompletion=completion.run_paths
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file.")] = Path("average.safetensors"),
) -> None:
    """Average the weights of models that were trained on from one start, into one checkpoint.

    Often better than each of them (model soups, Wortsman et al. 2022), at the cost of none. Models
    with unrelated starts have no useful mean: compare before you use it.

    Examples:

      hidra meta-train --start-from runs/first --seed 1 --name second

      hidra average runs/first runs/second --out both.safetensors

      hidra evaluate both.safetensors runs/second --split val
    """
    from hidra_cli.jobs import average as job

    averaged = job.average(runs, out)
    console.print(f"averaged: {out}")
    console.note(f"next: hidra evaluate {out} {' '.join(map(str, runs))} --split val")
    console.result(averaged.to_json())
