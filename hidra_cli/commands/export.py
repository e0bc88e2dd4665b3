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
    from hidra_cli.jobs.classifier import CLASSIFIER_FORMAT, restore_classifier
    from hidra_cli.jobs.export import export, in_float32, require_onnx
    from hidra_cli.runs.checkpoint import load_checkpoint
    from hidra_cli.system.files import check_other_file, write_atomically

    form = form or ("pt2" if out is not None and out.suffix == ".pt2" else "onnx")
    target = out or classifier.with_suffix(f".{form}")
    check_other_file(target, "the classifier itself", classifier)
    if form == "onnx":
        require_onnx()
    checkpoint = load_checkpoint(classifier, CLASSIFIER_FORMAT)
    chosen = restore_classifier(checkpoint)
    if chosen.normalization == "transductive":
        console.warn(
            "its predictions depend on which images are predicted together; "
            "one alone is normalized by itself, so give it several at once"
        )
    if chosen.learner.precision != "float32":
        console.note(f"it predicts in {chosen.learner.precision}; the program does in float32")
        chosen = in_float32(chosen)
    exported = export(chosen, checkpoint, form)
    write_atomically(target, exported.content)
    images, batches = sum(exported.batches), ", ".join(map(str, exported.batches))
    console.print(f"exported: {target}")
    console.print(
        f"equal to the classifier within {exported.difference:.1e} "
        f"on {images} images, {batches} at a time"
    )
    console.result(
        {
            "classifier": str(classifier),
            "exported": str(target),
            "format": form,
            "bytes": len(exported.content),
            "classes": list(chosen.classes),
            "image_shape": list(chosen.preprocessing.image_shape),
            "invert": chosen.preprocessing.invert,
            "normalization": chosen.normalization,
            "largest_difference": exported.difference,
            "images_compared": images,
            "batch_sizes": list(exported.batches),
        }
    )
