"""What the dataset plugins share: listing images, reading split files, downloads, errors."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zipfile
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args

from hidra_cli.api import ArchiveMember, DataError, ImageClass, Split

SPLITS: tuple[Split, ...] = get_args(Split)

Tree = dict[tuple[str, ...], list[Any]]
"""The images directly in each folder, keyed by the folder's names below the root."""

# Pillow knows these by name, but writes them only or cannot decode them by itself.
UNREADABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings, in lower case, of every format that Pillow reads."""
    from PIL import Image

    endings = Image.registered_extensions().items()
    return frozenset(ending.lower() for ending, kind in endings if kind not in UNREADABLE)


def is_image(name: str) -> bool:
    """Tell whether a file name ends like an image, in upper or lower case."""
    return PurePosixPath(name).suffix.lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Tell whether a name is hidden, or what macOS adds to its zip archives."""
    return name.startswith(".") or name == "__MACOSX"


def safe_parts(name: str, origin: Path) -> tuple[str, ...]:
    """Split a name found inside a file into its parts.

    Raises:
        DataError: the name is empty, absolute, leads upwards or has unprintable characters.
    """
    path = PurePosixPath(name)
    rooted = path.is_absolute() or "\\" in name or PureWindowsPath(name).drive != ""
    if not path.parts or rooted or ".." in path.parts or not name.isprintable():
        raise DataError(
            f"cannot use {origin}",
            why=f"it names {name!r}, which is not a plain relative name",
            fix="get this file again from where it is published",
        )
    return path.parts


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
            f"cannot read the folder {folder}",
            why=str(error),
            fix="make the folder readable, or give another one with --source",
        ) from error
    if links:
        raise DataError(
            f"cannot use the folder {folder}",
            why=f"{links[0]} is a link to a folder; only links to files are followed",
            fix="replace the link by the folder itself",
        )
    return found


def images_below(folder: Path) -> list[Path]:
    """Return every image in a folder and in the folders inside it, in a fixed order.

    Raises:
        DataError: a folder cannot be read, or is a link.
    """
    images: list[Path] = []
    for entry in entries(folder):
        if entry.is_dir():
            images += images_below(Path(entry.path))
        elif is_image(entry.name):
            if not entry.is_file():
                raise DataError(
                    f"cannot read the image {entry.path}",
                    why="it is a link to nothing, or not a file",
                    fix="remove it, or restore the file it should be",
                )
            images.append(Path(entry.path))
    return images


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
        DataError: not a zip archive, damaged, or with unsafe names.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = {info.filename for info in opened.infolist() if not info.is_dir()}
    except Exception as error:  # a damaged index can raise nearly anything
        raise DataError(
            f"cannot read {archive}",
            why=f"it is not a zip archive, or damaged: {error}",
            fix="get the archive again",
        ) from error
    tree: Tree = {}
    for name in sorted(names):
        parts = safe_parts(name, archive)
        if is_image(parts[-1]) and not any(is_hidden(part) for part in parts):
            tree.setdefault(parts[:-1], []).append(ArchiveMember(archive, name))
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
                f"cannot use the class folder {entry.path}",
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
