"""miniImageNet: 100 classes of ImageNet with 600 images each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from hidra_cli.api import (
    DataError,
    Dataset,
    ImageClass,
    Split,
    class_folders,
    csv_columns,
    safe_parts,
    shown,
)

from .sources import SPLITS, check_size, image_classes, split_file

ACCEPTED = (
    "obtain the images under ImageNet's terms of access (https://image-net.org), put them into "
    "one folder DIR and run: hidra prepare miniimagenet --source DIR. DIR holds either "
    "images/*.jpg with train.csv, val.csv and test.csv (columns filename,label) in DIR, "
    "DIR/splits or DIR/csv; or the folders train, val and test, each with class folders; or the "
    "100 class folders named by WordNet id (n01532829, ...), or parts of them in train and val"
)

COLUMNS = ("filename", "label")


class MiniImageNet(Dataset):
    """miniImageNet from the user's folder: its licence forbids hidra to download it.

    The class split is the one in the source: its csv files or its train, val and test folders.
    Class folders without a split get the split of Ravi and Larochelle 2017 (64/16/20 classes). So
    do folders that each hold some images of all classes: all images of a class are put together.
    """

    api_version = 1
    title = "miniImageNet"
    licence = "ImageNet terms of access: research and education, not to be passed on"
    citation = (
        "Vinyals et al. 2016, Matching Networks for One Shot Learning; "
        "Ravi and Larochelle 2017, Optimization as a Model for Few-Shot Learning (class split); "
        "Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge"
    )
    homepage = "https://openreview.net/forum?id=rJY0-Kcll"

    def __init__(
        self,
        source: Path | None,
        *,
        size: Annotated[int, "height and width of the prepared images, in pixels"] = 84,
    ) -> None:
        self.image_shape = (3, check_size(size), size)
        self.source = source

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        """Return every class of the source.

        Raises:
            DataError: no source, not one of the accepted layouts, listed images are missing, or
                a class is in two splits.
        """
        if self.source is None:
            raise DataError(
                "miniImageNet has to be obtained by yourself",
                why="ImageNet's terms do not allow passing its images on, so there is no download",
                fix=ACCEPTED,
            )
        if not self.source.is_dir():
            raise unknown_layout(self.source, "it is not a folder")
        lists = [
            folder
            for folder in (self.source, self.source / "splits", self.source / "csv")
            if any((folder / f"{split}.csv").is_file() for split in SPLITS)
        ]
        images = self.source / "images"
        by_split = from_csv(images, lists[0]) if lists else from_folders(self.source)
        classes: list[ImageClass] = image_classes(by_split, self.source)
        return classes


def from_csv(images: Path, folder: Path) -> dict[Split, dict[str, list[Path]]]:
    """Return the images of each class listed in train.csv, val.csv and test.csv.

    Raises:
        DataError: a csv file or listed images are missing, or a csv file cannot be read.
    """
    by_split: dict[Split, dict[str, list[Path]]] = {}
    for split in SPLITS:
        by_split[split] = {}
        for name, label in read_csv(folder / f"{split}.csv"):
            by_split[split].setdefault(label, []).append(images / name)
    listed = [path for split in by_split.values() for paths in split.values() for path in paths]
    missing = [path for path in listed if not path.is_file()]
    if missing:
        raise DataError(
            "miniImageNet is incomplete",
            why=f"{len(missing)} of {len(listed)} images listed in {folder} are missing, "
            f"first {missing[0]}",
            fix=f"put the missing images into {images}",
        )
    return by_split


def read_csv(path: Path) -> list[tuple[str, str]]:
    """Return the distinct (filename, label) rows of a csv file, sorted.

    Raises:
        DataError: the file is missing, has other columns, no rows, or unsafe names.
    """
    try:
        rows = csv_columns(path, COLUMNS)
    except (OSError, ValueError) as error:
        why = f"cannot read {path.name}: {shown(str(error))}"
        raise unknown_layout(path.parent, why) from error
    for row in rows:
        for field in row:
            safe_parts(field, path)
    return [(name, label) for name, label in rows]


def from_folders(source: Path) -> dict[Split, dict[str, list[Path]]]:
    """Return the images of each class folder in train/, val/ and test/, or in the source itself.

    Raises:
        DataError: neither layout, or a class folder has no images.
    """
    parts = {split: class_folders(source / split) for split in SPLITS if (source / split).is_dir()}
    if not parts:
        return published_split(
            class_folders(source), source, "neither train.csv nor a folder train"
        )
    together: dict[str, list[Path]] = {}
    for classes in parts.values():
        for label, images in classes.items():
            together.setdefault(label, []).extend(images)
    in_several = sum(map(len, parts.values())) > len(together)
    if in_several and any(label in together for label in split_file("miniimagenet-ravi")["test"]):
        return published_split(together, source, "the same classes in several folders")
    absent = [split for split in SPLITS if split not in parts]
    if absent:
        raise unknown_layout(source, f"it has no folder {absent[0]}")
    empty = [split for split in SPLITS if not parts[split]]
    if empty:
        raise unknown_layout(source, f"its folder {empty[0]} has no class folders")
    return parts


def published_split(
    classes: dict[str, list[Path]], source: Path, layout: str
) -> dict[Split, dict[str, list[Path]]]:
    """Return the classes by the split of Ravi and Larochelle 2017.

    Raises:
        DataError: some of the 100 classes are missing.
    """
    published = split_file("miniimagenet-ravi")
    wanted = [label for split in SPLITS for label in published[split]]
    absent = [label for label in wanted if label not in classes]
    if absent:
        count = f"{len(wanted) - len(absent)} of {len(wanted)} class folders"
        raise unknown_layout(source, f"it has {layout}, and {count}")
    return {split: {label: classes[label] for label in published[split]} for split in SPLITS}


def unknown_layout(place: Path, why: str) -> DataError:
    """Return the error for a source in none of the accepted layouts."""
    return DataError(f"cannot find miniImageNet in {place}", why=why, fix=ACCEPTED)
