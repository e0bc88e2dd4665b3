"""Labelled pictures in a folder: a folder per class, or a label file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hidra_cli.api.folders import SPLIT_FOLDERS, class_folders, counted, images_below, shown
from hidra_cli.api.label_files import label_file_in, labelled_images
from hidra_cli.errors import DataError, UsageError

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
        left_out: how many files were left out, by what they are.
        notes: lines that people should read.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def within(self, classes: Sequence[str], origin: Path) -> LabelledPictures:
        """The same pictures, labelled by the places of their classes in `classes`.

        Raises:
            DataError: a class is none of these.
        """
        same, notes = same_names(self.classes, classes)
        foreign = [name for name in self.classes if same[name] not in classes]
        if foreign:
            raise DataError(
                f"{origin} has a class that is not among those learned: {shown(foreign[0])}",
                why="learned were " + ", ".join(map(shown, classes[:20])),
                fix="name its folders like those of --support",
            )
        places = [list(classes).index(same[name]) for name in self.classes]
        labels = tuple(places[label] for label in self.labels)
        return replace(self, classes=tuple(classes), labels=labels, notes=(*self.notes, *notes))

    def called_as(self, classes: Sequence[str]) -> LabelledPictures:
        """The same pictures; a class that differs from one of `classes` in case is that one."""
        same, notes = same_names(self.classes, classes)
        names = tuple(sorted({same[name] for name in self.classes}))
        labels = tuple(names.index(same[self.classes[label]]) for label in self.labels)
        return replace(self, classes=names, labels=labels, notes=(*self.notes, *notes))

    def without(self, damaged: set[Path]) -> LabelledPictures:
        """The same pictures but for these; every class stays."""
        kept = [
            (path, label)
            for path, label in zip(self.paths, self.labels, strict=True)
            if path not in damaged
        ]
        paths, labels = tuple(path for path, _ in kept), tuple(label for _, label in kept)
        return replace(self, paths=paths, labels=labels)


def same_names(names: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """For each name the known one that it is, but for case, else itself; and what to say of it."""
    by_folded: dict[str, list[str]] = {}
    for name in known:
        by_folded.setdefault(name.casefold(), []).append(name)
    same, notes = {}, []
    for name in names:
        alike = by_folded.get(name.casefold(), [])
        same[name] = alike[0] if name not in known and len(alike) == 1 else name
        if same[name] != name:
            notes.append(f"the class {shown(name)} is taken for {shown(same[name])}")
    return same, notes


def labelled_pictures(
    folder: Path, labels: Path | None = None, *, may_be_empty: bool = False
) -> LabelledPictures:
    """Find the pictures of a folder and their classes.

    A folder per class, nested or not; or a flat folder with a label file: CSV with the columns
    filename and label, or JSON, {"file": "label"}. Classes may differ in size.

    Args:
        folder: the pictures.
        labels: the label file, instead of labels.csv or labels.json in the folder.
        may_be_empty: whether a class folder may hold no picture, as in a query.

    Raises:
        DataError: there is no such folder, no picture, or labels and pictures do not fit.
        UsageError: the folders are those of a split, or there is one more folder around them.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of pictures", why="it is not a folder", fix=LAYOUT)
    left_out: Counter[str] = Counter()
    if labels is not None:
        by_class = labelled_images(folder, labels, left_out)
    elif (inside := label_file_in(folder)) is not None:
        by_class = labelled_images(folder, inside, left_out, in_folder=True)
    else:
        by_class = class_folders(folder, left_out, may_be_empty=may_be_empty)
        _check_no_split(folder, by_class)
    if not any(by_class.values()):
        why = "it holds no pictures in class folders"
        why += f", but {counted(left_out)}" if left_out else ""
        raise DataError(f"{folder} has no classes", why=why, fix=LAYOUT)
    classes = tuple(sorted(by_class))
    pairs = [(path, index) for index, name in enumerate(classes) for path in by_class[name]]
    notes = tuple(_alike_but_for_case(classes))
    paths, places = tuple(path for path, _ in pairs), tuple(index for _, index in pairs)
    return LabelledPictures(classes, paths, places, dict(left_out), notes)


def _alike_but_for_case(classes: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    return [
        f"the classes {shown(first[name.casefold()])} and {shown(name)} differ only in case"
        for name in classes
        if first.setdefault(name.casefold(), name) != name
    ]


def _check_no_split(folder: Path, by_class: Mapping[str, Sequence[Path]]) -> None:
    """Refuse folders such as train and val, and one folder around the class folders."""
    split = [name for name in by_class if name.casefold() in SPLIT_FOLDERS]
    nested = [name for name in by_class if _holds_folders(folder, by_class[name])]
    only_splits = len(split) == len(by_class)
    if ((only_splits or nested) and len(split) > 1) or (split and only_splits and nested):
        part = {SPLIT_FOLDERS[name.casefold()]: folder / name for name in split}
        learned = part.get("train", folder / split[0])
        asked = part.get("test", part.get("val", learned))
        query = "" if asked == learned else f" --query {asked}"
        raise UsageError(
            f"{folder} holds the parts of a split, not classes",
            why="its folders are " + ", ".join(map(shown, by_class)),
            fix=f"name the part to learn: {shown(f'--support {learned}{query}')}",
        )
    if len(by_class) == 1 and nested:
        raise UsageError(
            f"{folder} holds one folder, and the class folders are inside it",
            why=f"the folder is {shown(nested[0])}",
            fix=f"name the inner folder: {shown(str(folder / nested[0]))}",
        )


def _holds_folders(folder: Path, images: Sequence[Path]) -> bool:
    """Whether the images of a class folder are in several folders of it, and not beside them."""
    parts = [path.relative_to(folder).parts for path in images]
    return len({part[1] for part in parts}) > 1 and all(len(part) > 2 for part in parts)


def pictures_in(places: Sequence[Path]) -> tuple[list[Path], Counter[str]]:
    """The files, and the images in the folders, that a command line names; what was left out.

    Raises:
        DataError: a place does not exist, or a folder holds no image.
    """
    paths: list[Path] = []
    left_out: Counter[str] = Counter()
    for place in places:
        if not place.is_dir():
            paths.append(place)
            continue
        inside = images_below(place, left_out)
        if not inside:
            why = f"it holds {counted(left_out)}" if left_out else "it is empty"
            raise DataError(
                f"{place} holds no image", why=why, fix="name images, or a folder of them"
            )
        paths += inside
    return paths, left_out
