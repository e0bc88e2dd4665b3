"""Images in folders: which files are images, and the names that files may have.

For dataset plugins, and for the program where it reads a folder of pictures itself.
"""

from __future__ import annotations

import contextlib
import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from hidra_cli.api.data import Split
from hidra_cli.errors import DataError

LARGEST_CSV = 1 << 23  # bytes, six times as many as in miniImageNet's
LONGEST_NAME = 1000
LONGEST_PART = 255
LONGEST_TEXT = 400  # of an error message

# What macOS, Windows, Synology and others put beside people's files; names in lower case.
LEFT_BEHIND = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir"}
LEFT_BEHIND |= {"#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found"}
LEFT_BEHIND |= {"system volume information", "network trash folder", "temporary items"}

# Folders with these names, in lower case, are parts of a data set, not classes.
SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

HEIC_ENDINGS = {".heic", ".heif", ".hif"}

# Formats that Pillow only writes, or reads with the help of other programs and modules. IPTC
# may hold an image of any other format.
REFUSED_FORMATS = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC"}
REFUSED_FORMATS |= {"MIC", "MPEG", "PALM", "PDF", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings, in lower case, of every format that is read."""
    from PIL import Image

    add_heic()
    endings = Image.registered_extensions().items()
    return frozenset(ending.lower() for ending, kind in endings if kind not in REFUSED_FORMATS)


@cache
def add_heic() -> None:
    """Let Pillow read HEIC, where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def is_image(name: str) -> bool:
    """Tell whether a file name ends like an image, in upper or lower case."""
    return PurePosixPath(name).suffix.lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Tell whether a name is hidden, or what systems, network drives and desktops leave behind."""
    return name.startswith((".", "~$")) or name.casefold() in LEFT_BEHIND


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without hidden names.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as scan:
            return sorted((e for e in scan if not is_hidden(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def images_below(folder: Path, left_out: Counter[str] | None = None) -> list[Path]:
    """Return every image in a folder and in the folders inside it, in a fixed order.

    Links to folders are followed. A folder that is met twice is entered once.

    Args:
        folder: where to look.
        left_out: counts the files that are no image, by their endings.

    Raises:
        DataError: a folder or image cannot be read, or a link leads back to a folder around it.
    """
    images: list[Path] = []
    waiting = entries(folder)[::-1]
    entered = {_identity(folder)}
    while waiting:  # not recursive: folders can be nested deeper than calls
        entry = waiting.pop()
        if entry.is_dir():
            if entry.is_symlink():
                _check_no_loop(Path(entry.path))
            if (identity := _identity(Path(entry.path))) not in entered:
                entered.add(identity)
                waiting += entries(Path(entry.path))[::-1]
        elif is_image(entry.name):
            check_image_file(entry)
            images.append(Path(entry.path))
        elif left_out is not None:
            left_out[_ending(entry.name)] += 1
    return images


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read the folder {shown(str(folder))}",
        why=shown(str(error)),
        fix="make the folder readable, or name another one",
    )


def _identity(folder: Path) -> tuple[int, int]:
    """What tells one folder from another, whatever links lead to it."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _check_no_loop(link: Path) -> None:
    target = link.resolve()
    if link.parent.resolve().is_relative_to(target):
        raise DataError(
            f"cannot use the link {shown(str(link))}",
            why=f"it leads to {shown(str(target))}, a folder that holds the link itself",
            fix="remove this link",
        )


def _ending(name: str) -> str:
    ending = PurePosixPath(name).suffix
    return ending if ending.isprintable() and ending else "files without an ending"


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


def class_folders(
    parent: Path, left_out: Counter[str] | None = None, *, may_be_empty: bool = False
) -> dict[str, list[Path]]:
    """Return the images of each class folder in `parent`, nested folders included.

    Names are compared as people see them: two that Unicode spells differently are one class.

    Args:
        parent: the folder of the class folders.
        left_out: counts what is no image, and images in no class folder.
        may_be_empty: whether a class folder may hold no image.

    Raises:
        DataError: a class folder holds no image, or its name cannot be a class name.
    """
    classes: dict[str, list[Path]] = {}
    for entry in entries(parent):
        if not entry.is_dir():
            if left_out is not None and is_image(entry.name):
                left_out["images in no class folder"] += 1
            continue
        if entry.is_symlink():
            _check_no_loop(Path(entry.path))
        _check_class_name(entry)
        inside: Counter[str] = Counter()
        images = images_below(Path(entry.path), inside)
        if not images and not may_be_empty:
            raise DataError(
                f"cannot use the class folder {shown(entry.path)}",
                why="it holds no image" + (f", but {counted(inside)}" if inside else ""),
                fix="put its images there, or remove the folder",
            )
        if left_out is not None:
            left_out.update(inside)
        classes.setdefault(as_seen(entry.name), []).extend(images)
    return classes


def _check_class_name(entry: os.DirEntry[str]) -> None:
    try:
        safe_parts(entry.name, Path(entry.path).parent)
    except DataError as error:
        raise DataError(
            f"the class folder {shown(entry.path)} has a name that cannot be used",
            why=error.why,
            fix="rename it: letters, digits, spaces and signs that can be printed",
        ) from error


def as_seen(name: str) -> str:
    """Return a name in the one Unicode form of all names that look like it (NFC)."""
    return unicodedata.normalize("NFC", name)


def counted(left_out: Mapping[str, int]) -> str:
    """Return counts as text, and what would make the files readable."""
    parts = [f"{count} {what}" for what, count in sorted(left_out.items()) if count]
    heic = any(what.lower() in HEIC_ENDINGS for what in left_out)
    hint = " (HEIC is read where hidra-cli[heic] is installed)" if heic else ""
    return shown(", ".join(parts)) + hint


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
            fix="a published file: get it again; one of your own: name files inside its folder",
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
