"""`hidra prepare`: images → one checked HDF5 file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import common, completing

if TYPE_CHECKING:
    from hidra_cli.components import DatasetChoice
    from hidra_cli.console import Console
    from hidra_cli.store.reader import PreparedImages


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Name of the dataset (`hidra plugins list`).", autocompletion=completing.datasets
        ),
    ],
    source: common.Source = None,
    data_opt: common.DataOpt = None,
    cache_dir: common.CacheDir = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare again.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes. [one per core]")
    ] = None,
    json_output: common.Json = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
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
    from hidra_cli.components import choose_dataset
    from hidra_cli.settings import DatasetSettings, parse_assignments
    from hidra_cli.store.reader import open_store

    console = common.make_console(json_output, quiet, verbose)
    options = parse_assignments(data_opt or [], "--data-opt")
    choice = choose_dataset(DatasetSettings(name=dataset, source=source, options=options))
    begun = time.monotonic()
    written = common.prepare_images(choice, cache_dir, console, force=force, workers=workers)
    path = common.store_path(choice, cache_dir)
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
