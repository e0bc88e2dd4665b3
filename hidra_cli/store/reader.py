"""Reading a prepared file: checked against its content hash, then gathered by index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from hidra_cli.api.data import SPLITS, Split
from hidra_cli.errors import DataError
from hidra_cli.store.decode import UInt8

if TYPE_CHECKING:
    import torch

FORMAT = "hidra-store"
FORMAT_VERSION = 1
# Above this share of the memory that is free, images stay in the file and are read as needed.
IN_MEMORY_SHARE = 0.5
_CHUNK_BYTES = 64 << 20

Int64 = npt.NDArray[np.int64]


class ContentHash:
    """SHA-256 over everything a run can see of a prepared file."""

    def __init__(
        self, image_shape: Sequence[int], offsets: Int64, splits: UInt8, names: Sequence[str]
    ) -> None:
        self._hash = hashlib.sha256()
        head = {
            "image_shape": [int(side) for side in image_shape],
            "offsets": [int(offset) for offset in offsets],
            "splits": [int(split) for split in splits],
            "names": list(names),
        }
        self._hash.update(json.dumps(head).encode())

    def update(self, images: UInt8) -> None:
        self._hash.update(np.ascontiguousarray(images).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


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
    """A prepared dataset. `images` is an array in memory or a dataset in the open file."""

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

    def table(self, split: Split) -> ClassTable:
        """The classes of one split, in file order."""
        chosen = np.flatnonzero(self.splits == SPLITS.index(split))
        return ClassTable(
            self.dataset,
            split,
            tuple(self.names[i] for i in chosen),
            self.offsets[chosen],
            self.offsets[chosen + 1] - self.offsets[chosen],
        )

    def gather(self, indices: Int64) -> torch.Tensor:
        """Images at `indices` (any shape S) → uint8 tensor (*S, C, H, W)."""
        import torch

        flat = indices.reshape(-1)
        if isinstance(self.images, np.ndarray):
            found = self.images[flat]
        else:  # HDF5 wants increasing, distinct indices
            distinct, back = np.unique(flat, return_inverse=True)
            found = self.images[distinct][back]
        return torch.from_numpy(found).reshape(*indices.shape, *self.image_shape)


def open_store(path: Path, dataset: str, *, load: bool = True) -> PreparedImages:
    """Open a prepared file and check it against its content hash.

    Args:
        path: the HDF5 file.
        dataset: its name, for messages.
        load: read the images into memory when they fit.

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
        file = h5py.File(path, "r")
        return _checked(file, path, load)
    except DataError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as exc:
        raise _damaged(path, dataset, str(exc).split("\n")[0]) from exc


def _checked(file: h5py.File, path: Path, load: bool) -> PreparedImages:
    attributes = {
        key: value if isinstance(value, str) else str(value) for key, value in file.attrs.items()
    }
    dataset = attributes.get("dataset", path.stem)
    if attributes.get("format") != FORMAT:
        raise DataError(
            f"{path} was not written by hidra",
            why=f"it has no format mark '{FORMAT}'",
            fix="move that file away and run `hidra prepare`",
        )
    if attributes.get("format_version") != str(FORMAT_VERSION):
        raise DataError(
            f"{path} has format version {attributes.get('format_version')}",
            why=f"this hidra reads version {FORMAT_VERSION}",
            fix=f"hidra prepare {dataset} --force",
        )
    images = file["images"]
    offsets = file["offsets"][:].astype(np.int64)
    splits = file["splits"][:].astype(np.uint8)
    names = tuple(file["names"].asstr()[:])
    if images.dtype != np.uint8 or images.ndim != 4 or offsets[-1] != len(images):
        raise _damaged(path, dataset, "its tables do not fit together")
    content = ContentHash(images.shape[1:], offsets, splits, names)
    held: Any = images
    if load and images.nbytes <= IN_MEMORY_SHARE * _free_memory():
        held = images[:]
    for chunk in _chunks(held):
        content.update(chunk)
    if content.hexdigest() != attributes.get("content_hash"):
        raise _damaged(path, dataset, "its content does not match its hash")
    shape = tuple(int(side) for side in images.shape[1:])
    return PreparedImages(
        path, dataset, (shape[0], shape[1], shape[2]), offsets, splits, names, attributes, held
    )


def _chunks(images: Any) -> Iterator[UInt8]:
    rows = max(1, _CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def _damaged(path: Path, dataset: str, why: str) -> DataError:
    return DataError(
        f"the prepared file {path} is damaged",
        why=why,
        fix=f"hidra prepare {dataset} --force   (with the same --source and --data-opt)",
    )


def _free_memory() -> int:
    """Bytes of memory that can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return 4 << 30  # not Linux: a careful guess
