"""Features of a frozen network for all prepared images: one HDF5 file beside that of the images.

Features that are done are kept in a file of plain rows, so that a stopped command can go on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from hidra_cli import __version__
from hidra_cli.api.building import Component
from hidra_cli.engine.devices import memory_errors
from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.learner import channels_last
from hidra_cli.errors import DataError
from hidra_cli.images.file_format import SEAL, SEAL_BYTES, SafeFile, write_about
from hidra_cli.images.open import DatasetChoice, check_unchanged, choose_dataset, store_path
from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.images.writing import locked, write_beside
from hidra_cli.settings.schema import DatasetSettings
from hidra_cli.system.console import Advance, Console
from hidra_cli.system.files import writing_to
from hidra_cli.system.signals import StopRequest, stop_requests

# Images that go through the network at once. Where a stopped command goes on is a multiple of it,
# so that every feature is the same bits as without a stop.
_AT_ONCE = 64
_WRITTEN_AT_ONCE = 1 << 14  # rows


@dataclass(frozen=True)
class NetworkChoice:
    """A frozen network with its weights, and how it was named.

    Attributes:
        backbone, options: as in the settings of a model.
    """

    network: FrozenNetwork
    backbone: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def file_beside(self, images: Path) -> Path:
        """Where the features of a prepared file are, or would be."""
        return images.with_name(f"{self._stem(images)}-{self.network.sha256[:12]}.h5")

    def others_beside(self, images: Path) -> list[Path]:
        """Features of this network with other weights."""
        there = images.parent.glob(f"{self._stem(images)}-????????????.h5")
        return sorted(path for path in there if path != self.file_beside(images))

    def _stem(self, images: Path) -> str:
        return f"{images.stem}-{re.sub(r'[^a-zA-Z0-9_.]+', '_', self.network.label)}"

    def command(self, dataset: DatasetSettings) -> str:
        """What computes the features of a dataset."""
        words = ["hidra", "prepare", dataset.name]
        words += [f"--source={dataset.source}"] if dataset.source else []
        words += [f"--data-opt={name}={value}" for name, value in dataset.options.items()]
        words += [f"--backbone={self.backbone}"]
        words += [f"--bb-opt={name}={value}" for name, value in self.options.items()]
        return shlex.join(words)


def prepare_features(
    images: PreparedImages,
    choice: NetworkChoice,
    command: str,
    progress: Advance,
    *,
    force: bool = False,
) -> tuple[Path, bool]:
    """Write the features of all images unless they are there.

    Two writers at once are serialized by a lock; the second one finds the work done.

    Args:
        images: prepared.
        choice: the network, on the device that computes.
        command: what the user called, for messages.
        progress: called with the images done and in all.
        force: compute them again.

    Returns:
        The file, and whether it was written now.

    Raises:
        DataError: a feature is not finite.
        DeviceError: out of memory.
        RunError: the file cannot be written (a full disk).
    """
    path = choice.file_beside(images.path)
    rows = path.with_name(f".{path.name}.{images.content_hash[:12]}.rows")
    if not force and _is_of(path, images, command):
        return path, False
    with locked(path):
        if not force and _is_of(path, images, command):
            return path, False
        with writing_to(path), stop_requests() as stop:
            if force:
                rows.unlink(missing_ok=True)
            _compute(rows, images, choice.network, progress, stop)
            attributes = images.attributes | _attributes(images, choice)

            def write(beside: Path) -> None:
                _write(beside, rows, images, choice.network.features, attributes)
                open_store(beside, images.dataset, load=False, table="features").close()

            write_beside(path, write)
            for leftover in path.parent.glob(f".{path.name}.*.rows"):
                leftover.unlink()
    stop.obey()
    return path, True


def open_features(
    settings: DatasetSettings,
    choice: NetworkChoice,
    cache_dir: Path | None,
    console: Console,
    component: Component | None = None,
) -> PreparedImages:
    """The features of a dataset, as `PreparedImages`.

    Raises:
        DataError: there are none, or they are damaged, of other images or of other weights.
    """
    dataset = choose_dataset(settings, component)
    images = store_path(dataset, cache_dir)
    path, command = choice.file_beside(images), choice.command(settings)
    if not path.is_file():
        raise _missing(dataset, images, choice, command)
    features = open_store(path, dataset.plugin.name, table="features", command=command)
    network = choice.network
    if (features.attributes.get("network_sha256"), features.images.shape[1]) != (
        network.sha256,
        network.features,
    ):
        raise DataError(
            f"the features in {path} are not those of {network.label} with these weights",
            why="the file says that they were made with others",
            fix=f"{command} --force",
        )
    check_unchanged(dataset, features, cache_dir)
    if images.is_file() and features.attributes.get("images_seal") != _seal(images):
        of_images = open_store(images, dataset.plugin.name, load=False)
        of_images.close()
        if of_images.content_hash != features.content_hash:
            raise DataError(
                f"the features in {path} are of other pictures",
                why=f"{images} was prepared again since, with other content",
                fix=command,
            )
    console.detail(f"features: {path}")
    return features


def _missing(
    dataset: DatasetChoice, images: Path, choice: NetworkChoice, command: str
) -> DataError:
    label = choice.network.label
    if others := choice.others_beside(images):
        return DataError(
            f"the features of {dataset.plugin.name} were made with other weights of {label}",
            why=f"the SHA-256 of these begins with {choice.network.sha256[:12]}; there is "
            + ", ".join(path.name for path in others),
            fix=f"{command}   or name the former weights: --bb-opt weights=…",
        )
    return DataError(
        f"there are no features of {dataset.plugin.name} by {label}",
        why=f"{choice.file_beside(images)} does not exist; a frozen network is run once for all "
        "pictures, not in every task",
        fix=f"{command}   (with the same --cache-dir)",
    )


def _is_of(path: Path, images: PreparedImages, command: str) -> bool:
    """Whether a file holds features of these images."""
    if not path.is_file():
        return False
    features = open_store(path, images.dataset, load=False, table="features", command=command)
    features.close()
    return features.content_hash == images.content_hash


def _compute(
    rows: Path,
    images: PreparedImages,
    network: FrozenNetwork,
    progress: Advance,
    stop: StopRequest,
) -> None:
    """Add the features that are missing to the rows (n, F) float32 of a file."""
    count, size = len(images.images), 4 * network.features
    with rows.open("ab") as file:
        done = file.tell() // (size * _AT_ONCE) * _AT_ONCE
        if file.tell() == count * size:
            done = count
        file.truncate(done * size)
        progress(done, total=count)
        for batch in _batches(images, done):
            with memory_errors(), torch.no_grad():
                features = network(channels_last(batch.to(network.device).float().div_(255)))
            if not bool(features.isfinite().all()):
                raise DataError(
                    f"{network.label} gives features that are not finite",
                    why=f"of the images {done} to {done + len(batch) - 1} of {images.path}",
                    fix="other weights: --bb-opt weights=…",
                )
            file.write(features.float().cpu().numpy().tobytes())
            done += len(batch)
            progress(done, total=count)
            if stop.number:
                file.flush()
                stop.obey()


def _batches(images: PreparedImages, first: int) -> Iterator[Tensor]:
    """Images (n, C, H, W) from the first one on; the next ones are read meanwhile."""
    count = len(images.images)

    def read(start: int) -> Tensor:
        return images.gather(np.arange(start, min(start + _AT_ONCE, count)))

    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, first) if first < count else None
        while following is not None:
            batch, first = following.result(), first + _AT_ONCE
            following = reader.submit(read, first) if first < count else None
            yield batch


def _attributes(images: PreparedImages, choice: NetworkChoice) -> dict[str, str]:
    return {
        "network": choice.network.label,
        "network_sha256": choice.network.sha256,
        "backbone": choice.backbone,
        "backbone_options": json.dumps(dict(choice.options), sort_keys=True, default=str),
        "images_seal": _seal(images.path),
        "written_by": f"hidra-cli {__version__}",
    }


def _seal(path: Path) -> str:
    """What a prepared file is sealed with; changes with any of its bytes."""
    with path.open("rb") as file:
        return file.read(SEAL_BYTES).removeprefix(SEAL).rstrip(b"\0").decode("ascii", "replace")


def _write(
    path: Path, rows: Path, images: PreparedImages, width: int, attributes: Mapping[str, str]
) -> None:
    shape = (len(images.images), width)
    values = np.memmap(rows, np.float32, "r", shape=shape)
    with SafeFile(path) as target:
        with h5py.File(target, "w", userblock_size=SEAL_BYTES) as file:
            features = file.create_dataset("features", shape, np.float32)
            file["offsets"] = images.offsets
            file["splits"] = images.splits
            for first in range(0, len(values), _WRITTEN_AT_ONCE):
                features[first : first + _WRITTEN_AT_ONCE] = values[
                    first : first + _WRITTEN_AT_ONCE
                ]
                target.check()
            digest = hashlib.sha256(values.data).hexdigest()
            write_about(
                file,
                {
                    "attributes": dict(attributes) | {"features_hash": digest},
                    "names": list(images.names),
                },
            )
        target.check()
        target.seal()
