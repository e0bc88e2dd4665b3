"""Zip and tar archives that may be damaged or hostile. All reading has limits.

Nothing is extracted, so names in an archive cannot lead to other places. Links are not followed.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hidra_cli.api import DataError, safe_parts, shown

LARGEST_INDEX = 1 << 27  # bytes of the list of members in a zip archive
MOST_MEMBERS = 2_000_000
LARGEST_MEMBER = 1 << 29  # bytes of one image
LARGEST_UNPACKED = 1 << 29  # bytes of a tar archive, of which CIFAR-100 has 186 million

MOST_TAR_MEMBERS = 1000  # of which CIFAR-100 has seven
HEADERS = 1 << 16  # bytes between the contents of two members of a tar archive

PIECE = 1 << 18


def zip_members(archive: Path) -> list[zipfile.ZipInfo]:
    """Return what a zip archive holds except folders, sorted by name; every name is plain.

    Raises:
        DataError: not a zip archive, damaged, too large an index, or with unsafe names.
    """
    if not archive.is_file():  # opening a named pipe would wait for ever
        raise unreadable_zip(archive, "it is not a file")
    try:
        with IndexReader(io.FileIO(archive)) as file, zipfile.ZipFile(file) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
    except Exception as error:  # a damaged index can raise nearly anything
        why = f"it is not a zip archive, or damaged: {shown(str(error))}"
        raise unreadable_zip(archive, why) from error
    if len(members) > MOST_MEMBERS:
        raise unreadable_zip(archive, f"it has more than {MOST_MEMBERS} members")
    members.sort(key=lambda info: info.filename)
    for before, info in zip([None, *members], members, strict=False):
        safe_parts(info.orig_filename, archive)  # `filename` ends at a null character
        if before and before.filename == info.filename:
            raise unreadable_zip(archive, f"it holds {info.filename!r} twice")
    return members


def check_member(info: zipfile.ZipInfo, archive: Path) -> None:
    """Raise DataError unless a member of a zip archive is a plain file of a sensible size."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise unreadable_zip(archive, f"{info.filename!r} in it is a link or no file")
    if info.flag_bits & 0x1:
        raise unreadable_zip(archive, f"{info.filename!r} in it is encrypted")
    if info.file_size > LARGEST_MEMBER:
        raise unreadable_zip(archive, f"{info.filename!r} in it has {info.file_size} bytes")


def unreadable_zip(archive: Path, why: str) -> DataError:
    """Return the error for a zip archive that is not used."""
    return DataError(f"cannot read {shown(str(archive))}", why=why, fix="get the archive again")


class IndexReader(io.BufferedReader):
    """A zip archive whose index is not read at once if it is too large."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like any file, up to the largest index."""
        if size is not None and size > LARGEST_INDEX:
            raise zipfile.BadZipFile("its index is too large")
        return super().read(size)


def tar_members(archive: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield base name and content of some regular files of a tar archive, in one pass.

    Args:
        archive: a tar archive, gzipped or not.
        limits: base names of the wanted files, and the most bytes each may have.

    Raises:
        Exception: it is damaged, too large, or names a wanted file in an unsafe way.
    """
    with archive.open("rb") as packed:
        gzipped = packed.peek(2).startswith(b"\x1f\x8b")
        unpacked = BoundedReader(gzip.GzipFile(fileobj=packed) if gzipped else packed)
        with tarfile.open(fileobj=unpacked, mode="r|") as members:
            for count, info in enumerate(members):
                if count == MOST_TAR_MEMBERS:
                    raise ValueError(f"it has more than {MOST_TAR_MEMBERS} members")
                name = info.name.rsplit("/", 1)[-1]
                wanted = info.isfile() and name in limits
                most = limits[name] if wanted else LARGEST_UNPACKED
                if not 0 <= info.size <= most:
                    why = f"{shown(info.name)} in it has {info.size} bytes, not 0 to {most}"
                    raise ValueError(why)
                if info.issparse():
                    raise ValueError(f"{shown(info.name)} in it is a sparse file")
                unpacked.limit = min(info.offset_data + info.size + HEADERS, LARGEST_UNPACKED)
                if wanted and (file := members.extractfile(info)) is not None:
                    safe_parts(info.name, archive)
                    yield name, file.read()
        unpacked.limit = LARGEST_UNPACKED
        while unpacked.read(PIECE):  # to its end, where the checksum is
            pass


class BoundedReader(io.RawIOBase):
    """A file that raises ValueError once more than `limit` bytes of it are read."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__()
        self.limit = HEADERS
        self._file = file
        self._count = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return this many bytes, or fewer at the end."""
        piece = self._file.read(size)
        self._count += len(piece)
        if self._count > self.limit:
            raise ValueError(f"it unpacks to more than {self.limit} bytes")
        return piece
