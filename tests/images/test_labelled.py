"""Labelled pictures: folders and label files as people, spreadsheets and desktops leave them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from hidra_cli.errors import DataError, HidraError, UsageError
from hidra_cli.images.labelled import LabelledPictures, labelled_pictures, pictures_in

WriteImage = Callable[[Path], Path]


def names(found: LabelledPictures) -> dict[str, list[str]]:
    by_class: dict[str, list[str]] = {name: [] for name in found.classes}
    for path, label in zip(found.paths, found.labels, strict=True):
        by_class[found.classes[label]].append(path.name)
    return by_class


@pytest.fixture
def flat(tmp_path: Path, write_image: WriteImage) -> Path:
    for name in ("1.png", "2.png", "3.jpg"):
        write_image(tmp_path / "flat" / name)
    return tmp_path / "flat"


LABELS = {"cat": ["1.png", "3.jpg"], "dog": ["2.png"]}
BOM = "\ufeff"


@pytest.mark.parametrize(
    "text",
    [
        "filename,label\n1.png,cat\n2.png,dog\n3.jpg,cat\n",
        "filename;label\n1.png;cat\n2.png;dog\n3.jpg;cat\n",
        "filename\tlabel\n1.png\tcat\n2.png\tdog\n3.jpg\tcat\n",
        BOM + "filename,label\r\n1.png,cat\r\n2.png,dog\r\n3.jpg,cat\r\n\r\n",
        "sep=;\nfilename;label\n1.png;cat\n2.png;dog\n3.jpg;cat\n",
        " File Name , Class \n1.png, cat\n2.png,dog \n 3.jpg,cat\n,\n",
        "Image;note;CATEGORY\n1.png;a,b;cat\n2.png;;dog\n3.jpg;;cat\n",
        "path,class\n./1.png,cat\n2.png,dog\n3.jpg,cat\n",
        "id,breed\n1,cat\n2,dog\n3,cat\n",
        "file_name,species\n1.PNG,cat\n2.png,dog\n3.jpg,cat\n1.png,cat\n",
        "image,label\n{folder}/1.png,cat\n{folder}/2.png,dog\n3.jpg,cat\n",
    ],
)
def test_label_files_as_spreadsheets_write_them(flat: Path, text: str) -> None:
    (flat / "labels.csv").write_text(text.replace("{folder}", str(flat)), newline="")
    assert names(labelled_pictures(flat)) == LABELS


def test_a_label_file_in_utf_16(flat: Path) -> None:
    text = "filename\tlabel\n1.png\tcat\n2.png\tdog\n3.jpg\tcat\n"
    (flat / "labels.csv").write_text(text, encoding="utf-16")
    assert names(labelled_pictures(flat)) == LABELS


@pytest.mark.parametrize(
    "text",
    [
        '{"1.png": "cat", "2.png": "dog", "3.jpg": "cat"}',
        BOM + '{"1.png": "cat", "2.png": "dog", "3.jpg": "cat", "1.png": "cat"}',
        '[{"image": "1.png", "class": "cat"}, {"image": "2.png", "class": "dog"}, '
        '{"image": "3.jpg", "class": "cat"}]',
    ],
)
def test_label_files_in_json(flat: Path, text: str) -> None:
    (flat / "labels.json").write_text(text, encoding="utf-8")
    assert names(labelled_pictures(flat)) == LABELS


def test_whole_numbers_are_labels(flat: Path) -> None:
    (flat / "labels.json").write_text('{"1.png": 3, "2.png": 12, "3.jpg": 3}')
    assert names(labelled_pictures(flat)) == {"12": ["2.png"], "3": ["1.png", "3.jpg"]}


def test_names_relative_to_the_label_file(flat: Path) -> None:
    file = flat.parent / "mine.csv"
    file.write_text("filename,label\nflat/1.png,cat\nflat\\2.png,dog\nflat/3.jpg,cat\n")
    assert names(labelled_pictures(flat, file)) == LABELS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no line"),
        ("filename,label\n", "has no line"),
        ("picture name,kind\n1.png,cat\n", "the columns picture name, kind"),
        ("filename,label\n1.png,cat\n1.png,dog\n", "1.png is cat and dog"),
        ("filename,label\n1.png,cat\n./1.png,dog\n", "1.png is cat and dog"),
        ("filename,label\n1.png,cat\nno.png,dog\nnone.png,dog\n", "2 pictures are not there"),
        ("filename,label\n1.png,cat\n../2.png,dog\n", "not a plain relative name"),
        ("filename,label\n1.png,\n", "the label of 1.png"),
        ("filename,label\n,cat\n", "a line without a picture"),
        ("filename,label\n1.png,\x1b[2J\n", "the label of 1.png"),
        ("filename,label\n1\x00.png,cat\n", "not a plain relative name"),
    ],
)
def test_label_files_that_cannot_be_right(flat: Path, text: str, said: str) -> None:
    (flat / "labels.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        labelled_pictures(flat)
    assert said in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"1.png": "cat", "1.png": "dog"}', "1.png is cat and dog"),
        ('{"1.png": null}', "neither text nor a whole number"),
        ('{"1.png": true}', "neither text nor a whole number"),
        ('{"1.png": ["cat"]}', "neither text nor a whole number"),
        ('["1.png"]', "neither an object of texts nor a list"),
        ('"1.png"', "neither an object of texts nor a list"),
        ("{", "cannot be used"),
        ("[" * 100_000, "cannot be used"),
    ],
)
def test_json_that_cannot_be_right(flat: Path, text: str, said: str) -> None:
    (flat / "labels.json").write_text(text)
    with pytest.raises(DataError) as caught:
        labelled_pictures(flat)
    assert said in str(caught.value)


def test_two_label_files_are_refused(flat: Path) -> None:
    (flat / "labels.csv").write_text("filename,label\n1.png,cat\n")
    (flat / "labels.json").write_text(json.dumps({"1.png": "cat"}))
    with pytest.raises(DataError, match="two label files"):
        labelled_pictures(flat)


def test_images_without_a_label_are_counted(flat: Path) -> None:
    (flat / "labels.csv").write_text("filename,label\n1.png,cat\n2.png,dog\n")
    found = labelled_pictures(flat)
    assert len(found.paths) == 2
    assert found.left_out == {"images without a label": 1}


def test_a_label_file_beside_class_folders_drops_nothing(
    tmp_path: Path, write_image: WriteImage
) -> None:
    for name in ("cat", "dog"):
        for number in range(6):
            write_image(tmp_path / name / f"{number}.png")
    (tmp_path / "labels.csv").write_text("filename,label\ncat/0.png,cat\ndog/0.png,dog\n")
    with pytest.raises(DataError, match="names 2 of the 12 images"):
        labelled_pictures(tmp_path)
    found = labelled_pictures(tmp_path, tmp_path / "labels.csv")
    assert found.left_out == {"images without a label": 10}


@pytest.mark.parametrize(
    "parts", [("train", "val"), ("Training", "Testing"), ("train", "valid", "test")]
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_split_is_no_pair_of_classes(
    tmp_path: Path, write_image: WriteImage, parts: tuple[str, ...], nested: bool
) -> None:
    for part in parts:
        for name in ("cat", "dog") if nested else ("",):
            write_image(tmp_path / part / name / "1.png")
    with pytest.raises(UsageError, match="parts of a split, not classes") as caught:
        labelled_pictures(tmp_path)
    assert f"--support {tmp_path / parts[0]} --query {tmp_path / parts[-1]}" in caught.value.fix


def test_one_folder_around_the_classes_is_named(tmp_path: Path, write_image: WriteImage) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / "my-pictures" / name / "1.png")
    with pytest.raises(UsageError, match="the class folders are inside it") as caught:
        labelled_pictures(tmp_path)
    assert str(tmp_path / "my-pictures") in caught.value.fix
    assert labelled_pictures(tmp_path / "my-pictures").classes == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path: Path, write_image: WriteImage) -> None:
    for name in ("train", "bus"):
        write_image(tmp_path / name / "1.png")
    assert labelled_pictures(tmp_path).classes == ("bus", "train")


def test_what_systems_leave_behind_is_neither_picture_nor_class(
    tmp_path: Path, write_image: WriteImage
) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / name / "1.png")
        write_image(tmp_path / name / "@eaDir" / "1.png")
        write_image(tmp_path / name / "._1.png.png")
        for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "Icon\r"):
            (tmp_path / name / junk).write_bytes(b"")
    for folder in ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git"):
        write_image(tmp_path / folder / "1.png")
    found = labelled_pictures(tmp_path)
    assert names(found) == {"cat": ["1.png"], "dog": ["1.png"]}
    assert found.left_out == {}


def test_files_that_are_left_out_are_counted(tmp_path: Path, write_image: WriteImage) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / name / "1.png")
        (tmp_path / name / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / "raw" / "deep").mkdir(parents=True)
    (tmp_path / "cat" / "raw" / "deep" / "1.CR2").write_bytes(b"raw")
    (tmp_path / "cat" / "README").write_text("no ending")
    write_image(tmp_path / "loose.png")
    assert labelled_pictures(tmp_path).left_out == {
        ".txt": 2, ".CR2": 1, "files without an ending": 1, "images in no class folder": 1,
    }  # fmt: skip
    paths, left_out = pictures_in([tmp_path, tmp_path / "loose.png"])
    assert len(paths) == 4
    assert left_out == {".txt": 2, ".CR2": 1, "files without an ending": 1}


def test_names_are_compared_as_people_see_them(tmp_path: Path, write_image: WriteImage) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    write_image(tmp_path / "support" / decomposed / "1.png")
    write_image(tmp_path / "support" / "Bee" / "1.png")
    write_image(tmp_path / "query" / composed / "2.png")
    write_image(tmp_path / "query" / "bee" / "2.png")
    support = labelled_pictures(tmp_path / "support")
    assert support.classes == ("Bee", composed)
    query = labelled_pictures(tmp_path / "query").within(support.classes, tmp_path / "query")
    assert names(query) == {"Bee": ["2.png"], composed: ["2.png"]}
    assert query.notes == ("the class bee is taken for Bee",)
    assert labelled_pictures(tmp_path / "query").called_as(support.classes).classes == (
        "Bee",
        composed,
    )


def test_classes_that_differ_in_case_alone_stay_two_and_are_named(
    tmp_path: Path, write_image: WriteImage
) -> None:
    for name in ("bee", "Bee"):
        write_image(tmp_path / name / "1.png")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system folds case")
    found = labelled_pictures(tmp_path)
    assert found.classes == ("Bee", "bee")
    assert found.notes == ("the classes Bee and bee differ only in case",)
    within = found.within(("Bee", "bee"), tmp_path)
    assert within.labels == (0, 1)


def test_an_empty_class_folder_is_refused_in_support_and_fine_in_query(
    tmp_path: Path, write_image: WriteImage
) -> None:
    write_image(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.raw").write_bytes(b"")
    with pytest.raises(DataError, match=r"it holds no image, but 1 \.raw"):
        labelled_pictures(tmp_path)
    found = labelled_pictures(tmp_path, may_be_empty=True)
    assert names(found) == {"cat": ["1.png"], "dog": []}


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "1.xyz").write_bytes(b"")
    with pytest.raises(HidraError, match="holds no image"):
        pictures_in([tmp_path])
