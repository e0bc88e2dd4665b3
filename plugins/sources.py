"""What the dataset plugins share: listing images, reading split files, downloads, errors."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from hidra_cli.api import ArchiveMember, DataError, ImageClass, Split

from .archives import check_member, safe_parts, shown, zip_members

SPLITS: tuple[Split, ...] = get_args(Split)

Tree = dict[tuple[str, ...], list[Any]]
"""The images directly in each folder, keyed by the folder's names below the root."""

# Formats that Pillow only writes, or reads with the help of other programs and modules. The store
# refuses the same; IPTC may hold an image of any other format.
UNREADABLE = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC"}
UNREADABLE |= {"MIC", "MPEG", "PALM", "PDF", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings, in lower case, of every format that is read."""
    from PIL import Image

    endings = Image.registered_extensions().items()
    return frozenset(ending.lower() for ending, kind in endings if kind not in UNREADABLE)


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


def folder_tree(root: Path) -> Tree:
    """Return the images in each folder below `root`.

    Raises:
        DataError: a folder cannot be read, or is a link.
    """
    tree: Tree = {}
    for image in images_below(root):
        tree.setdefault(image.relative_to(root).parts[:-1], []).append(image)
    return tree


def zip_tree(archive: Path) -> Tree:
    """Return the images in each folder of a zip archive; nothing is extracted.

    Raises:
        DataError: not a zip archive, damaged, or with unsafe names or members.
    """
    tree: Tree = {}
    for info in zip_members(archive):
        parts = PurePosixPath(info.filename).parts
        if is_image(parts[-1]) and not any(is_hidden(part) for part in parts):
            check_member(info, archive)
            tree.setdefault(parts[:-1], []).append(ArchiveMember(archive, info.filename))
    return tree


def image_tree(source: Path) -> Tree:
    """Return the images in each folder of a folder or zip archive.

    Raises:
        DataError: it cannot be read.
    """
    return folder_tree(source) if source.is_dir() else zip_tree(source)


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


def image_classes(
    by_split: Mapping[Split, Mapping[str, Collection[Any]]], origin: Path
) -> list[ImageClass]:
    """Return the classes of every split, sorted by name within each split.

    Raises:
        DataError: a class is in two splits.
    """
    home: dict[str, Split] = {}
    for split in SPLITS:
        for name in sorted(by_split.get(split, {})):
            if name in home:
                raise DataError(
                    f"cannot use the class split of {origin}",
                    why=f"the class {name!r} is in {home[name]} and in {split}; "
                    "few-shot learning is tested on classes never seen in training",
                    fix="keep all images of a class in one split",
                )
            home[name] = split
    return [ImageClass(name, split, by_split[split][name]) for name, split in home.items()]


def split_file(name: str) -> dict[Split, Any]:
    """Return the train, val and test entries of a class split that ships with the program."""
    content = json.loads((files("hidra_data") / "splits" / f"{name}.json").read_text("utf-8"))
    return {split: content[split] for split in SPLITS}


def download(url: str, folder: Path, name: str, md5: str, *, dataset: str) -> Path:
    """Download a file through torchvision; a file already there with this checksum is kept.

    Raises:
        DataError: the download failed; says which file to put where instead.
    """
    from torchvision.datasets.utils import download_url

    try:
        # stdout carries the result of a command and nothing else.
        with contextlib.redirect_stdout(sys.stderr):
            download_url(url, root=str(folder), filename=name, md5=md5)
    except Exception as error:
        raise DataError(
            f"cannot download {name}",
            why=f"{url}: {error}",
            fix=f"put {name} (md5 {md5}) into {folder}, or into any folder DIR and run: "
            f"hidra prepare {dataset} --source DIR",
        ) from error
    return folder / name


def check_size(size: int) -> int:
    """Return the side length of the prepared images; raise ValueError unless it is positive."""
    if size < 1:
        raise ValueError(f"size={size}: must be a whole number of pixels, 1 or more")
    return size


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless an option has one of its allowed values."""
    if value not in allowed:
        raise ValueError(f"{option}={value!r}: must be one of {', '.join(allowed)}")
