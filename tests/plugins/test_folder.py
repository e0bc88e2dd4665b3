"""One's own class folders: what counts as a class and an image, and how classes are split."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hidra_cli.api import DataError, ImageClass
from hidra_cli.api.decoding import formats
from hidra_cli.api.folders import image_suffixes
from hidra_plugins.datasets.folder import Folder, divide, parse_fractions

NOWHERE = Path("nowhere")
WriteImage = Callable[[Path], Path]


def classes(source: Path, **options: Any) -> list[ImageClass]:
    return list(Folder(source, **options).classes(NOWHERE))


def names(found: list[ImageClass], split: str) -> list[str]:
    return [c.name for c in found if c.split == split]


@pytest.fixture
def flat(tmp_path: Path, write_image: WriteImage) -> Path:
    """25 class folders, created in no order; class cNN has NN % 3 + 1 images."""
    for number in sorted(range(25), key=lambda n: n * 7 % 25):
        for image in range(number % 3 + 1, 0, -1):
            write_image(tmp_path / "flat" / f"c{number:02}" / f"{image}.png")
    return tmp_path / "flat"


def test_seeded_split_divides_the_classes(flat: Path) -> None:
    found = classes(flat)
    assert Counter(c.split for c in found) == {"train": 16, "val": 4, "test": 5}
    assert sorted(c.name for c in found) == [f"c{number:02}" for number in range(25)]
    for split in ("train", "val", "test"):
        assert names(found, split) == sorted(names(found, split))
    for image_class in found:
        expected = [f"{n + 1}.png" for n in range(int(image_class.name[1:]) % 3 + 1)]
        assert [path.name for path in image_class.images] == expected


def test_split_depends_on_the_seed_and_class_names_only(
    flat: Path, tmp_path: Path, write_image: WriteImage
) -> None:
    for number in range(25):
        write_image(tmp_path / "copy" / f"c{number:02}" / "other.bmp")
    first = {c.name: c.split for c in classes(flat)}
    assert {c.name: c.split for c in classes(tmp_path / "copy")} == first
    seeds = [tuple(names(classes(flat, split_seed=seed), "test")) for seed in range(5)]
    assert len(set(seeds)) == 5


def test_fractions_are_followed(flat: Path) -> None:
    found = classes(flat, fractions="0,0.2,0.8")
    assert Counter(c.split for c in found) == {"val": 5, "test": 20}


@given(
    number=st.integers(3, 200),
    parts=st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50)),
)
def test_every_wanted_split_gets_a_class(number: int, parts: tuple[int, int, int]) -> None:
    fractions = tuple(part / sum(parts) for part in parts)
    counts = divide(number, fractions)
    assert sum(counts) == number
    for count, fraction in zip(counts, fractions, strict=True):
        assert (count > 0) == (fraction > 0)
        assert abs(count - number * fraction) <= 2


@pytest.mark.parametrize("number", [1, 2])
def test_few_classes_are_all_used(number: int) -> None:
    assert sum(divide(number, (0.64, 0.16, 0.2))) == number


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_given_split_is_used(tmp_path: Path, write_image: WriteImage, val: str) -> None:
    for folder, name in (("train", "b"), ("train", "a"), (val, "c"), ("test", "d")):
        write_image(tmp_path / folder / name / "1.png")
    (tmp_path / "train" / "overview.txt").write_text("of the classes")
    (tmp_path / "notes").mkdir()
    found = [(c.name, c.split) for c in classes(tmp_path)]
    assert found == [("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")]


def test_only_train_may_be_given(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "train" / "a" / "1.png")
    assert [(c.name, c.split) for c in classes(tmp_path)] == [("a", "train")]


def test_class_called_train_is_a_class(tmp_path: Path, write_image: WriteImage) -> None:
    for name in ("train", "bus", "tram"):
        write_image(tmp_path / name / "1.png")
    assert sorted(c.name for c in classes(tmp_path)) == ["bus", "train", "tram"]


def test_images_beside_a_given_split_are_refused(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "train" / "a" / "1.png")
    write_image(tmp_path / "extra" / "1.png")
    with pytest.raises(DataError, match="'extra'"):
        classes(tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path: Path, write_image: WriteImage) -> None:
    for folder in ("train", "val", "valid"):
        write_image(tmp_path / folder / f"a_{folder}" / "1.png")
    with pytest.raises(DataError, match="'valid' is one of two folders for val"):
        classes(tmp_path)


@pytest.mark.parametrize("folders", [("train", "test"), ("Training", "Testing")])
def test_class_in_two_splits_is_refused(
    tmp_path: Path, write_image: WriteImage, folders: tuple[str, str]
) -> None:
    for folder in folders:
        write_image(tmp_path / folder / "cat" / "1.png")
    with pytest.raises(DataError, match="'cat' is in train and in test") as caught:
        classes(tmp_path)
    assert f"--source {tmp_path / folders[0]}" in caught.value.fix


def test_folders_called_like_a_split_are_no_classes(
    tmp_path: Path, write_image: WriteImage
) -> None:
    for folder in ("Training", "Testing"):
        write_image(tmp_path / folder / "1.png")
    with pytest.raises(DataError, match="parts of a split, not classes"):
        classes(tmp_path)


def test_a_label_file_does_for_class_folders(tmp_path: Path, write_image: WriteImage) -> None:
    lines = ["Image; Class"]
    for number in range(12):
        write_image(tmp_path / f"{number}.png")
        lines.append(f"{number}.png;c{number % 6}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    write_image(tmp_path / "unlabelled.png")
    dataset = Folder(tmp_path)
    found = {c.name: {path.name for path in c.images} for c in dataset.classes(NOWHERE)}
    assert found == {f"c{n}": {f"{n}.png", f"{n + 6}.png"} for n in range(6)}
    assert dataset.notes == ["left out 1 images without a label"]


def test_what_counts_as_an_image(tmp_path: Path, write_image: WriteImage) -> None:
    cat = tmp_path / "cat"
    wanted = ["1.JPG", "2.png", "3.tiff", "4.webp", "5.gif", "6.bmp", "old/1.Jpeg", "old/x/2.ppm"]
    for name in wanted:
        write_image(cat / name)
    for name in (".hidden.png", ".thumbnails/1.png"):
        write_image(cat / name)
    write_image(tmp_path / ".git" / "1.png")
    write_image(tmp_path / "loose.png")
    for name in ("notes.txt", "Thumbs.db", "movie.mpg", "table.h5", "png"):
        (cat / name).write_text("no image")
    (found,) = classes(tmp_path)
    assert found.name == "cat"
    assert [path.relative_to(cat).as_posix() for path in found.images] == wanted


def test_every_ending_that_pillow_reads_is_known() -> None:
    Image.init()
    endings = {e for e, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    refused = {".bufr", ".emf", ".eps", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".ps"}
    assert endings - image_suffixes() == refused | {".wmf"}
    assert {".jpg", ".jpeg", ".png", ".mpo", ".tif", ".webp"} <= image_suffixes()


def test_what_is_listed_is_what_the_store_decodes() -> None:
    listed = {Image.registered_extensions()[ending] for ending in image_suffixes()}
    assert listed - set(formats()) == {"MPO"}  # opened as JPEG


@pytest.fixture
def deep_folder(tmp_path: Path, write_image: WriteImage) -> Iterator[Path]:
    """A class folder nested deeper than Python's calls; taken away at once, as pytest cannot."""
    image = write_image(tmp_path / "1.png").read_bytes()
    depth = sys.getrecursionlimit() + 10
    before = Path.cwd()
    (tmp_path / "source" / "cat").mkdir(parents=True)
    os.chdir(tmp_path / "source" / "cat")
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    Path("1.png").write_bytes(image)
    os.chdir(before)
    yield tmp_path / "source"
    os.chdir("/".join([str(tmp_path / "source" / "cat"), *["d"] * depth]))
    Path("1.png").unlink()
    for _ in range(depth):
        os.chdir("..")
        Path("d").rmdir()
    os.chdir(before)


def test_folders_nested_deeper_than_calls(deep_folder: Path) -> None:
    (found,) = classes(deep_folder)
    assert [path.name for path in found.images] == ["1.png"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_images_that_are_no_files(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "cat").mkdir()
    make(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=r"it holds no image|1\.png"):
        classes(tmp_path)


def test_names_that_are_not_text_are_refused(tmp_path: Path, write_image: WriteImage) -> None:
    odd = os.fsdecode(b"caf\xe9\x1b[2J.png")
    (tmp_path / "cat").mkdir()
    write_image(tmp_path / "1.png").rename(tmp_path / "cat" / odd)
    with pytest.raises(DataError, match="not UTF-8") as caught:
        classes(tmp_path)
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("name", "shown"), [("cat\x1b[2J", "cat.x1b"), (os.fsdecode(b"caf\xe9"), "caf.udce9")]
)
def test_class_names_that_cannot_be_printed_are_refused(
    tmp_path: Path, write_image: WriteImage, name: str, shown: str
) -> None:
    write_image(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=shown) as caught:
        classes(tmp_path)
    assert str(caught.value).replace("\n", "").isprintable()


def test_links_to_files_are_followed(tmp_path: Path, write_image: WriteImage) -> None:
    original = write_image(tmp_path / "originals" / "1.png")
    (tmp_path / "source" / "cat").mkdir(parents=True)
    (tmp_path / "source" / "cat" / "1.png").symlink_to(original)
    (tmp_path / "link").symlink_to(tmp_path / "source")
    (found,) = classes(tmp_path / "link")
    assert [path.name for path in found.images] == ["1.png"]


def test_links_to_folders_are_followed_once(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "originals" / "1.png")
    (tmp_path / "source" / "cat").mkdir(parents=True)
    (tmp_path / "source" / "dog").symlink_to(tmp_path / "originals")
    for name in ("more", "again"):
        (tmp_path / "source" / "cat" / name).symlink_to(tmp_path / "originals")
    found = {c.name: [path.name for path in c.images] for c in classes(tmp_path / "source")}
    assert found == {"cat": ["1.png"], "dog": ["1.png"]}


def test_links_in_a_circle_and_to_nothing_are_refused(
    tmp_path: Path, write_image: WriteImage
) -> None:
    cat = write_image(tmp_path / "source" / "cat" / "1.png").parent
    for target in (cat, tmp_path, Path("/")):
        (cat / "again").symlink_to(target)
        with pytest.raises(DataError, match="a folder that holds the link"):
            classes(tmp_path / "source")
        (cat / "again").unlink()
    (cat / "again").symlink_to(cat)
    (cat / "again").unlink()
    (cat / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"2\.png"):
        classes(tmp_path / "source")


def test_class_folder_without_images_is_named(flat: Path) -> None:
    (flat / "empty" / "deeper").mkdir(parents=True)
    (flat / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="empty"):
        classes(flat)


def test_source_must_be_a_folder_with_folders(tmp_path: Path, write_image: WriteImage) -> None:
    with pytest.raises(DataError, match="--source"):
        list(Folder(None).classes(NOWHERE))
    with pytest.raises(DataError, match="--source"):
        classes(write_image(tmp_path / "1.png"))
    with pytest.raises(DataError, match="no folders"):
        classes(tmp_path)


def test_options() -> None:
    assert Folder(None).image_shape == (3, 84, 84)
    assert Folder(None, size=28, colour=False).image_shape == (1, 28, 28)
    assert parse_fractions("1, 0,0") == (1, 0, 0)


@pytest.mark.parametrize(
    "fractions",
    ["", "0.5,0.5", "0.5,0.2,0.2", "1.5,-0.5,0", "nan,0,1", "inf,0,0", "a,b,c", "1,0,0,0"],
)
def test_bad_fractions_are_named(fractions: str) -> None:
    with pytest.raises(ValueError, match="must be three numbers") as caught:
        Folder(None, fractions=fractions)
    assert repr(fractions) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "value"), [({"size": 0}, "size=0"), ({"split_seed": -1}, "split_seed=-1")]
)
def test_bad_options_are_named(options: dict[str, Any], value: str) -> None:
    with pytest.raises(ValueError, match=value):
        Folder(None, **options)


def test_dataset_plugins_import_neither_torch_nor_h5py() -> None:
    code = (
        "import sys\n"
        "from hidra_plugins.datasets import cifar, folder, miniimagenet, omniglot\n"
        "print(sorted({'torch', 'torchvision', 'h5py'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
