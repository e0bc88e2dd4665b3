"""Shared by the dataset plugins: listing images, reading split files, downloads, errors."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from hidra_cli.api import (
    ArchiveMember,
    DataError,
    ImageClass,
    Split,
    images_below,
    is_hidden,
    is_image,
)

from .archives import check_member, zip_members

SPLITS: tuple[Split, ...] = get_args(Split)

Tree = dict[tuple[str, ...], list[Any]]
"""The images directly in each folder, keyed by the folder's names below the root."""


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


def image_classes(
    by_split: Mapping[Split, Mapping[str, Collection[Any]]],
    origin: Path,
    fix: str = "keep all images of a class in one split",
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
                    fix=fix,
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
