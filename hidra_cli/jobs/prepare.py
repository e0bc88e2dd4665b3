"""A dataset's images, prepared as one checked file. Imports no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidra_cli.api.data import SPLITS
from hidra_cli.images.open import choose_dataset, prepare_images, store_path
from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.settings.schema import DatasetSettings
from hidra_cli.system.console import Console, Silence


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared file.

    Attributes:
        images: what it holds.
        source: where the images were asked to come from now.
        prepared_now: whether the file was written now.
        seconds: taken.
    """

    images: PreparedImages
    source: Path | None
    prepared_now: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        images = self.images
        tables = {split: images.table(split) for split in SPLITS}
        return {
            "dataset": images.dataset,
            "path": str(images.path),
            "prepared_now": self.prepared_now,
            "seconds": round(self.seconds, 3),
            "image_shape": list(images.image_shape),
            "classes": {split: len(table.names) for split, table in tables.items()},
            "images": {split: int(table.counts.sum()) for split, table in tables.items()},
            "content_hash": images.content_hash,
            "source_hash": images.attributes["source_hash"],
            "licence": images.attributes["licence"],
        }


def prepare_dataset(
    settings: DatasetSettings,
    *,
    cache_dir: Path | None = None,
    force: bool = False,
    workers: int | None = None,
    console: Console | None = None,
) -> PreparedDataset:
    """Write the prepared file of a dataset, unless it is there and up to date.

    Args:
        force: write it again.
        workers: decoding processes; None: one per core.

    Raises:
        UsageError: unknown dataset, option or value.
        DataError: the source is missing, damaged or not of the expected form.
        PluginError: the dataset's plugin fails.
    """
    choice = choose_dataset(settings)
    begun = time.monotonic()
    written = prepare_images(choice, cache_dir, console or Silence(), force=force, workers=workers)
    images = open_store(store_path(choice, cache_dir), settings.name)
    return PreparedDataset(images, choice.source, written, time.monotonic() - begun)
