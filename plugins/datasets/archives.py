"""Zip and tar archives that may be damaged or hostile: what is read of them is bounded.

Nothing is extracted, so that no name in an archive can lead anywhere; links are not followed.
"""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from hidra_cli.api import DataError, safe_parts, shown

LARGEST_INDEX = 1 << 27  # bytes of the list of members in a zip archive
MOST_MEMBERS = 2_000_000
LARGEST_MEMBER = 1 << 29  # bytes of one image
LARGEST_UNPACKED = 1 << 29  # bytes of a tar archive, of which CIFAR-100 has 186 million

PIECE = 1 << 18
WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


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
    with archive.open("rb") as file:
        unpacked = Unpacked(file)
        while block := unpacked.read(tarfile.BLOCKSIZE):
            if not block.strip(b"\0"):
                break
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            name = info.name.rsplit("/", 1)[-1]
            wanted = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and name in limits
            most = limits[name] if wanted else LARGEST_UNPACKED
            if not 0 <= info.size <= most:
                why = f"{shown(info.name)} in it has {info.size} bytes, not 0 to {most}"
                raise ValueError(why)
            blocks = -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if wanted:
                safe_parts(info.name, archive)
                content = unpacked.read(blocks)
                if len(content) < blocks:
                    raise EOFError(f"it ends within {name}")
                yield name, content[: info.size]
            elif info.type not in WITHOUT_CONTENT:
                unpacked.skip(blocks)
        unpacked.skip(LARGEST_UNPACKED)  # to its end, where the checksum is


class Unpacked:
    """A file from its start, unpacked if it is gzipped, up to `LARGEST_UNPACKED` bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = LARGEST_UNPACKED
        self._inflater = zlib.decompressobj(31) if file.read(2) == b"\x1f\x8b" else None
        file.seek(0)

    def read(self, size: int) -> bytes:
        """Return this many bytes, or fewer at the end."""
        return b"".join(self._pieces(size))

    def skip(self, size: int) -> None:
        """Read as many bytes, or fewer at the end, and keep none."""
        for _ in self._pieces(size):
            pass

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size > 0 and (piece := self._piece(min(size, PIECE))):
            size -= len(piece)
            self._left -= len(piece)
            if self._left < 0:
                raise ValueError(f"it unpacks to more than {LARGEST_UNPACKED} bytes")
            yield piece

    def _piece(self, most: int) -> bytes:
        if self._inflater is None:
            return self._file.read(most)
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(PIECE)
            if piece := self._inflater.decompress(packed, most):
                return piece
            if not packed:
                raise EOFError("it ends too early")
        return b""
