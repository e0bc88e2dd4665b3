"""A prepared dataset as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hidra_cli.api.data import SPLITS

if TYPE_CHECKING:
    from hidra_cli.images.prepared import ClassTable
    from hidra_cli.jobs.prepare import PreparedDataset
    from hidra_cli.system.console import Console


def show_prepared(prepared: PreparedDataset, console: Console) -> None:
    """Print the sizes of the splits, or that nothing was to be done."""
    images = prepared.images
    if prepared.prepared_now:
        console.table(
            f"{images.dataset}: prepared in {prepared.seconds:.1f} s → {images.path}",
            ["split", "classes", "images", "smallest class", "largest class"],
            [[split, *_sizes(images.table(split))] for split in SPLITS],
        )
    else:
        text = f"{images.dataset}: already prepared ({images.path}); --force prepares it again"
        console.print(text)
        before, now = images.attributes["source"], prepared.source
        if now is not None and before != str(now):
            console.warn(f"it was prepared from {before or 'a download'}, not from {now}")
    if images.skipped:
        console.warn(f"{images.skipped} images that cannot be read are left out")
    features = prepared.features
    if features is not None and features.prepared_now:
        console.print(
            f"{images.dataset}: {features.size} features of each image by {features.network} in "
            f"{features.seconds:.1f} s → {features.path}"
        )
    elif features is not None:
        console.print(f"{images.dataset}: the features are there ({features.path})")
    console.result(prepared.to_json())


def _sizes(table: ClassTable) -> list[str]:
    largest = table.counts.max(initial=0)
    smallest = table.counts.min(initial=largest)
    return [str(n) for n in (len(table.names), table.counts.sum(), smallest, largest)]
