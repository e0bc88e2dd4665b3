"""An exported classifier, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hidra_cli.jobs.export import ExportedClassifier
    from hidra_cli.system.console import Console


def show_exported(exported: ExportedClassifier, console: Console) -> None:
    """Print where the program is, and how far it is from the classifier."""
    if exported.classifier.normalization == "transductive":
        console.warn(
            "its predictions depend on which images are predicted together; "
            "one alone is normalized by itself, so give it several at once"
        )
    if exported.precision != "float32":
        console.note(f"it predicts in {exported.precision}; the program does in float32")
    program = exported.program
    console.print(f"exported: {exported.path}")
    console.print(
        f"equal to the classifier within {program.difference:.1e} on {sum(program.batches)} "
        f"images, {', '.join(map(str, program.batches))} at a time"
    )
    console.result(exported.to_json())
