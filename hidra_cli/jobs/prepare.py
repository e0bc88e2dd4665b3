"""A dataset's images, prepared as one checked file, and features of them in another one.

Imports no torch where no features are wanted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hidra_cli.api.data import SPLITS
from hidra_cli.images.open import choose_dataset, prepare_images, store_path
from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.settings.schema import DatasetSettings, ModelSettings
from hidra_cli.system.console import Console, Silence


@dataclass(frozen=True)
class PreparedFeatures:
    """A feature file.

    Attributes:
        network, sha256: name and hash of the frozen network.
        size: F.
        prepared_now: whether the file was written now.
        seconds: taken.
    """

    path: Path
    network: str
    sha256: str
    size: int
    prepared_now: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "network": self.network,
            "network_sha256": self.sha256,
            "size": self.size,
            "prepared_now": self.prepared_now,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared file.

    Attributes:
        images: what it holds.
        source: where the images were asked to come from now.
        prepared_now: whether the file was written now.
        seconds: taken.
        features: of a frozen network; None where none were wanted.
    """

    images: PreparedImages
    source: Path | None
    prepared_now: bool
    seconds: float
    features: PreparedFeatures | None = None

    def to_json(self) -> dict[str, Any]:
        images = self.images
        tables = {split: images.table(split) for split in SPLITS}
        content = {
            "dataset": images.dataset,
            "path": str(images.path),
            "prepared_now": self.prepared_now,
            "seconds": round(self.seconds, 3),
            "image_shape": list(images.image_shape),
            "classes": {split: len(table.names) for split, table in tables.items()},
            "images": {split: int(table.counts.sum()) for split, table in tables.items()},
            "skipped": images.skipped,
            "content_hash": images.content_hash,
            "source_hash": images.attributes["source_hash"],
            "licence": images.attributes["licence"],
        }
        if self.features is not None:
            content["features"] = self.features.to_json()
        return content


def prepare_dataset(
    settings: DatasetSettings,
    *,
    network: ModelSettings | None = None,
    device: str = "auto",
    cache_dir: Path | None = None,
    force: bool = False,
    workers: int | None = None,
    skip_broken: bool = False,
    console: Console | None = None,
) -> PreparedDataset:
    """Write the prepared file of a dataset, unless it is there and up to date.

    Args:
        network: the frozen backbone whose features are wanted, too; None for none.
        device: where it computes: "auto" or a device of torch.
        force: write it again.
        workers: decoding processes; None: one per core.
        skip_broken: leave out images of people's own folder that cannot be read.

    Raises:
        UsageError: unknown dataset, backbone, option or value.
        DataError: the source is missing, damaged or not of the expected form, or the weights of
            the network cannot be had.
        PluginError: the dataset's plugin fails.
    """
    console = console or Silence()
    choice = choose_dataset(settings)
    begun = time.monotonic()
    written = prepare_images(
        choice, cache_dir, console, force=force, workers=workers, skip_broken=skip_broken
    )
    images = open_store(store_path(choice, cache_dir), settings.name, load=network is None)
    prepared = PreparedDataset(images, choice.source, written, time.monotonic() - begun)
    if network is None:
        return prepared
    return replace(prepared, features=_features(settings, images, network, device, force, console))


def _features(
    settings: DatasetSettings,
    images: PreparedImages,
    model: ModelSettings,
    device: str,
    force: bool,
    console: Console,
) -> PreparedFeatures:
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.images.features import prepare_features
    from hidra_cli.runs.build import frozen_network

    choice = frozen_network(model, images.image_shape)
    network = choice.network.to(resolve_device(device))
    begun = time.monotonic()
    with console.progress(f"features by {network.label}") as advance:
        command = choice.command(settings)
        path, written = prepare_features(images, choice, command, advance, force=force)
    seconds = time.monotonic() - begun
    return PreparedFeatures(path, network.label, network.sha256, network.features, written, seconds)
