"""Reading a prepared file: checked against its hash, then gathered by index."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np

from hidra_cli.api.data import SPLITS, Split
from hidra_cli.api.preprocessing import UInt8
from hidra_cli.errors import DataError
from hidra_cli.images.file_format import CHUNK_BYTES, Int64, check_seal, plain_table, read_about
from hidra_cli.system.memory import available_memory

if TYPE_CHECKING:
    import torch

# Images that need more than this share of the free memory stay in the file.
IN_MEMORY_SHARE = 0.5
# Images that need at most this share of a device's free memory are kept on the device.
ON_DEVICE_SHARE = 0.25
Table = Literal["images", "features"]
_TABLES: dict[Table, tuple[type[np.generic], int]] = {  # type and number of dimensions
    "images": (np.uint8, 4),
    "features": (np.float32, 2),
}
_ATTRIBUTES = ("dataset", "content_hash", "source_hash", "source", "invert", "licence")


@dataclass(frozen=True)
class ClassTable:
    """The classes of one split.

    Attributes:
        names: of the classes, C of them.
        first: (C,) index of each class's first image in the prepared file.
        counts: (C,) number of images of each class.
    """

    dataset: str
    split: Split
    names: tuple[str, ...]
    first: Int64
    counts: Int64


@dataclass(frozen=True)
class PreparedImages:
    """A prepared dataset: its images, or their features of a frozen network.

    Attributes:
        image_shape: (C, H, W) of the images, also where features stand for them.
        images: images (n, C, H, W) uint8 or features (n, F) float32: an array in memory, a dataset
            in the open file, or a tensor on a device.
    """

    path: Path
    dataset: str
    image_shape: tuple[int, int, int]
    offsets: Int64
    splits: UInt8
    names: tuple[str, ...]
    attributes: dict[str, str]
    images: Any = field(repr=False)

    @property
    def content_hash(self) -> str:
        return self.attributes["content_hash"]

    @property
    def skipped(self) -> int:
        """How many images of the source could not be read and were left out."""
        return int(self.attributes.get("skipped", "0"))

    @property
    def has_features(self) -> bool:
        return len(self.images.shape) == 2

    @property
    def place(self) -> str:
        """The place of the images, for messages."""
        return str(self.path)

    def most_ways(self, split: Split) -> int | None:
        """The number of classes of a split."""
        return len(self.table(split).names)

    def close(self) -> None:
        """Close the file, if images are read from it."""
        if isinstance(self.images, h5py.Dataset):
            self.images.file.close()

    def on(self, device: torch.device, free: int) -> PreparedImages:
        """These images, unchanged, on a device, so that tasks are gathered there.

        They are moved only if they need at most ON_DEVICE_SHARE of its free bytes. The file from
        which they were read is then closed.
        """
        import torch

        if self.images.nbytes > ON_DEVICE_SHARE * free:
            return self
        dtype = torch.float32 if self.has_features else torch.uint8
        held = torch.empty(self.images.shape, dtype=dtype, device=device)
        at_once = max(1, CHUNK_BYTES * len(held) // self.images.nbytes)
        for first in range(0, len(held), at_once):
            chunk = self.images[first : first + at_once]
            held[first : first + at_once] = torch.from_numpy(chunk)
        self.close()
        return replace(self, images=held)

    def table(self, split: Split) -> ClassTable:
        """The classes of one split, in file order."""
        rows = np.flatnonzero(self.splits == SPLITS.index(split))
        return ClassTable(
            self.dataset,
            split,
            tuple(self.names[i] for i in rows),
            self.offsets[rows],
            self.offsets[rows + 1] - self.offsets[rows],
        )

    def gather(self, indices: Int64) -> torch.Tensor:
        """Images at `indices` (any shape S) → tensor (*S, C, H, W) or (*S, F), where they are."""
        import torch

        flat = indices.reshape(-1)
        if isinstance(self.images, torch.Tensor):
            there = torch.from_numpy(flat).to(self.images.device)
            return self.images[there].reshape(*indices.shape, *self.images.shape[1:])
        if isinstance(self.images, np.ndarray):
            images = self.images.take(flat, axis=0)
        else:  # HDF5 wants increasing, distinct indices
            distinct, back = np.unique(flat, return_inverse=True)
            images = self.images[distinct][back]
        return torch.from_numpy(images).reshape(*indices.shape, *self.images.shape[1:])


def open_store(
    path: Path,
    dataset: str,
    *,
    load: bool = True,
    table: Table = "images",
    command: str = "",
) -> PreparedImages:
    """Open a prepared file and check it against the hash it is sealed with.

    Args:
        path: the HDF5 file.
        dataset: its name, for messages.
        load: read the images into memory when they fit.
        table: what it holds.
        command: what writes it, for messages.

    Raises:
        DataError: the file is missing, damaged or not a prepared file.
    """
    if not path.is_file():
        raise DataError(
            f"{dataset} is not prepared",
            why=f"{path} does not exist",
            fix=f"hidra prepare {dataset}   (with the same --source, --data-opt and --cache-dir)",
        )
    try:
        check_seal(path)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(h5py.File(path, "r"))
            images = _checked(file, path, load, table)
            if not isinstance(images.images, np.ndarray):
                stack.pop_all()  # images are read from the open file
            return images
    except DataError:
        raise
    # What h5py, numpy and json raise on tables of other kinds or sizes than ours.
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as exc:
        why = str(exc).split("\n")[0]
        raise _damaged(path, command or f"hidra prepare {dataset}", why) from exc


def _checked(file: h5py.File, path: Path, load: bool, table: Table) -> PreparedImages:
    about = read_about(file, path)
    attributes = {str(key): str(value) for key, value in about["attributes"].items()}
    missing = [key for key in _ATTRIBUTES if key not in attributes]
    if missing:
        raise ValueError(f"it does not say its {missing[0]}")
    names = tuple(map(str, about["names"]))
    images = plain_table(file, table, *_TABLES[table])
    offsets: Int64 = plain_table(file, "offsets", np.int64, 1)[:]
    splits: UInt8 = plain_table(file, "splits", np.uint8, 1)[:]
    counts = np.diff(offsets)
    fit = len(names) == len(splits) == len(counts) > 0 and min(images.shape) > 0
    if not fit or offsets[0] != 0 or offsets[-1] != len(images) or counts.min() < 1:
        raise ValueError("its tables do not fit together")
    if splits.max() >= len(SPLITS) or len(set(names)) != len(names):
        raise ValueError("its classes are not distinct, or in an unknown split")
    held: Any = images
    if load and images.nbytes <= IN_MEMORY_SHARE * available_memory():
        held = images[:]
    shape = images.shape[1:]
    if table == "features":
        shape = json.loads(attributes["preprocessing"])["image_shape"]
    c, h, w = map(int, shape)
    return PreparedImages(
        path, attributes["dataset"], (c, h, w), offsets, splits, names, attributes, held
    )


def _damaged(path: Path, command: str, why: str) -> DataError:
    return DataError(
        f"the prepared file {path} is damaged",
        why=why,
        fix=f"{command} --force   (with the same --source and --data-opt)",
    )
