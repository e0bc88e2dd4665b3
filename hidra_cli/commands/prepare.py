"""`hidra prepare`: images → one checked HDF5 file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.images.open import DatasetChoice
    from hidra_cli.images.prepared import PreparedImages
    from hidra_cli.system.console import Console


@flags.with_console
def prepare(
    console: Console,
    dataset: Annotated[
        str,
        typer.Argument(
            help="Name of the dataset (`hidra plugins list`).", autocompletion=completion.datasets
        ),
    ],
    source: flags.Source = None,
    data_opt: flags.DataOpt = None,
    cache_dir: flags.CacheDir = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare again.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help=flags.with_default("Decoding processes.", "one per core")),
    ] = None,
) -> None:
    """Decode a dataset once into a file that every run reads.

    Without --source, datasets that may be downloaded are, with their checksums verified.

    Examples:

      hidra prepare glyphs

      hidra prepare omniglot --source ~/Downloads/omniglot

      hidra prepare folder --source my-pictures --data-opt size=84

    Next: hidra meta-train --dataset DATASET
    """
    import time

    from hidra_cli.api.data import SPLITS
    from hidra_cli.images.open import choose_dataset, prepare_images, store_path
    from hidra_cli.images.prepared import open_store
    from hidra_cli.settings.layers import parse_assignments
    from hidra_cli.settings.schema import DatasetSettings

    options = parse_assignments(data_opt or [], "--data-opt")
    choice = choose_dataset(DatasetSettings(name=dataset, source=source, options=options))
    begun = time.monotonic()
    written = prepare_images(choice, cache_dir, console, force=force, workers=workers)
    path = store_path(choice, cache_dir)
    images = open_store(path, dataset)
    if not written:
        console.print(f"{dataset}: already prepared ({path}); --force prepares it again")
        _note_other_source(choice, images, console)
    tables = {split: images.table(split) for split in SPLITS}
    if written:
        console.table(
            f"{dataset}: prepared in {time.monotonic() - begun:.1f} s → {path}",
            ["split", "classes", "images", "smallest class", "largest class"],
            [
                [
                    split,
                    str(len(table.names)),
                    str(table.counts.sum()),
                    str(table.counts.min(initial=table.counts.max(initial=0))),
                    str(table.counts.max(initial=0)),
                ]
                for split, table in tables.items()
            ],
        )
    console.result(
        {
            "dataset": dataset,
            "path": str(path),
            "prepared_now": written,
            "seconds": round(time.monotonic() - begun, 3),
            "image_shape": list(images.image_shape),
            "classes": {split: len(table.names) for split, table in tables.items()},
            "images": {split: int(table.counts.sum()) for split, table in tables.items()},
            "content_hash": images.content_hash,
            "source_hash": images.attributes["source_hash"],
            "licence": images.attributes["licence"],
        }
    )


def _note_other_source(choice: DatasetChoice, images: PreparedImages, console: Console) -> None:
    """Say so when the prepared file came from another place than the one named now."""
    before = images.attributes["source"]
    if choice.source is not None and before != str(choice.source):
        console.warn(f"it was prepared from {before or 'a download'}, not from {choice.source}")
