"""The prepared HDF5 file: its version, its seal and its description."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from hidra_cli.api.preprocessing import UInt8
from hidra_cli.errors import DataError


class SafeFile:
    """The file object HDF5 writes through: a failed write is kept and raised by us.

    HDF5 itself crashes the process if a write fails while it closes a file.
    """

    def __init__(self, path: Path) -> None:
        f = self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None
        self.seek, self.tell = f.seek, f.tell
        self.read, self.readinto, self.flush = (f.read, f.readinto, f.flush)

    def __enter__(self) -> SafeFile:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.closing(self._file):
            self.check()
            os.fsync(self._file.fileno())

    def seal(self) -> None:
        """Finish the file. From now on it is checked before it is read."""
        seal(self._file)

    def check(self) -> None:
        """Raise the first error of a write, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, data: memoryview) -> int:
        rest = memoryview(data).cast("B")
        try:
            while rest and self._error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as exc:
            self._error = exc
        return len(data)

    def truncate(self, size: int) -> int:
        try:
            self._file.truncate(size)
        except OSError as exc:
            self._error = self._error or exc
        return size


FORMAT_VERSION = 1


# A prepared file begins with this and the hash of the rest. HDF5's own content follows.
SEAL = b"hidra-store sha256 "


SEAL_BYTES = 512


CHUNK_BYTES = 4 << 20


Int64 = npt.NDArray[np.int64]


class ContentHash:
    """SHA-256 over everything in a prepared file that affects a run."""

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


def seal(file: IO[bytes]) -> None:
    """Write the hash of everything behind the seal into the seal.

    HDF5's code is not made for damaged files: it can crash, or loop without end. So hidra checks a
    file before HDF5 opens it.
    """
    digest = _digest(file)
    file.seek(0)
    file.write((SEAL + digest.encode()).ljust(SEAL_BYTES, b"\0"))


def check_seal(path: Path) -> None:
    """Check that a file is unchanged since it was sealed.

    Raises:
        DataError: it is foreign or damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        block = file.read(SEAL_BYTES)
        sealed = (SEAL + _digest(file).encode()).ljust(SEAL_BYTES, b"\0")
    if not block.startswith(SEAL):
        raise DataError(
            f"{path} was not written by hidra, or is damaged",
            why="it does not begin with hidra's seal",
            fix="move that file away, or write it again with `hidra prepare DATASET --force`",
        )
    if block != sealed:
        raise ValueError("its content does not match the hash it is sealed with")


def _digest(file: IO[bytes]) -> str:
    file.seek(SEAL_BYTES)
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def write_about(file: h5py.File, about: dict[str, Any]) -> None:
    """Store everything that is not a number as JSON in one table of bytes.

    HDF5 stores strings in a heap. This file has no heap.
    """
    marked = {"format_version": FORMAT_VERSION, **about}
    file["about"] = np.frombuffer(json.dumps(marked).encode(), np.uint8)


def read_about(file: h5py.File, path: Path) -> dict[str, Any]:
    """The content that `write_about` kept."""
    about = json.loads(plain_table(file, "about", np.uint8, 1)[:].tobytes())
    if about.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {about.get('format_version')}",
            why=f"this hidra reads version {FORMAT_VERSION}",
            fix=f"hidra prepare {about['attributes']['dataset']} --force",
        )
    return dict(about)


def plain_table(
    file: h5py.File, name: str, kind: type[np.generic], dimensions: int
) -> h5py.Dataset:
    """A table that lies in the file as it is: a small file cannot unpack into a large one.

    Raises:
        ValueError: it is compressed, elsewhere, or of another kind.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"the table {name} is missing, or a link")
    table = file[name]
    if not isinstance(table, h5py.Dataset) or table.dtype != kind or table.ndim != dimensions:
        raise ValueError(f"the table {name} is of another kind")
    created = table.id.get_create_plist()
    if created.get_layout() != h5py.h5d.CONTIGUOUS or created.get_external_count():
        raise ValueError(f"the table {name} is compressed or in another file")
    if table.id.get_storage_size() != table.nbytes:
        raise ValueError(f"the table {name} is not whole")
    return table
