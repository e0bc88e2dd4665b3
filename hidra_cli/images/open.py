"""The dataset that settings name, prepared where that is needed, and its images."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hidra_cli.api import registry
from hidra_cli.api.building import Component, broken, plugin_errors, resolve
from hidra_cli.api.contract import ContractError, Subject
from hidra_cli.api.contract_data import check_description
from hidra_cli.api.data import Dataset, FunctionFamily
from hidra_cli.api.preprocessing import preprocessing_of
from hidra_cli.errors import DataError, PluginError, UsageError
from hidra_cli.images.cache import StoreKey
from hidra_cli.settings.schema import DatasetSettings

if TYPE_CHECKING:
    from hidra_cli.images.prepared import PreparedImages
    from hidra_cli.system.console import Console


@dataclass(frozen=True)
class DatasetChoice:
    """A dataset plugin, built with its options, and the key of its prepared file."""

    plugin: registry.Plugin
    dataset: Dataset
    key: StoreKey
    source: Path | None


def choose_dataset(settings: DatasetSettings, component: Component | None = None) -> DatasetChoice:
    """Build the plugin of a dataset of images. Imports no torch.

    Args:
        settings: of the dataset.
        component: its plugin, where it was found before.

    Raises:
        UsageError: unknown plugin, option or value, or a family of functions.
        DataError: the source does not exist.
        PluginError: the plugin fails.
    """
    component = component or resolve("dataset", settings.name, settings.options)
    plugin = component.plugin
    if issubclass(component.type, FunctionFamily):
        raise UsageError(
            f"{plugin.name} is a family of functions, and this needs images",
            why="its tasks are drawn as they are needed: there is nothing to prepare or to show",
            fix=f"hidra meta-train --dataset {plugin.name} --backbone mlp --loss mse, then "
            "hidra evaluate RUN",
        )
    source = existing_source(settings.source)
    dataset: Dataset = component.build(source)
    with plugin_errors(plugin):
        check_description(Subject(component.type), dataset)
    identity = str(source.resolve()) if source and component.type.source_is_identity else None
    key = StoreKey(
        plugin.name,
        plugin.distribution,
        component.all_options,
        preprocessing_of(dataset),
        identity,
    )
    return DatasetChoice(plugin, dataset, key, source)


def existing_source(source: str | None) -> Path | None:
    """The path of what `--source` names.

    Raises:
        DataError: it does not exist.
    """
    if source is None:
        return None
    path = Path(source)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, RuntimeError):  # a name too long, or the home of an unknown user
        exists = False
    if not exists:
        raise DataError(
            f"the source {source} does not exist",
            why="it is neither a folder nor a file",
            fix="give --source the folder or archive with the images",
        )
    return path


def store_path(choice: DatasetChoice, cache_dir: Path | None) -> Path:
    """The path of the prepared file of a dataset, which may not exist yet."""
    from hidra_cli.images.cache import cache_dir as resolve_cache

    return resolve_cache(cache_dir) / "stores" / choice.key.file_name


def prepare_images(
    choice: DatasetChoice,
    cache_dir: Path | None,
    console: Console,
    *,
    force: bool = False,
    workers: int | None = None,
    skip_broken: bool = False,
) -> bool:
    """Write the prepared file of a dataset unless it exists. Return whether it was written."""
    if skip_broken and not choice.dataset.source_is_identity:
        raise UsageError(
            f"--skip-broken cannot be used with {choice.plugin.name}",
            why="only a folder of your own may lack images; a published dataset is complete",
            fix="leave --skip-broken out",
        )
    try:
        return _prepare_images(choice, cache_dir, console, force, workers, skip_broken)
    except ContractError as fault:
        raise broken(choice.plugin, fault) from fault
    except PluginError as error:  # the store knows the dataset, not where it comes from
        raise PluginError(
            f"{choice.plugin.label} failed",
            why=f"{error.what}: {error.why}",
            fix=registry.remedy(choice.plugin),
        ) from error


def _prepare_images(
    choice: DatasetChoice,
    cache_dir: Path | None,
    console: Console,
    force: bool,
    workers: int | None,
    skip_broken: bool,
) -> bool:
    from hidra_cli.images.cache import cache_dir as resolve_cache
    from hidra_cli.images.prepare import is_stale, prepare

    path = store_path(choice, cache_dir)
    downloads = resolve_cache(cache_dir) / "downloads"
    if path.exists() and not force:
        if not is_stale(choice.dataset, choice.key, path, downloads):
            _check_same_source(choice, path, downloads)
            return False
        console.note(f"{choice.source} has changed since it was prepared")
        force = True  # the folder need not be listed once more to find that out
    console.note(f"preparing {choice.plugin.name} …")
    with console.progress(f"preparing {choice.plugin.name}") as advance:
        written = prepare(
            choice.dataset,
            choice.key,
            path,
            version=choice.plugin.version,
            source=choice.source,
            downloads=downloads,
            progress=advance,
            force=force,
            workers=workers,
            skip_broken=skip_broken,
        )
    for note in choice.dataset.notes:
        console.note(note)
    return written


def _check_same_source(choice: DatasetChoice, path: Path, downloads: Path) -> None:
    from hidra_cli.images.prepare import check_source
    from hidra_cli.images.prepared import open_store

    with contextlib.closing(open_store(path, choice.plugin.name, load=False)) as images:
        check_source(choice.dataset, choice.key, images, choice.source, downloads)


def open_images(
    settings: DatasetSettings,
    cache_dir: Path | None,
    console: Console,
    component: Component | None = None,
) -> PreparedImages:
    """The prepared images of a dataset. An embedded dataset is prepared first if necessary."""
    from hidra_cli.images.prepared import open_store

    choice = choose_dataset(settings, component)
    if choice.dataset.embedded:
        prepare_images(choice, cache_dir, console)
    images = open_store(store_path(choice, cache_dir), choice.plugin.name)
    check_unchanged(choice, images, cache_dir)
    console.detail(f"images: {images.path} ({images.content_hash[:12]})")
    return images


def check_unchanged(choice: DatasetChoice, images: PreparedImages, cache_dir: Path | None) -> None:
    """Refuse prepared images, or their features, of other files than the source has now.

    Raises:
        DataError: a folder has changed, or the images came from another source.
    """
    from hidra_cli.images.cache import cache_dir as resolve_cache
    from hidra_cli.images.prepare import check_source, has_changed

    downloads = resolve_cache(cache_dir) / "downloads"
    check_source(choice.dataset, choice.key, images, choice.source, downloads)
    if has_changed(choice.dataset, choice.key, images, downloads):
        raise DataError(
            f"{choice.source} has changed since it was prepared",
            why="files were added, removed or edited",
            fix=f"hidra prepare {choice.plugin.name} --source {choice.source}",
        )
