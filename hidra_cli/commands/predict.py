"""`hidra predict`: label pictures with an adapted classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import flags, picture_flags
from hidra_cli.reports.predictions import Format

if TYPE_CHECKING:
    from hidra_cli.jobs.predict import Unknown
    from hidra_cli.system.console import Console

Classifier = Annotated[Path, typer.Argument(help="A classifier of `hidra adapt`.")]
Pictures = Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")]
TopK = Annotated[int, typer.Option("--top-k", help="Labels to show per picture.", min=1)]
Form = Annotated[Format, typer.Option("--format", help="Of what is printed: table, csv or jsonl.")]
Out = Annotated[Path | None, typer.Option(help="Write it into this file instead: .csv or .jsonl.")]
Gallery = Annotated[
    Path | None, typer.Option(help="Also draw the first pictures and their labels: a PNG.")
]
Batch = Annotated[int, typer.Option(help="Pictures per forward pass.", min=1)]
NoneBelow = Annotated[
    float | None,
    typer.Option(
        help=flags.with_default(
            "Say 'none of these' where no class has this probability; of sigmoid classifiers.",
            "0.5",
        ),
        min=0,
        max=1,
        show_default=False,
    ),
]
UnknownBelow = Annotated[
    str,
    typer.Option(
        "--unknown",
        metavar="off|auto|VALUE",
        help="Say 'unknown' of a picture that is less likely of one of the classes: 0 to 1. auto "
        "is 0.25 with photos-any, and off with other models.",
    ),
]


@flags.with_console
def predict(
    console: Console,
    classifier: Classifier,
    pictures: Pictures,
    top_k: TopK = 1,
    form: Form = "table",
    out: Out = None,
    gallery: Gallery = None,
    batch: Batch = 64,
    none_below: NoneBelow = None,
    unknown: UnknownBelow = "auto",
    max_pixels: picture_flags.MaxPixels = None,
    skip_broken: picture_flags.SkipBroken = False,
    device: flags.Device = None,
) -> None:
    """Label pictures: class and probability, for one picture or thousands.

    A picture that cannot be read is reported and left out; the exit code is then 3, or 0 with
    --skip-broken. If the model was trained with --loss sigmoid, a picture may be of none of the
    classes.

    Examples:

      hidra predict classifier.safetensors new-pictures --top-k 3

      hidra predict classifier.safetensors a.jpg b.png --format csv
    """
    from hidra_cli.api.decoding import MOST_PIXELS
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.jobs.classifier import load_classifier
    from hidra_cli.jobs.predict import predict_pictures
    from hidra_cli.reports.predictions import (
        format_of,
        show_notes,
        write_gallery,
        write_predictions,
    )
    from hidra_cli.system.files import check_file

    if out is not None:
        check_file(out, "--out")
        form = format_of(out, form)
    if gallery is not None:
        check_file(gallery, "--gallery", ".png")
    least_known = _unknown(unknown)
    loaded = load_classifier(classifier, resolve_device(device or "auto"))
    result = predict_pictures(
        loaded,
        pictures,
        console,
        max_pixels=max_pixels or MOST_PIXELS,
        top_k=top_k,
        batch=batch,
        none_below=none_below,
        unknown=least_known,
    )
    show_notes(result, console)
    write_predictions(result.rows, form, out, console)
    if gallery is not None:
        write_gallery(result.rows, gallery, loaded.preprocessing, console)
    console.result(result.to_json())
    if not skip_broken:
        result.check_complete()


def _unknown(text: str) -> Unknown:
    from hidra_cli.errors import UsageError

    if text == "off":
        return "off"
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(
            f"--unknown {text} is none of off, auto and a number from 0 to 1",
            why="it says how likely of one of the classes a picture has to be",
            fix="--unknown auto",
        )
    return value
