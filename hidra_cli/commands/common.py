"""Flags that several commands share, and the two steps they begin with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import contextlib

    import torch

    from hidra_cli.components import DatasetChoice
    from hidra_cli.console import Console
    from hidra_cli.settings import DatasetSettings
    from hidra_cli.store.reader import PreparedImages
    from hidra_cli.task_sources import TaskSource
    from hidra_cli.world import World

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and results.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(help="Where prepared images are kept. [HIDRA_CACHE_DIR, ~/.cache/hidra]"),
]
RunsDir = Annotated[Path | None, typer.Option(help="Where runs are kept. [HIDRA_RUNS_DIR, ./runs]")]
Source = Annotated[
    str | None, typer.Option(help="Folder or archive that holds the images of the dataset.")
]
DataOpt = Annotated[
    list[str] | None,
    typer.Option(help="Option of the dataset, name=value; may be repeated.", metavar="NAME=VALUE"),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, … [auto]")]
Split = Annotated[
    Literal["train", "val", "test"], typer.Option(help="Classes to take episodes from.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for the result files.")]


def make_console(json_output: bool, quiet: bool, verbose: bool, *, main: bool = True) -> Console:
    """What a command speaks through; of several processes that share it, only the main one does."""
    from hidra_cli.console import Console, Silence

    if not main:
        return Silence()
    return Console(json_output=json_output, verbosity=-1 if quiet else int(verbose))


def join(device: str, console: Console, stack: contextlib.ExitStack) -> tuple[torch.device, World]:
    """The device of this process, and the processes it was started with, until `stack` ends."""
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.launch import launch
    from hidra_cli.world import joined

    launched = launch()
    several = launched.size > 1
    chosen = resolve_device(device, launched.local_rank if several else None)
    if several:
        console.note(f"{launched.size} processes share the tasks; waiting until all are there")
    return chosen, stack.enter_context(joined(launched, chosen))


def runs_dir_of(chosen: Path | None) -> Path:
    """`--runs-dir` > HIDRA_RUNS_DIR > ./runs."""
    return chosen or Path(os.environ.get("HIDRA_RUNS_DIR") or "runs")


def made(folder: Path, *, own: bool = False) -> Path:
    """A folder for result files; with `own`, one that no other process gets."""
    import itertools

    from hidra_cli.files import writing_to

    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(2):
            try:
                folder.mkdir(exist_ok=not own)
                return folder
            except FileExistsError:
                if not own:
                    raise
                stem = folder.name if attempt == 2 else folder.name.rpartition("-")[0]
                folder = folder.with_name(f"{stem}-{attempt}")
    raise AssertionError


def check_other_file(target: Path, what: str, *read: Path) -> None:
    """Refuse to write over what was read, and say what it is."""
    from hidra_cli.errors import UsageError

    if target.resolve() in (path.resolve() for path in read):
        raise UsageError(
            f"--out {target} is {what}",
            why="it would be overwritten",
            fix="name another file",
        )


def another_dataset(
    trained_on: DatasetSettings, name: str | None, source: str | None, data_opt: list[str] | None
) -> DatasetSettings:
    """The dataset the flags name, or else the one a model was trained on."""
    from hidra_cli.errors import UsageError
    from hidra_cli.settings import DatasetSettings, parse_assignments

    if name is not None:
        options = parse_assignments(data_opt or [], "--data-opt")
        return DatasetSettings(name=name, source=source, options=options)
    if source is not None or data_opt:
        raise UsageError(
            "--source and --data-opt describe another dataset, but --dataset names none",
            why=f"without --dataset the model's own is used: {trained_on.name}",
            fix=f"add --dataset {trained_on.name}, or leave them out",
        )
    return trained_on


def store_path(choice: DatasetChoice, cache_dir: Path | None) -> Path:
    """Where the prepared file of a dataset is, or would be."""
    from hidra_cli.store.paths import cache_dir as resolve_cache

    return resolve_cache(cache_dir) / "stores" / choice.key.file_name


def prepare_images(
    choice: DatasetChoice,
    cache_dir: Path | None,
    console: Console,
    *,
    force: bool = False,
    workers: int | None = None,
) -> bool:
    """Write the prepared file of a dataset unless it exists; whether it was written now."""
    from hidra_cli.errors import PluginError
    from hidra_cli.registry import blame

    try:
        return _prepare_images(choice, cache_dir, console, force, workers)
    except PluginError as error:  # the store knows the dataset, not where it comes from
        raise PluginError(
            f"{choice.plugin.label} failed",
            why=f"{error.what}: {error.why}",
            fix=blame(choice.plugin),
        ) from error


def _prepare_images(
    choice: DatasetChoice,
    cache_dir: Path | None,
    console: Console,
    force: bool,
    workers: int | None,
) -> bool:
    from hidra_cli.store.build import is_stale, prepare
    from hidra_cli.store.paths import cache_dir as resolve_cache

    path = store_path(choice, cache_dir)
    downloads = resolve_cache(cache_dir) / "downloads"
    if path.exists() and not force:
        if not is_stale(choice.dataset, choice.key, path, downloads):
            return False
        console.note(f"{choice.source} has changed since it was prepared")
        force = True  # the folder need not be listed once more to find that out
    console.note(f"preparing {choice.plugin.name} …")
    with console.progress(f"preparing {choice.plugin.name}") as advance:
        return prepare(
            choice.dataset,
            choice.key,
            path,
            version=choice.plugin.version,
            source=choice.source,
            downloads=downloads,
            progress=advance,
            force=force,
            workers=workers,
        )


def open_tasks(
    settings: DatasetSettings, cache_dir: Path | None, console: Console, device: torch.device
) -> TaskSource:
    """What tasks are drawn from: a family of functions, or prepared images; near the device."""
    from hidra_cli.components import choose_functions
    from hidra_cli.task_sources import brought_near

    found = choose_functions(settings) or open_images(settings, cache_dir, console)
    return brought_near(found, device)


def open_images(
    settings: DatasetSettings, cache_dir: Path | None, console: Console
) -> PreparedImages:
    """The prepared images of a dataset; an embedded one is prepared when it is not there yet."""
    from hidra_cli.components import choose_dataset
    from hidra_cli.errors import DataError
    from hidra_cli.store.build import has_changed
    from hidra_cli.store.paths import cache_dir as resolve_cache
    from hidra_cli.store.reader import open_store

    choice = choose_dataset(settings)
    if choice.dataset.embedded:
        prepare_images(choice, cache_dir, console)
    images = open_store(store_path(choice, cache_dir), choice.plugin.name)
    if has_changed(choice.dataset, choice.key, images, resolve_cache(cache_dir) / "downloads"):
        raise DataError(
            f"{choice.source} has changed since it was prepared",
            why="files were added, removed or edited",
            fix=f"hidra prepare {choice.plugin.name} --source {choice.source}",
        )
    console.detail(f"images: {images.path} ({images.content_hash[:12]})")
    return images
