"""The user's images: a folder with one folder per class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from hidra_cli.api import (
    DataError,
    Dataset,
    ImageClass,
    Split,
    class_folders,
    counted,
    entries,
    images_below,
    label_file_in,
    labelled_images,
)
from hidra_cli.api.folders import SPLIT_FOLDERS

from .sources import (
    SPLITS,
    check_size,
    image_classes,
)

LAYOUT = (
    "give --source DIR with one folder of images per class (DIR/cat/*.jpg, DIR/dog/*.jpg), or "
    "with such class folders inside DIR/train, DIR/val and DIR/test; or with all images and "
    "DIR/labels.csv (columns filename,label)"
)


class Folder(Dataset):
    """Images in class folders, of any format that Pillow reads and in any numbers.

    A folder inside a class folder belongs to the class. If the source has train/ (training/),
    val/ (valid/, validation/, dev/) or test/ (testing/) with class folders inside, these are the
    class split; otherwise the classes, sorted by name, are shuffled with `split_seed` and divided
    by `fractions`. A labels.csv or labels.json in the source does for class folders.
    """

    api_version = 1
    title = "Own images, one folder per class"
    licence = "that of the images"
    source_is_identity = True

    def __init__(
        self,
        source: Path | None,
        *,
        size: Annotated[int, "height and width of the prepared images, in pixels"] = 84,
        colour: Annotated[bool, "prepare RGB images; otherwise grey ones"] = True,
        split_seed: Annotated[int, "seed of the class split, if the source has none"] = 0,
        fractions: Annotated[
            str, "fractions of the classes for train, val and test, if the source has no split"
        ] = "0.64,0.16,0.20",
    ) -> None:
        if not 0 <= split_seed < 2**63:
            raise ValueError(f"split_seed={split_seed}: must be from 0 to 2^63 - 1")
        self.image_shape = (3 if colour else 1, check_size(size), size)
        self.source = source
        self.split_seed = split_seed
        self.fractions = parse_fractions(fractions)

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        """Return every class folder.

        Raises:
            DataError: no source, no class folders, a class folder without images, or a class in
                two splits.
        """
        if self.source is None or not self.source.is_dir():
            why = "no source was given" if self.source is None else f"{self.source} is no folder"
            raise DataError("the dataset folder needs a folder of images", why=why, fix=LAYOUT)
        left_out: Counter[str] = Counter()
        file = label_file_in(self.source)
        if file is not None:
            labelled = labelled_images(self.source, file, left_out, in_folder=True)
            by_split = self._seeded_split(labelled)
        else:
            by_split = given_split(self.source, left_out)
            by_split = by_split or self._seeded_split(class_folders(self.source, left_out))
        self.notes = [f"left out {counted(left_out)}"] if left_out else []
        part = next((e.name for e in entries(self.source) if is_part(e.name, "train")), "train")
        fix = f"keep all images of a class in one split, or give --source {self.source / part}"
        classes: list[ImageClass] = image_classes(by_split, self.source, fix)
        return classes

    def _seeded_split(self, images: dict[str, list[Path]]) -> dict[Split, dict[str, list[Path]]]:
        """Divide classes by `fractions`."""
        import numpy as np

        if not images:
            raise DataError(
                f"cannot find classes in {self.source}", why="it holds no folders", fix=LAYOUT
            )
        if len(images) > 1 and all(name.casefold() in SPLIT_FOLDERS for name in images):
            raise DataError(
                f"{self.source} holds the parts of a split, not classes",
                why="its folders are " + ", ".join(sorted(images)),
                fix=LAYOUT,
            )
        order = np.random.Generator(np.random.Philox(key=self.split_seed)).permutation(len(images))
        shuffled = [sorted(images)[index] for index in order]
        by_split: dict[Split, dict[str, list[Path]]] = {}
        for split, count in zip(SPLITS, divide(len(images), self.fractions), strict=True):
            by_split[split] = {name: images[name] for name in shuffled[:count]}
            del shuffled[:count]
        return by_split


def is_part(name: str, split: Split) -> bool:
    """Return whether a folder has the name of a split: train, val or test."""
    return SPLIT_FOLDERS.get(name.casefold()) == split


def given_split(source: Path, left_out: Counter[str]) -> dict[Split, dict[str, list[Path]]]:
    """Return the class folders inside train/, val/ and test/; empty if there are none.

    Raises:
        DataError: other folders with images lie beside them, so the layout is unclear.
    """
    by_split: dict[Split, dict[str, list[Path]]] = {}
    others = []
    for entry in entries(source):
        if not entry.is_dir():
            continue
        split = SPLIT_FOLDERS.get(entry.name.casefold())
        folder = Path(entry.path)
        if split is None or not holds_class_folders(folder):
            others.append(folder)
            continue
        if split in by_split:
            raise DataError(
                f"cannot use the class split of {source}",
                why=f"{entry.name!r} is one of two folders for {split}",
                fix="keep one of them",
            )
        by_split[split] = class_folders(folder, left_out)
    unclear = [folder for folder in others if by_split and images_below(folder)]
    if unclear:
        raise DataError(
            f"cannot tell the classes of {source}",
            why=f"it is split into train, val or test, but {unclear[0].name!r} beside them holds "
            "images that are in no class folder of these",
            fix=f"move {unclear[0]} elsewhere, or " + LAYOUT,
        )
    return by_split


def holds_class_folders(folder: Path) -> bool:
    """Return whether a folder contains a folder with images."""
    return any(entry.is_dir() and images_below(Path(entry.path)) for entry in entries(folder))


def parse_fractions(text: str) -> tuple[float, ...]:
    """Read three numbers that sum to 1; raise ValueError for anything else."""
    allowed = "must be three numbers for train,val,test, none negative, that sum to 1"
    try:
        fractions = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"fractions={text!r}: {allowed}, such as 0.64,0.16,0.20") from None
    right = len(fractions) == len(SPLITS) and all(number >= 0 for number in fractions)
    if not right or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(f"fractions={text!r}: {allowed}, such as 0.64,0.16,0.20")
    return fractions


def divide(number: int, fractions: tuple[float, ...]) -> list[int]:
    """Divide a number of classes by fractions, largest remainders first.

    With enough classes, every part with a nonzero fraction gets at least one.
    """
    exact = [number * fraction for fraction in fractions]
    # Products such as 100 × 0.29 fall just below the whole number that is meant.
    counts = [math.floor(value + 1e-9) for value in exact]
    remainders = sorted(range(len(counts)), key=lambda part: counts[part] - exact[part])
    for part in remainders[: number - sum(counts)]:
        counts[part] += 1
    empty = [part for part, count in enumerate(counts) if count == 0 and fractions[part] > 0]
    for part in empty if number >= len(fractions) else []:
        counts[counts.index(max(counts))] -= 1
        counts[part] += 1
    return counts
