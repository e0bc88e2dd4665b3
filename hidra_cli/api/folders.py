"""Images in folders: which files are images, and the names that files may have.

For dataset plugins, and for the program where it reads a folder of pictures itself.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from hidra_cli.errors import DataError

LARGEST_CSV = 1 << 23  # bytes, six times as many as in miniImageNet's
LONGEST_NAME = 1000
LONGEST_PART = 255
LONGEST_TEXT = 400  # of an error message

# Formats that Pillow only writes, or reads with the help of other programs and modules. IPTC
# may hold an image of any other format.
REFUSED_FORMATS = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC"}
REFUSED_FORMATS |= {"MIC", "MPEG", "PALM", "PDF", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings, in lower case, of every format that is read."""
    from PIL import Image

    endings = Image.registered_extensions().items()
    return frozenset(ending.lower() for ending, kind in endings if kind not in REFUSED_FORMATS)


def is_image(name: str) -> bool:
    """Tell whether a file name ends like an image, in upper or lower case."""
    return PurePosixPath(name).suffix.lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Tell whether a name is hidden, or what macOS adds to its zip archives."""
    return name.startswith(".") or name == "__MACOSX"


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without hidden names.

    Raises:
        DataError: the folder cannot be read, or holds a link to a folder.
    """
    try:
        with os.scandir(folder) as scan:
            found = sorted((e for e in scan if not is_hidden(e.name)), key=lambda e: e.name)
        links = [e.path for e in found if e.is_symlink() and e.is_dir()]
    except OSError as error:
        raise DataError(
            f"cannot read the folder {shown(str(folder))}",
            why=shown(str(error)),
            fix="make the folder readable, or give another one with --source",
        ) from error
    if links:
        raise DataError(
            f"cannot use the folder {shown(str(folder))}",
            why=f"{shown(links[0])} is a link to a folder; only links to files are followed",
            fix="replace the link by the folder itself",
        )
    return found


def images_below(folder: Path) -> list[Path]:
    """Return every image in a folder and in the folders inside it, in a fixed order.

    Raises:
        DataError: a folder or image cannot be read, or a folder is a link.
    """
    images: list[Path] = []
    waiting = entries(folder)[::-1]
    while waiting:  # not recursive: folders can be nested deeper than calls
        entry = waiting.pop()
        if entry.is_dir():
            waiting += entries(Path(entry.path))[::-1]
        elif is_image(entry.name):
            check_image_file(entry)
            images.append(Path(entry.path))
    return images


def check_image_file(entry: os.DirEntry[str]) -> None:
    """Raise DataError unless an image is a regular file with a name that is text."""
    why = "" if entry.is_file() else "it is a link to nothing, or not a file"
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        why = "its name has bytes that are not UTF-8"
    if why:
        raise DataError(
            f"cannot read the image {shown(entry.path)}",
            why=why,
            fix="remove or rename it, or restore the file it should be",
        )


def class_folders(parent: Path) -> dict[str, list[Path]]:
    """Return the images of each class folder in `parent`, nested folders included.

    Raises:
        DataError: a class folder holds no image, or its name cannot be a class name.
    """
    classes: dict[str, list[Path]] = {}
    for entry in entries(parent):
        if not entry.is_dir():
            continue
        safe_parts(entry.name, parent)
        classes[entry.name] = images_below(Path(entry.path))
        if not classes[entry.name]:
            raise DataError(
                f"cannot use the class folder {shown(entry.path)}",
                why="it holds no image",
                fix="put its images there, or remove the folder",
            )
    return classes


def shown(text: str) -> str:
    """Return text of a file as it may be printed: without control characters, not too long."""
    if len(text) > LONGEST_TEXT:
        text = f"{text[: LONGEST_TEXT // 2]} … {text[-LONGEST_TEXT // 2 :]}"
    return text if text.isprintable() else ascii(text)


def safe_parts(name: str, origin: Path) -> tuple[str, ...]:
    """Split a name found inside a file into its parts.

    Raises:
        DataError: the name is empty, absolute, too long, leads upwards or has unprintable
            characters.
    """
    path = PurePosixPath(name)
    rooted = path.is_absolute() or "\\" in name or PureWindowsPath(name).drive != ""
    plain = path.parts and not rooted and ".." not in path.parts and name.isprintable()
    short = len(name) <= LONGEST_NAME and max(map(len, path.parts), default=0) <= LONGEST_PART
    if not plain or not short:
        raise DataError(
            f"cannot use {origin}",
            why=f"it names {name[:100]!r}{'…' if len(name) > 100 else ''}, "
            "which is not a plain relative name",
            fix="get this file again from where it is published",
        )
    return path.parts


def csv_columns(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return some columns of a CSV file: its distinct rows, sorted.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not there or too large, has no rows or other columns, or is not text.
    """
    if not path.is_file() or path.stat().st_size > LARGEST_CSV:
        raise ValueError(f"it is not there, not a file, or larger than {LARGEST_CSV} bytes")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            missing = [column for column in columns if column not in header]
            # No DictReader: with a long header, it takes for ever on short lines.
            places = [header.index(column) for column in columns if column in header]
            rows = {tuple(_field(line, place) for place in places) for line in lines if line}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"it cannot be read: {shown(str(error))}") from error
    if missing or not rows:
        raise ValueError(f"it has no rows with {' and '.join(columns)}")
    return sorted(rows)


def _field(line: list[str], place: int) -> str:
    return line[place] if place < len(line) else ""
