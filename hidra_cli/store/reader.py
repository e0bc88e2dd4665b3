"""Reading a prepared file: checked against its content hash, then gathered by index."""

from __future__ import annotations

import contextlib
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
        self,
        image_shape: Sequence[int],
        invert: bool,
        offsets: Int64,
        splits: UInt8,
        names: Sequence[str],
    ) -> None:
        self._hash = hashlib.sha256()
        head = {
            "image_shape": [int(side) for side in image_shape],
            "invert": invert,
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
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(h5py.File(path, "r"))
            found = _checked(file, path, load)
            if not isinstance(found.images, np.ndarray):
                stack.pop_all()  # images are read from the open file
            return found
    except DataError:
        raise
    # What h5py and numpy raise on tables of other kinds or sizes than ours.
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as exc:
        raise _damaged(path, dataset, str(exc).split("\n")[0]) from exc


def write_about(file: h5py.File, about: dict[str, Any]) -> None:
    """Keep everything that is not a number as JSON in one table of bytes.

    HDF5's own strings live in a heap, and a damaged heap can keep it looping without end.
    """
    marked = {"format": FORMAT, "format_version": FORMAT_VERSION, **about}
    marked["hash"] = _about_hash(marked)
    file["about"] = np.frombuffer(json.dumps(marked).encode(), np.uint8)


def read_about(file: h5py.File, path: Path) -> dict[str, Any]:
    """What `write_about` kept.

    Raises:
        DataError: the file is foreign or of another version.
        ValueError: it is damaged.
    """
    try:
        about = json.loads(file["about"][:].astype(np.uint8).tobytes())
        written_by_us = about["format"] == FORMAT
    except (LookupError, TypeError, ValueError, AttributeError):
        written_by_us = False
    if not written_by_us:
        raise DataError(
            f"{path} was not written by hidra, or is damaged",
            why="it has no table that says what it holds",
            fix="move that file away, or write it again with `hidra prepare DATASET --force`",
        )
    if about.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {about.get('format_version')}",
            why=f"this hidra reads version {FORMAT_VERSION}",
            fix=f"hidra prepare {about['attributes']['dataset']} --force",
        )
    if about.get("hash") != _about_hash(about):
        raise ValueError("what it says about itself does not match its hash")
    return dict(about)


def _about_hash(about: dict[str, Any]) -> str:
    rest = {key: value for key, value in about.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _checked(file: h5py.File, path: Path, load: bool) -> PreparedImages:
    about = read_about(file, path)
    attributes = {str(key): str(value) for key, value in about["attributes"].items()}
    dataset = attributes["dataset"]
    names = tuple(map(str, about["names"]))
    images = file["images"]
    offsets = file["offsets"][:].astype(np.int64)
    splits = file["splits"][:].astype(np.uint8)
    if images.dtype != np.uint8 or images.ndim != 4 or offsets[-1] != len(images):
        raise _damaged(path, dataset, "its tables do not fit together")
    inverted = attributes.get("invert") == "True"
    content = ContentHash(images.shape[1:], inverted, offsets, splits, names)
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
