"""Outputs are checked before the work, folders are made, and nothing is replaced unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from hidra_cli.errors import DataError
from hidra_cli.jobs.classifier import find_classifier

from ..conftest import Hidra, WriteImage
from .test_bad_input import assert_refused


@pytest.mark.parametrize("out", [".", "/", "..", "{tmp}"])
def test_a_folder_is_no_file(
    hidra: Hidra,
    adapted: dict[str, str],
    pictures: Path,
    tmp_path: Path,
    out: str,
) -> None:
    place = out.format(tmp=tmp_path)
    for words in (
        ["predict", adapted["classifier"], pictures, "--out", place],
        ["predict", adapted["classifier"], pictures, "--gallery", place],
        ["export", adapted["classifier"], "--format=pt2", "--out", place],
        ["average", "a", "b", "--out", place],
    ):
        assert_refused(hidra(*words), 2, f"{place} is a folder")


@pytest.mark.parametrize(
    "flags",
    [
        ["--out=x.json"],
        ["--out=x.txt"],
        ["--out=labels"],
        ["--out=x.csv", "--format=jsonl"],
        ["--out=x.jsonl", "--format=csv"],
        ["--gallery=x.jpg"],
    ],
)
def test_endings_that_are_not_understood_are_refused(
    hidra: Hidra, tmp_path: Path, flags: list[str]
) -> None:
    """Before the classifier is even looked for."""
    done = hidra("predict", tmp_path / "none.safetensors", tmp_path, *flags)
    assert_refused(done, 2, flags[0].replace("=", " "), ".csv" if "out" in flags[0] else ".png")


def test_folders_of_outputs_are_made(
    hidra: Hidra,
    adapted: dict[str, str],
    pictures: Path,
    tmp_path: Path,
) -> None:
    new = tmp_path / "a" / "b"
    done = hidra(
        "predict", adapted["classifier"], pictures / "query", "--out", new / "x.CSV", "--gallery",
        new / "c" / "x.png",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (new / "x.CSV").read_text().startswith("image,label,probability")
    assert (new / "c" / "x.png").is_file()


def test_a_file_in_the_way_is_named(
    hidra: Hidra,
    pictures: Path,
    runs_dir: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("text")
    flags = ["--support", pictures / "support", "--checkpoint", runs_dir / "hidra"]
    assert_refused(hidra("adapt", *flags, "--out", tmp_path / "file"), 2, "is a file")
    evaluate = ["evaluate", runs_dir / "hidra", "--out", tmp_path / "file"]
    assert_refused(hidra(*evaluate), 2, "is a file")
    inside = tmp_path / "file" / "deep"
    assert_refused(hidra("adapt", *flags, "--out", inside), 1, "could not be written")
    assert_refused(hidra("predict", "none", "x", "--out", inside / "x.csv"), 1, "could not be")


@pytest.mark.parametrize(
    "words",
    [
        ["adapt", "--support", ""],
        ["adapt", "--support="],
        ["adapt", "--support", "x", "--query", ""],
        ["predict", "", "x"],
        ["prepare", "folder", "--source="],
    ],
)
def test_an_empty_value_is_not_the_current_folder(hidra: Hidra, words: list[str]) -> None:
    assert_refused(hidra(*words), 2, "has an empty value")


def test_a_classifier_is_never_replaced_unasked(
    hidra: Hidra, runs_dir: Path, pictures: Path
) -> None:
    """Two projects may both call their folder `support`."""
    flags = ["--checkpoint", runs_dir / "hidra", "--support", pictures / "support", "--json"]
    first = hidra("adapt", *flags).json["classifier"]
    content = Path(first).read_bytes()
    done = hidra("adapt", *flags, "--steps=1")
    assert done.json["classifier"] == f"{Path(first).parent}-2/classifier.safetensors"
    assert "has a classifier already, which stays" in done.err
    named = hidra("adapt", *flags, "--out", Path(first).parent)
    assert_refused(named, 2, "has a classifier already", "--force")
    assert Path(first).read_bytes() == content
    assert hidra("adapt", *flags, "--steps=4", "--out", Path(first).parent, "--force").code == 0
    assert Path(first).read_bytes() != content


def test_a_folder_with_one_classifier_serves_as_it(
    hidra: Hidra,
    adapted: dict[str, str],
    pictures: Path,
    tmp_path: Path,
) -> None:
    file = Path(adapted["classifier"])
    by_folder = hidra("predict", file.parent, pictures / "query", "--json")
    assert by_folder.json == hidra("predict", file, pictures / "query", "--json").json
    grown = hidra(
        "adapt", "--base", file.parent, "--support", pictures / "query", "--out", tmp_path / "g",
        "--json",
    )  # fmt: skip
    assert grown.code == 0, grown.err
    exported = hidra("export", file.parent, "--format=pt2", "--json")
    assert exported.json["exported"] == str(file.with_suffix(".pt2"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="a folder of 2 classifiers"):
        find_classifier(tmp_path)


def test_another_source_is_not_taken_for_the_prepared_one(
    hidra: Hidra, tmp_path: Path, write_image: WriteImage
) -> None:
    from hidra_plugins.datasets.sources import split_file

    labels = [label for names in split_file("miniimagenet-ravi").values() for label in names]
    for place, count in (("first", 1), ("second", 2), ("moved", 1)):
        for label in labels:
            for number in range(count):
                write_image(tmp_path / place / label / f"{number}.png")
    prepare = ["prepare", "miniimagenet", "--data-opt=size=8", "--cache-dir", tmp_path / "c"]
    assert hidra(*prepare, "--source", tmp_path / "first").code == 0
    done = hidra(*prepare, "--source", tmp_path / "second")
    assert_refused(done, 3, str(tmp_path / "first"), str(tmp_path / "second"), "--force")
    assert hidra(*prepare, "--source", tmp_path / "moved").code == 0, "the same images elsewhere"
    train = ["meta-train", "--dataset=miniimagenet", *prepare[2:], "--runs-dir", tmp_path / "r"]
    done = hidra(*train, "--source", tmp_path / "second", "--dry-run")
    assert_refused(done, 3, "was prepared from")
    again = hidra(*prepare, "--source", tmp_path / "second", "--force", "--json")
    assert sum(again.json["images"].values()) == 200
