"""Label files: which picture is of which class, as spreadsheets and programs write it.

For dataset plugins, and for the program where it reads a folder of pictures itself.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from hidra_cli.api.folders import LONGEST_NAME, as_seen, images_below, shown
from hidra_cli.errors import DataError

LABEL_FILES = ("labels.csv", "labels.json")
LARGEST_LABELS = 1 << 26  # bytes of a label file
# The first of them that a file has is used.
FILE_COLUMNS = (
    "filename", "file_name", "file", "filepath", "file_path", "path", "image_path", "image",
    "image_name", "img", "picture", "image_id", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "class", "category", "class_name", "label_name", "category_name", "labels", "target",
    "species", "breed", "class_id", "category_id",
)  # fmt: skip
_DELIMITERS = (",", ";", "\t")
_FIX = 'a CSV file with the columns filename,label, or JSON: {"1.png": "cat"}'
_NAMED = 5  # of several faults, so many are named


def label_file_in(folder: Path) -> Path | None:
    """Return the label file that lies in a folder of pictures.

    Raises:
        DataError: there are several.
    """
    present = [folder / name for name in LABEL_FILES if (folder / name).is_file()]
    if len(present) > 1:
        raise DataError(
            f"{folder} has two label files",
            why=" and ".join(path.name for path in present),
            fix="keep one of them",
        )
    return present[0] if present else None


def labelled_images(
    folder: Path, file: Path, left_out: Counter[str], *, in_folder: bool = False
) -> dict[str, list[Path]]:
    """Return the images of each class that a label file names.

    Names are relative to the folder or to the label file, or absolute; the ending may be missing.

    Args:
        folder: the pictures.
        file: CSV with a column of files and one of classes, or JSON.
        left_out: counts the images of the folder that the file does not name.
        in_folder: the file was found in the folder, and nobody named it.

    Raises:
        DataError: the file cannot be read, contradicts itself, names files that are not there, or
            was found beside class folders whose images it does not name.
    """
    rows = _rows(file)
    images = _Images(folder, file)
    labels: dict[Path, str] = {}
    missing: list[str] = []
    contradictions: list[str] = []
    for name, label in rows:
        path = images.find(name)
        if path is None:
            missing.append(name)
        elif labels.setdefault(path, label) != label:
            contradictions.append(f"{shown(name)} is {shown(labels[path])} and {shown(label)}")
    if missing:
        raise DataError(
            f"the label file {file} names {shown(missing[0])}, which is not in {folder}",
            why=_several(len(missing), "pictures are not there", map(shown, missing)),
            fix="put the pictures there, or take their lines out",
        )
    if contradictions:
        raise DataError(
            f"the label file {file} contradicts itself",
            why=_several(len(contradictions), "contradictions", contradictions),
            fix="give each picture one label",
        )
    rest = [path for path in images.below if path not in labels]
    if in_folder and any(path.parent != folder for path in rest):
        raise DataError(
            f"{folder} has a label file and class folders, and they disagree",
            why=f"{file.name} names {len(labels)} of the {len(labels) + len(rest)} images there",
            fix=f"remove {file.name}, or move the images that it does not name elsewhere",
        )
    if rest:
        left_out["images without a label"] += len(rest)
    classes = defaultdict(list)
    for path, label in labels.items():
        classes[label].append(path)
    return {label: sorted(paths) for label, paths in classes.items()}


def _several(count: int, what: str, names: Iterable[str]) -> str:
    first = [name for name, _ in zip(names, range(_NAMED), strict=False)]
    return f"{count} {what}: {', '.join(first)}{', …' if count > _NAMED else ''}"


class _Images:
    """The images below a folder, found by what label files call them."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder, self.file = folder, file
        self.below = images_below(folder)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.below:
            name = as_seen(path.relative_to(folder).as_posix())
            bare = str(PurePosixPath(name).with_suffix(""))
            for key in dict.fromkeys((name, name.casefold(), bare, bare.casefold())):
                self._by_name[key].append(path)

    def find(self, name: str) -> Path | None:
        """The one image of this name, or None."""
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            self._check(spelled)
            place = str(PurePosixPath(as_seen(spelled)))
            for key in (place, place.casefold()):
                if len(paths := self._by_name.get(key, [])) == 1:
                    return paths[0]
            for path in (self.folder / spelled, self.file.parent / spelled):
                try:
                    if path.is_file():
                        return self._known(path)
                except OSError:  # such as a name that is too long
                    continue
        return None

    def _known(self, path: Path) -> Path:
        """The path of an image below the folder, where it is one."""
        name = path.resolve()
        inside = name.is_relative_to(root := self.folder.resolve())
        return self.folder / name.relative_to(root) if inside else path

    def _check(self, name: str) -> None:
        if ".." in PurePosixPath(name).parts or not name.isprintable() or len(name) > LONGEST_NAME:
            raise DataError(
                f"cannot use the label file {self.file}",
                why=f"it names {shown(name)!r}, which is not a plain relative name",
                fix=f"name files inside {self.folder}, or write their whole paths",
            )


def _rows(file: Path) -> list[tuple[str, str]]:
    """(file, label) of each line.

    Raises:
        DataError: it cannot be read, or has an empty name or label.
    """
    try:
        text = _text(file)
        rows = _json_rows(text) if file.suffix.lower() == ".json" else _csv_rows(text)
    except (OSError, ValueError, RecursionError, csv.Error) as exc:
        why = shown(str(exc))
        raise DataError(f"the label file {file} cannot be used", why=why, fix=_FIX) from exc
    if not rows:
        raise DataError(f"the label file {file} has no line", fix="write one for each picture")
    for name, label in rows:
        if not name:
            raise DataError(f"the label file {file} has a line without a picture", fix="name it")
        if not label or not label.isprintable() or len(label) > LONGEST_NAME:
            what = f"the label of {shown(name)} in {file} is {shown(label)!r}"
            raise DataError(what, fix="write the name of its class")
    return rows


def _text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark."""
    if not file.is_file():
        raise ValueError("it is not there, or not a file")
    if file.stat().st_size > LARGEST_LABELS:
        raise ValueError(f"it is larger than {LARGEST_LABELS} bytes")
    content = file.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def _json_rows(text: str) -> list[tuple[str, str]]:
    """{"1.png": "cat"}, or [{"file": "1.png", "label": "cat"}]."""
    pairs: list[tuple[Any, Any]] = []

    def object_pairs(entries: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return entries  # a dict would keep the last of two equal keys

    content = json.loads(text, object_pairs_hook=object_pairs)
    is_object = isinstance(content, list) and all(isinstance(e, tuple) for e in content)
    if is_object:
        pairs = content
    elif isinstance(content, list) and all(isinstance(e, list) for e in content):
        for entry in content:
            if not all(isinstance(field, tuple) for field in entry):
                raise ValueError("it is not a list of objects")
            names = [str(name) for name, _ in entry]
            file, label = _columns(names)
            pairs.append((entry[file][1], entry[label][1]))
    else:
        raise ValueError("it is neither an object of texts nor a list of objects")
    for name, label in pairs:
        whole = isinstance(label, int) and not isinstance(label, bool)
        if not isinstance(name, str) or not (whole or isinstance(label, str)):
            raise ValueError(f"the label of {shown(str(name))} is neither text nor a whole number")
    return [(name.strip(), as_seen(str(label)).strip()) for name, label in pairs]


def _csv_rows(text: str) -> list[tuple[str, str]]:
    first = text.split("\n", 1)[0].strip()
    delimiters: Sequence[str] = _DELIMITERS
    if first.lower().startswith("sep=") and len(first) == 5:  # what Excel writes
        delimiters, text = (first[4],), text.split("\n", 1)[1] if "\n" in text else ""
    delimiter = max(delimiters, key=lambda mark: text.split("\n", 1)[0].count(mark))
    lines = [
        line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if line
    ]
    if not lines:
        return []
    file, label = _columns(lines[0])
    return [
        (_field(line, file).strip(), as_seen(_field(line, label)).strip())
        for line in lines[1:]
        if any(field.strip() for field in line)
    ]


def _field(line: list[str], place: int) -> str:
    return line[place] if place < len(line) else ""


def _columns(header: Sequence[str]) -> tuple[int, int]:
    """The places of the files and of the classes.

    Raises:
        ValueError: there are none; names the columns.
    """
    names = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in header]
    places: Mapping[str, int] = {name: place for place, name in reversed([*enumerate(names)])}
    file = next((places[name] for name in FILE_COLUMNS if name in places), None)
    label = next((places[name] for name in LABEL_COLUMNS if name in places), None)
    if file is None or label is None:
        raise ValueError(
            f"it has the columns {', '.join(map(shown, header))}; it needs filename and label"
        )
    return file, label
