"""`hidra prepare`: images → one checked HDF5 file, and features of them → another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags, picture_flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

_FEATURES = "Features of a frozen network"
Dataset = Annotated[
    str,
    typer.Argument(
        help="Name of the dataset (`hidra plugins list`).", autocompletion=completion.datasets
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Prepare again.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help=flags.with_default("Decoding processes.", "one per core")),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="A pre-trained network: compute its features of all images, too.",
        autocompletion=completion.backbones,
        rich_help_panel=_FEATURES,
    ),
]
BbOpt = Annotated[
    list[str] | None,
    typer.Option(
        help="Option of the backbone; may be repeated.",
        metavar="NAME=VALUE",
        rich_help_panel=_FEATURES,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help=flags.with_default("Where the network computes.", "auto"),
        rich_help_panel=_FEATURES,
    ),
]


@flags.with_console
def prepare(
    console: Console,
    dataset: Dataset,
    source: flags.Source = None,
    data_opt: flags.DataOpt = None,
    cache_dir: flags.CacheDir = None,
    force: Force = False,
    workers: Workers = None,
    skip_broken: picture_flags.SkipBroken = False,
    backbone: Backbone = None,
    bb_opt: BbOpt = None,
    device: Device = None,
) -> None:
    """Decode a dataset once into a file that every run reads.

    Without --source, datasets that may be downloaded are, with their checksums verified. With
    --backbone, the features of a frozen network are computed once for all images.

    Examples:

      hidra prepare glyphs

      hidra prepare omniglot --source ~/Downloads/omniglot

      hidra prepare folder --source my-pictures --data-opt size=224 --backbone timm

    Next: hidra meta-train --dataset DATASET
    """
    from hidra_cli.errors import UsageError
    from hidra_cli.jobs.prepare import prepare_dataset
    from hidra_cli.reports.preparation import show_prepared
    from hidra_cli.settings.schema import DatasetSettings, ModelSettings

    options = flags.assignments("--data-opt", data_opt)
    settings = DatasetSettings(name=dataset, source=source, options=options)
    named = flags.assignments("--bb-opt", bb_opt)
    network = None
    if backbone is not None:
        network = ModelSettings(backbone=backbone, backbone_options=named, normalization="frozen")
    elif named:
        raise UsageError("--bb-opt needs --backbone", why="there is no backbone to give it to")
    prepared = prepare_dataset(
        settings,
        network=network,
        device=device or "auto",
        cache_dir=cache_dir,
        force=force,
        workers=workers,
        skip_broken=skip_broken,
        console=console,
    )
    show_prepared(prepared, console)
