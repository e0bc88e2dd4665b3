"""`hidra export`: an adapted classifier as an ONNX file or a torch.export program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hidra_cli.commands import flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

Format = Literal["onnx", "pt2"]


@flags.with_console
def export(
    console: Console,
    classifier: Annotated[Path, typer.Argument(help="A classifier of `hidra adapt`.")],
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help=flags.with_default("onnx, or pt2 (torch.export).", "as --out is called, or onnx"),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=flags.with_default("The file.", "beside the classifier, called alike")),
    ] = None,
) -> None:
    """Write a classifier as a program that runs without hidra: images in, probabilities out.

    The program is run beside the classifier before it is written, and must give the same.

    Examples:

      hidra export classifier.safetensors

      hidra export classifier.safetensors --format pt2 --out leaves.pt2
    """
    from hidra_cli.jobs.export import export_classifier
    from hidra_cli.reports.exported import show_exported

    show_exported(export_classifier(classifier, out, form), console)
