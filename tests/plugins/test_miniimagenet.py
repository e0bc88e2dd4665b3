"""miniImageNet: the accepted layouts and what is wrong with others."""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hidra_cli.api import DataError, ImageClass
from hidra_cli.api.folders import LARGEST_CSV
from hidra_plugins.datasets.miniimagenet import MiniImageNet
from hidra_plugins.datasets.sources import split_file

NOWHERE = Path("nowhere")
WriteImage = Callable[[Path], Path]
LABELS = {"train": ["n03", "n01"], "val": ["n05"], "test": ["n02", "n04"]}
Rows = dict[str, list[tuple[str, str]]]


def classes(source: Path) -> list[ImageClass]:
    return list(MiniImageNet(source).classes(NOWHERE))


def summary(source: Path) -> list[tuple[str, str, list[str]]]:
    return [(c.name, c.split, [path.name for path in c.images]) for c in classes(source)]


EXPECTED = [
    (label, split, [f"{label}_{number}.jpg" for number in range(3)])
    for split, labels in LABELS.items()
    for label in sorted(labels)
]


def listed() -> Rows:
    return {
        split: [(f"{label}_{n}.jpg", label) for n in (2, 0, 1) for label in labels]
        for split, labels in LABELS.items()
    }


def write_csv(folder: Path, rows: Rows, header: tuple[str, str] = ("filename", "label")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])


@pytest.fixture
def with_images(tmp_path: Path, write_image: WriteImage) -> Path:
    """A source with images/ only."""
    for rows in listed().values():
        for name, _ in rows:
            write_image(tmp_path / "images" / name)
    return tmp_path


@pytest.mark.parametrize("place", [".", "splits", "csv"])
def test_csv_layout(with_images: Path, place: str) -> None:
    write_csv(with_images / place, listed())
    assert summary(with_images) == EXPECTED


def test_folder_layout(tmp_path: Path, write_image: WriteImage) -> None:
    for split, rows in listed().items():
        for name, label in rows:
            write_image(tmp_path / split / label / name)
    (tmp_path / "train" / "README.txt").write_text("not a class")
    assert summary(tmp_path) == EXPECTED


def test_class_folders_get_the_published_split(tmp_path: Path, write_image: WriteImage) -> None:
    image = write_image(tmp_path / "image.jpg")
    published = split_file("miniimagenet-ravi")
    for label in [label for labels in published.values() for label in labels]:
        (tmp_path / "all" / label).mkdir(parents=True)
        shutil.copy(image, tmp_path / "all" / label)
    found = classes(tmp_path / "all")
    assert Counter(c.split for c in found) == {"train": 64, "val": 16, "test": 20}
    assert all(c.name in published[c.split] for c in found)
    shutil.rmtree(tmp_path / "all" / published["test"][0])
    with pytest.raises(DataError, match="99 of 100 class folders"):
        classes(tmp_path / "all")


def test_folders_that_hold_parts_of_every_class_are_put_together(
    tmp_path: Path, write_image: WriteImage
) -> None:
    """The public copy has all classes in train/ and in val/, 500 and 100 images of each."""
    image = write_image(tmp_path / "image.jpg")
    published = split_file("miniimagenet-ravi")
    labels = [label for names in published.values() for label in names]
    for part, numbers in (("train", (0, 1)), ("val", (2,))):
        for label in labels:
            (tmp_path / "all" / part / label).mkdir(parents=True)
            for number in numbers:
                shutil.copy(image, tmp_path / "all" / part / label / f"{label}_{number}.jpg")
    merged = classes(tmp_path / "all")
    assert Counter(c.split for c in merged) == {"train": 64, "val": 16, "test": 20}
    for one in merged:
        assert one.name in published[one.split]
        assert [path.name for path in one.images] == [f"{one.name}_{n}.jpg" for n in range(3)]
    for part in ("train", "val"):
        shutil.rmtree(tmp_path / "all" / part / labels[0])
    with pytest.raises(DataError, match="99 of 100 class folders"):
        classes(tmp_path / "all")


def test_source_is_required_and_every_layout_listed() -> None:
    with pytest.raises(DataError) as caught:
        list(MiniImageNet(None).classes(NOWHERE))
    assert "terms" in caught.value.why
    for hint in ("--source DIR", "train.csv", "filename,label", "class folders", "n01532829"):
        assert hint in caught.value.fix


def test_missing_images_are_counted_and_the_first_named(with_images: Path) -> None:
    write_csv(with_images, listed())
    for name in ("n02_1.jpg", "n04_0.jpg"):
        (with_images / "images" / name).unlink()
    with pytest.raises(DataError, match=r"2 of 15 .*n02_1\.jpg"):
        classes(with_images)


def test_missing_csv_is_named(with_images: Path) -> None:
    rows = listed()
    del rows["val"]
    write_csv(with_images, rows)
    with pytest.raises(DataError, match=r"val\.csv"):
        classes(with_images)


@pytest.mark.parametrize("header", [("file", "label"), ("filename", "class")])
def test_other_columns_are_refused(with_images: Path, header: tuple[str, str]) -> None:
    write_csv(with_images, listed(), header)
    with pytest.raises(DataError, match="filename and label"):
        classes(with_images)


@pytest.mark.parametrize("content", [b"", b"filename,label\n", b"\xff\xfe\x00", b"\x00"])
def test_unreadable_csv_is_refused(with_images: Path, content: bytes) -> None:
    write_csv(with_images, listed())
    (with_images / "test.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.csv"):
        classes(with_images)


HEADER = b"filename,label\n"


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"x" * 200_000 + b",n01\n",
        HEADER + b"\0.jpg,n01\n",
        HEADER + "n\u00fc.jpg,n01\n".encode("latin1"),
        (HEADER + b"n01.jpg,n01\n").decode().encode("utf-16"),
        HEADER + b"n01.jpg\n",
        HEADER + b'"n01.jpg,n01\n',
        b"x" * (LARGEST_CSV + 1),
    ],
    ids=["long field", "null", "latin1", "utf-16", "one field", "open quote", "large"],
)
def test_damaged_csv_is_refused(with_images: Path, content: bytes) -> None:
    write_csv(with_images, listed())
    (with_images / "test.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.csv") as caught:
        classes(with_images)
    assert len(caught.value.why) < 400


def test_a_pipe_is_no_csv_file(with_images: Path) -> None:
    write_csv(with_images, listed())
    (with_images / "val.csv").unlink()
    os.mkfifo(with_images / "val.csv")
    with pytest.raises(DataError, match=r"val\.csv: it is not there, not a file"):
        classes(with_images)


def test_a_long_header_over_short_lines_takes_no_time(with_images: Path) -> None:
    write_csv(with_images, listed())
    names = b",".join(b"%d" % number for number in range(400_000))
    lines = b"".join(b"%d\n" % number for number in range(400_000))
    (with_images / "train.csv").write_bytes(b"filename,label," + names + b"\n" + lines)
    with pytest.raises(DataError, match="not a plain relative name"):
        classes(with_images)


@pytest.mark.parametrize(
    "row",
    [
        ("../n01_0.jpg", "n01"),
        ("/n01_0.jpg", "n01"),
        ("n01_0.jpg", ""),
        ("a\x1b[2J", "n01"),
        ("a" * 300, "n01"),
    ],
)
def test_unsafe_names_are_refused(with_images: Path, row: tuple[str, str]) -> None:
    rows = listed()
    rows["train"].append(row)
    write_csv(with_images, rows)
    with pytest.raises(DataError, match="not a plain relative name"):
        classes(with_images)


def test_class_in_two_splits_is_refused(with_images: Path) -> None:
    rows = listed()
    rows["test"].append(("n01_0.jpg", "n01"))
    write_csv(with_images, rows)
    with pytest.raises(DataError, match="'n01' is in train and in test"):
        classes(with_images)


def test_folder_in_two_splits_is_refused(tmp_path: Path, write_image: WriteImage) -> None:
    for split in LABELS:
        write_image(tmp_path / split / "n01" / f"{split}.jpg")
    with pytest.raises(DataError, match="'n01' is in train and in val"):
        classes(tmp_path)


@pytest.mark.parametrize("missing", ["train", "val", "test"])
def test_missing_split_folder_is_named(
    tmp_path: Path, write_image: WriteImage, missing: str
) -> None:
    for split in sorted(LABELS.keys() - {missing}):
        write_image(tmp_path / split / f"n_{split}" / "1.jpg")
    with pytest.raises(DataError, match=f"no folder {missing}"):
        classes(tmp_path)
    (tmp_path / missing).mkdir()
    with pytest.raises(DataError, match=f"folder {missing} has no class folders"):
        classes(tmp_path)


def test_unknown_layouts_are_refused(tmp_path: Path, write_image: WriteImage) -> None:
    for source in (write_image(tmp_path / "image.jpg"), tmp_path):
        with pytest.raises(DataError, match="cannot find miniImageNet"):
            classes(source)


def test_size() -> None:
    assert MiniImageNet(None).image_shape == (3, 84, 84)
    with pytest.raises(ValueError, match="size=0"):
        MiniImageNet(None, size=0)
