"""`hidra prepare`: images → one checked HDF5 file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
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
    from hidra_cli.jobs.prepare import prepare_dataset
    from hidra_cli.reports.preparation import show_prepared
    from hidra_cli.settings.schema import DatasetSettings

    options = flags.assignments("--data-opt", data_opt)
    settings = DatasetSettings(name=dataset, source=source, options=options)
    prepared = prepare_dataset(
        settings, cache_dir=cache_dir, force=force, workers=workers, console=console
    )
    show_prepared(prepared, console)
