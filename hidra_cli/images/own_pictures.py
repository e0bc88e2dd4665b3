"""One's own pictures: a folder of them with labels, read the way a model's images were prepared."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hidra_cli.api.decoding import Picture, read_picture
from hidra_cli.api.folders import (
    class_folders,
    csv_columns,
    images_below,
    safe_parts,
    shown,
)
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.errors import DataError

LABEL_FILES = ("labels.csv", "labels.json")
_AHEAD = 256  # pictures that are decoded before the first of them is used
LARGEST_LABELS = 1 << 26  # bytes of a label file
LAYOUT = (
    "put the images of each class into a folder of their own (DIR/cat/*.jpg, DIR/dog/*.jpg), or "
    "all into DIR with DIR/labels.csv (columns filename,label) or --labels FILE"
)


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures in files, and their classes.

    Attributes:
        classes: sorted names, N of them.
        paths: n files.
        labels: for each file the index of its class.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    @property
    def shots(self) -> dict[str, int]:
        """How many pictures each class has."""
        counts = Counter(self.labels)
        return {name: counts[index] for index, name in enumerate(self.classes)}

    def within(self, classes: Sequence[str], origin: Path) -> LabelledPictures:
        """The same pictures, labelled by the places of their classes in `classes`.

        Raises:
            DataError: a class is none of these.
        """
        foreign = [name for name in self.classes if name not in classes]
        if foreign:
            raise DataError(
                f"{origin} has a class that is not among those learned: {shown(foreign[0])}",
                why="learned were " + ", ".join(map(shown, classes[:20])),
                fix="name its folders like those of --support",
            )
        places = [list(classes).index(name) for name in self.classes]
        return LabelledPictures(
            tuple(classes), self.paths, tuple(places[label] for label in self.labels)
        )


def labelled_pictures(folder: Path, labels: Path | None = None) -> LabelledPictures:
    """Find the pictures of a folder and their classes.

    A folder per class, nested or not; or a flat folder with a label file: CSV with the columns
    filename and label, or JSON, {"file": "label"}. Classes may differ in size.

    Args:
        folder: the pictures.
        labels: the label file, instead of labels.csv or labels.json in the folder.

    Raises:
        DataError: there is no such folder, no picture, or labels and pictures do not fit.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of pictures", why="it is not a folder", fix=LAYOUT)
    found = labels or next((folder / n for n in LABEL_FILES if (folder / n).is_file()), None)
    by_class = class_folders(folder) if found is None else _from_file(folder, found)
    if not by_class:
        raise DataError(f"{folder} has no classes", why="it holds no folders", fix=LAYOUT)
    classes = tuple(sorted(by_class))
    pairs = [(path, index) for index, name in enumerate(classes) for path in by_class[name]]
    return LabelledPictures(classes, tuple(p for p, _ in pairs), tuple(i for _, i in pairs))


def pictures_in(places: Sequence[Path]) -> list[Path]:
    """The files, and the images in the folders, that a command line names.

    Raises:
        DataError: a place does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = images_below(place)
            if not inside:
                raise DataError(f"{place} holds no image", fix="name images, or a folder of them")
            found += inside
        else:
            found.append(place)
    return found


def read_pictures(paths: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """Decode pictures as a model's images were prepared: (n, C, H, W) in [0, 1].

    Raises:
        DataError: one cannot be read; names it.
    """
    images = []
    for picture in decoded(paths, preprocessing):
        if isinstance(picture, DataError):
            raise picture
        images.append(as_image(picture))
    return torch.stack(images)


def as_image(picture: Picture) -> Tensor:
    """What a model sees of a picture: (C, H, W) in [0, 1]."""
    return torch.from_numpy(picture.pixels.copy()).float().div_(255)


def decoded(paths: Sequence[Path], preprocessing: Preprocessing) -> Iterator[Picture | DataError]:
    """Decode pictures on all cores, in order; one that is damaged comes as its error."""

    def decode(path: Path) -> Picture | DataError:
        try:
            return read_picture(path, preprocessing)
        except DataError as error:
            return error

    # Threads: Pillow decodes without holding Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _AHEAD):
            yield from pool.map(decode, paths[start : start + _AHEAD])


def _from_file(folder: Path, file: Path) -> dict[str, list[Path]]:
    by_class: dict[str, list[Path]] = {}
    try:
        if file.suffix.lower() == ".json":
            pairs = _json_pairs(file)
        else:
            pairs = [(name, label) for name, label in csv_columns(file, ("filename", "label"))]
    except (OSError, ValueError, RecursionError) as exc:
        raise DataError(
            f"the label file {file} cannot be used",
            why=shown(str(exc)),
            fix='a CSV file with the columns filename,label, or JSON: {"1.png": "cat"}',
        ) from exc
    for name, label in pairs:
        path = folder.joinpath(*safe_parts(name, file))
        if not path.is_file():
            raise DataError(
                f"the label file {file} names {shown(name)}, which is not in {folder}",
                fix="put the picture there, or take its line out",
            )
        if not label.strip() or not label.isprintable():
            raise DataError(f"the label of {shown(name)} in {file} is {label!r}", fix="name it")
        by_class.setdefault(label.strip(), []).append(path)
    if not by_class:
        raise DataError(f"the label file {file} has no line", fix="write one for each picture")
    return {label: sorted(set(paths)) for label, paths in by_class.items()}


def _json_pairs(file: Path) -> list[tuple[str, str]]:
    if file.stat().st_size > LARGEST_LABELS:
        raise ValueError(f"it is larger than {LARGEST_LABELS} bytes")
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or not all(isinstance(v, str) for v in content.values()):
        raise ValueError("it is not an object of texts")
    return list(content.items())
