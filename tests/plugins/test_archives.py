"""Zip and tar archives that lie, lead elsewhere, or unpack to more than there is room for."""

import gzip
import io
import os
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from hidra_cli.api import DataError, safe_parts
from hidra_cli.api.decoding import decode_image
from hidra_plugins.datasets import archives
from hidra_plugins.datasets.archives import tar_members, zip_members
from hidra_plugins.datasets.sources import zip_tree

MEBIBYTE = 1 << 20


def write_zip(path: Path, *members: str | zipfile.ZipInfo, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, content)
    return path


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        zip_tree(path)
    assert str(caught.value).replace("\n", "").isprintable()
    assert path.name in caught.value.what
    return caught.value


@pytest.mark.parametrize(
    "name",
    [
        "/a.png",
        "../a.png",
        "a/../../b.png",
        "a\\b.png",
        "C:/a.png",
        "//host/share/a.png",
        "a\x1b[2J.png",
        "a\n.png",
        "\u202egnp.exe",
        "a" * 300 + ".png",
        "b/" * 600 + "a.png",
    ],
)
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    error = refused(write_zip(tmp_path / "a.zip", "fine.png", name))
    assert "not a plain relative name" in error.why
    assert len(error.why) < 300
    with pytest.raises(DataError):
        safe_parts(name, tmp_path)


def test_a_name_that_ends_at_a_null_character_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", "a.pngX.exe")
    path.write_bytes(path.read_bytes().replace(b"a.pngX", b"a.png\0"))
    assert "not a plain relative name" in refused(path).why


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("a.png")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    error = refused(write_zip(tmp_path / "a.zip", info, content=b"/etc/passwd"))
    assert "'a.png' in it is a link or no file" in error.why


def test_what_is_no_image_may_be_anything(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("docs/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "a.zip", info, "cat/", "cat/a.png", "__MACOSX/cat/._a.png")
    assert list(zip_tree(path)) == [("cat",)]


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", "a.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "'a.png' in it is encrypted" in refused(path).why


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "'a.png' twice" in refused(write_zip(tmp_path / "a.zip", "a.png", "a.png")).why


def test_the_number_of_members_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", *(f"{number}.png" for number in range(20)))
    monkeypatch.setattr(archives, "MOST_MEMBERS", 20)
    assert len(zip_members(path)) == 20
    monkeypatch.setattr(archives, "MOST_MEMBERS", 19)
    assert "more than 19 members" in refused(path).why
    monkeypatch.setattr(archives, "LARGEST_INDEX", 1000)
    assert "index is too large" in refused(path).why


def test_a_size_too_large_for_an_image_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", "a.png")
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\x01\x02") + 24, archives.LARGEST_MEMBER + 1)
    path.write_bytes(content)
    assert f"has {archives.LARGEST_MEMBER + 1} bytes" in refused(path).why


def zeros_zip(path: Path, method: int) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("a.png", "w") as file:
        for _ in range(64):
            file.write(bytes(MEBIBYTE))
    return path


def test_a_member_with_more_than_it_says_is_cut_short(tmp_path: Path) -> None:
    path = zeros_zip(tmp_path / "a.zip", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MEBIBYTE
    content = bytearray(path.read_bytes())
    for place in (content.index(b"PK\x03\x04") + 22, content.index(b"PK\x01\x02") + 24):
        struct.pack_into("<L", content, place, 100)
    path.write_bytes(content)
    ((member,),) = zip_tree(path).values()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.zip:a\.png cannot be read") as caught:
            decode_image(member, (1, 4, 4))
        assert tracemalloc.get_traced_memory()[1] < 8 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert "CRC" in caught.value.why


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_python_unpacks_in_one_go_is_refused(tmp_path: Path, method: int) -> None:
    ((member,),) = zip_tree(zeros_zip(tmp_path / "a.zip", method)).values()
    with pytest.raises(DataError) as caught:
        decode_image(member, (1, 4, 4))
    assert "neither stored nor deflated" in caught.value.why


def test_a_wrong_checksum_is_an_error(tmp_path: Path, png: bytes) -> None:
    path = write_zip(tmp_path / "a.zip", "a.png", content=png)
    path.write_bytes(path.read_bytes().replace(png, png[:-1] + b"\0"))
    ((member,),) = zip_tree(path).values()
    with pytest.raises(DataError) as caught:
        decode_image(member, (1, 4, 4))
    assert "CRC" in caught.value.why


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"PK")])
def test_what_is_no_zip_archive_is_refused_at_once(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.zip")
    refused(tmp_path / "a.zip")


# Tar archives.

LIMITS = {"meta": 1000}


def tar(*members: tuple[str, bytes | int], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar archive of contents, or of headers that say a size and have nothing behind them."""
    blocks = []
    for name, content in members:
        info = tarfile.TarInfo(name)
        info.size = content if isinstance(content, int) else len(content)
        info.type = kind
        body = b"" if isinstance(content, int) else content + bytes(-len(content) % 512)
        blocks += [info.tobuf(tarfile.GNU_FORMAT), body]
    return b"".join(blocks) + bytes(1024)


def read(path: Path, content: bytes) -> dict[str, bytes]:
    path.write_bytes(content)
    return dict(tar_members(path, LIMITS))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_wanted_members_are_read(tmp_path: Path, pack: Any) -> None:
    content = tar(("x/other", b"o" * 700), ("x/meta", b"m" * 600), ("x/more", b""))
    assert read(tmp_path / "a.tar", pack(content)) == {"meta": b"m" * 600}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_only_regular_members_are_read(tmp_path: Path, kind: bytes) -> None:
    assert read(tmp_path / "a.tar", tar(("meta", 600), kind=kind)) == {}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_format_is_read(tmp_path: Path, format: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        for name in ("long/" * 19 + "name", "meta"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 5, 1.5
            archive.addfile(info, io.BytesIO(b"hello"))
    assert dict(tar_members(tmp_path / "a.tar", LIMITS)) == {"meta": b"hello"}


@pytest.mark.parametrize("size", [1001, 8**11 - 1, 1 << 62, -512])
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"meta in it has {size} bytes, not 0 to 1000"):
        read(tmp_path / "a.tar", tar(("meta", size)))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_member_that_ends_too_early(tmp_path: Path, pack: Any) -> None:
    with pytest.raises(tarfile.ReadError, match="unexpected end of data"):
        read(tmp_path / "a.tar", pack(tar(("meta", b"m" * 600))[:1024]))


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        (0, tarfile.REGTYPE),
        (archives.LARGEST_UNPACKED, tarfile.REGTYPE),
        (archives.LARGEST_UNPACKED, tarfile.XHDTYPE),
        (archives.LARGEST_UNPACKED, tarfile.GNUTYPE_LONGNAME),
    ],
    ids=["behind the end", "member", "pax header", "long name"],
)
def test_a_gzipped_bomb_is_bounded(tmp_path: Path, size: int, kind: bytes) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = packer.compress(tar(("other", size), kind=kind)[:512])
    bomb += b"".join(packer.compress(bytes(MEBIBYTE)) for _ in range(520)) + packer.flush()
    assert len(bomb) < 3 * MEBIBYTE
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(ValueError, match="unpacks to more than"):
            read(tmp_path / "a.tar.gz", bomb)
        assert tracemalloc.get_traced_memory()[1] < 16 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 20


def test_the_checksum_of_a_gzipped_archive_counts(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(tar(("meta", b"m"))))
    packed[-8] ^= 1
    with pytest.raises(gzip.BadGzipFile, match="CRC check failed"):
        read(tmp_path / "a.tar.gz", bytes(packed))


def test_the_number_of_members_of_a_tar_archive_is_bounded(tmp_path: Path) -> None:
    members = [(str(number), b"") for number in range(archives.MOST_TAR_MEMBERS + 1)]
    assert read(tmp_path / "a.tar", tar(*members[1:])) == {}
    with pytest.raises(ValueError, match="more than 1000 members"):
        read(tmp_path / "b.tar", tar(*members))


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    """A sparse file has as many bytes as it says, and not as many as are in the archive."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("meta")
        info.size = 5
        info.pax_headers = {"GNU.sparse.map": "0,5", "GNU.sparse.size": "900"}
        archive.addfile(info, io.BytesIO(b"hello"))
    with pytest.raises(ValueError, match="meta in it is a sparse file"):
        dict(tar_members(tmp_path / "a.tar", LIMITS))
