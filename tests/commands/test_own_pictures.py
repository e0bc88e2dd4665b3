"""One's own pictures: adapt to a folder, predict, and let a classifier grow."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hidra_cli.app import main
from hidra_cli.images.labelled import labelled_pictures
from hidra_cli.images.own_pictures import read_pictures
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.classifier import load_base, load_classifier
from hidra_cli.jobs.one_task import confusion, hold_out
from hidra_cli.runs.model import load_model

from ..conftest import TINY_RUN, Hidra
from .conftest import CLASSES
from .test_bad_input import assert_refused

CPU = torch.device("cpu")


def test_a_folder_gives_ways_shots_steps_and_a_classifier(adapted: Any, pictures: Path) -> None:
    assert adapted["classes"] == {"ash": 3, "birch": 4, "cedar": 3, "dogwood": 4}
    assert len(adapted["accuracy_per_step"]) == adapted["steps"] + 1
    assert adapted["held_out_accuracy_per_step"][adapted["steps"]] == max(
        adapted["held_out_accuracy_per_step"][1:]
    )
    table = np.array(adapted["confusion"])
    assert table.sum(1).tolist() == [5, 4, 5, 4], "rows are true classes, of the queries"
    assert table.trace() / table.sum() == pytest.approx(adapted["accuracy_per_step"][-1])
    classifier = load_classifier(Path(adapted["classifier"]), CPU)
    assert classifier.classes == CLASSES


def test_predictions_are_those_of_the_adapted_model(
    hidra: Hidra, adapted: Any, pictures: Path, tmp_path: Path
) -> None:
    done = hidra("predict", adapted["classifier"], pictures / "query", "--json", "--batch=3")
    assert done.code == 0, done.err
    rows = done.json["predictions"]
    assert len(rows) == 18
    right = [CLASSES[CLASSES.index(row["label"])] in Path(row["image"]).parts for row in rows]
    assert np.mean(right) == pytest.approx(adapted["accuracy_per_step"][-1])
    one = hidra("predict", adapted["classifier"], rows[0]["image"], "--json").json["predictions"]
    assert one[0]["label"] == rows[0]["label"]
    assert one[0]["probability"] == pytest.approx(rows[0]["probability"], abs=1e-5)


def test_the_forms_of_predictions_agree(
    hidra: Hidra, adapted: Any, pictures: Path, tmp_path: Path
) -> None:
    query = [adapted["classifier"], pictures / "query" / "ash", "--top-k=2"]
    as_csv = list(csv.DictReader(io.StringIO(hidra("predict", *query, "--format=csv").out)))
    lines = hidra("predict", *query, "--format=jsonl").out.splitlines()
    as_json = [json.loads(line) for line in lines]
    assert [row["label"] for row in as_csv] == [row["label"] for row in as_json]
    assert [row["label_2"] for row in as_csv] == [row["top"][1]["label"] for row in as_json]
    shown = hidra("predict", *query, "--gallery", tmp_path / "g.png", "--out", tmp_path / "p.jsonl")
    assert shown.code == 0
    assert (tmp_path / "p.jsonl").read_text().splitlines() == lines
    with Image.open(tmp_path / "g.png") as gallery:
        assert gallery.width > 500


@pytest.fixture(scope="module")
def yes_or_no(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A run whose classes are judged each by itself."""
    runs = tmp_path_factory.mktemp("sigmoid")
    flags = ["--loss=sigmoid", "--head-opt=start=zero", "--head-opt=prior=true", "--inner-lr=0.1"]
    place = [f"--cache-dir={cache_dir}", f"--runs-dir={runs}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            [
                "hidra",
                "meta-train",
                *TINY_RUN,
                *flags,
                "--ways=2-5",
                "--name=yes-or-no",
                "-q",
                *place,
            ],
        )
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return runs / "yes-or-no"


def test_a_picture_may_be_of_none_of_the_classes(
    hidra: Hidra, yes_or_no: Path, pictures: Path, tmp_path: Path
) -> None:
    support = ["--support", pictures / "support", "--out", tmp_path]
    assert hidra("adapt", *support, "--checkpoint", yes_or_no).code == 0
    asked = ["predict", tmp_path / "classifier.safetensors", pictures / "query"]
    rows = hidra(*asked, "--top-k=4", "--json").json["predictions"]
    for row in rows:
        assert (row["label"] is None) == (row["probability"] < 0.5)
    sums = [sum(top["probability"] for top in row["top"]) for row in rows]
    assert max(abs(total - 1) for total in sums) > 1e-3, "each class is judged by itself"
    strict = hidra(*asked, "--none-below=1", "--format=csv", "--gallery", tmp_path / "g.png")
    labels = {row["label"] for row in csv.DictReader(io.StringIO(strict.out))}
    assert labels == {"none of these"}
    assert (tmp_path / "g.png").stat().st_size > 10_000
    never = hidra(*asked, "--none-below=0", "--json").json["predictions"]
    assert all(row["label"] in CLASSES for row in never)


def test_softmax_always_names_a_class(hidra: Hidra, adapted: Any, pictures: Path) -> None:
    done = hidra("predict", adapted["classifier"], pictures / "query", "--none-below=0.4")
    assert_refused(done, 2, "--none-below", "--loss softmax", "--loss sigmoid")


def test_a_damaged_picture_is_told_of_and_the_others_are_labelled(
    hidra: Hidra, adapted: Any, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures / "query" / "ash", tmp_path / "new")
    (tmp_path / "new" / "broken.png").write_bytes(b"no picture")
    done = hidra("predict", adapted["classifier"], tmp_path / "new", "--json")
    assert_refused(done, 3, "1 of 6 pictures could not be read", "broken.png")
    assert len(done.json["predictions"]) == 5
    assert len(done.json["damaged"]) == 1
    assert_refused(hidra("predict", adapted["classifier"], tmp_path / "none"), 3, "none")
    (tmp_path / "empty").mkdir()
    assert_refused(hidra("predict", adapted["classifier"], tmp_path / "empty"), 3, "no image")


def test_a_classifier_grows_by_classes_and_by_pictures(
    hidra: Hidra, adapted: Any, pictures: Path, runs_dir: Path, tmp_path: Path
) -> None:
    """Growing equals adapting anew to all pictures together."""
    more, together = tmp_path / "more", tmp_path / "together"
    shutil.copytree(pictures / "support", together)
    shutil.copytree(pictures / "query" / "ash", more / "ash")
    shutil.copytree(pictures / "query" / "birch", more / "elm")
    for source in (more / "ash").rglob("*.*"):
        target = together / "ash" / f"z{source.name}"
        target.write_bytes(source.read_bytes())
    shutil.copytree(more / "elm", together / "elm")
    same = ["--steps=2", "--json", "--out"]
    grown = hidra(
        "adapt", "--base", adapted["classifier"], "--support", more, *same, tmp_path / "g"
    )
    anew = hidra(
        "adapt", "--checkpoint", runs_dir / "hidra", "--support", together, *same, tmp_path / "a"
    )
    assert grown.code == anew.code == 0, grown.err + anew.err
    assert grown.json["classes"] == anew.json["classes"] == {
        "ash": 8, "birch": 4, "cedar": 3, "dogwood": 4, "elm": 4,
    }  # fmt: skip
    images = torch.rand(5, 1, 16, 16)
    first, second = (
        load_classifier(Path(done.json["classifier"]), CPU).probabilities(images)
        for done in (grown, anew)
    )
    assert torch.allclose(first, second, atol=1e-4)


def test_a_classifier_that_forgot_its_pictures_cannot_grow(
    hidra: Hidra, runs_dir: Path, pictures: Path, tmp_path: Path
) -> None:
    flags = ["--support", pictures / "support", "--checkpoint", runs_dir / "hidra", "--forget"]
    done = hidra("adapt", *flags, "--out", tmp_path, "--json")
    base = done.json["classifier"]
    done = hidra("adapt", "--base", base, "--support", pictures / "query")
    assert_refused(done, 2, "cannot grow", "--forget")


def test_what_a_classifier_keeps_comes_back(adapted: Any) -> None:
    model, kept = load_base(Path(adapted["classifier"]), CPU)
    assert kept.classes == CLASSES
    assert kept.images.shape == (14, 1, 16, 16)
    assert kept.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 3 + [3] * 4
    assert model.steps == adapted["steps"]


@pytest.fixture(params=["csv", "json", "elsewhere"])
def flat(request: pytest.FixtureRequest, pictures: Path, tmp_path: Path) -> Iterator[list[Any]]:
    """The same support pictures in one folder with a label file."""
    folder = tmp_path / "flat"
    folder.mkdir()
    labels = {}
    for path in sorted((pictures / "support").rglob("*.*")):
        name = next(part for part in path.parts if part in CLASSES)
        labels[f"{name}-{path.name}"] = name
        (folder / f"{name}-{path.name}").write_bytes(path.read_bytes())
    if request.param == "json":
        (folder / "labels.json").write_text(json.dumps(labels))
        yield [folder]
        return
    file = folder / "labels.csv" if request.param == "csv" else tmp_path / "mine.txt"
    lines = ["label,note,filename", *(f"{label},x,{name}" for name, label in labels.items())]
    file.write_text("\n".join(lines))
    yield [folder] if request.param == "csv" else [folder, "--labels", file]


def test_a_label_file_does_as_well(
    hidra: Hidra, runs_dir: Path, flat: list[Any], tmp_path: Path
) -> None:
    flags = ["--checkpoint", runs_dir / "hidra", "--out", tmp_path / "made", "--json"]
    done = hidra("adapt", "--support", *flat, *flags)
    assert done.code == 0, done.err
    assert done.json["classes"] == {"ash": 3, "birch": 4, "cedar": 3, "dogwood": 4}


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--ways=3"], 2, "--ways 3, but there are 4 classes"),
        (["--shots=3"], 2, "but the class 'birch' has 4 pictures"),
        (["--dataset=glyphs"], 2, "--dataset and --support cannot go together"),
        (["--query={support}/ash"], 3, "not among those learned: deeper"),
        (["--labels={support}/none.csv"], 3, "none.csv"),
    ],
)
def test_what_does_not_fit_the_folder_is_refused(
    hidra: Hidra, runs_dir: Path, pictures: Path, flags: list[str], code: int, said: str
) -> None:
    support = pictures / "support"
    given = [flag.format(support=support) for flag in flags]
    done = hidra("adapt", "--support", support, "--checkpoint", runs_dir / "hidra", *given)
    assert_refused(done, code, said)


def test_folders_that_cannot_be_are_refused(
    hidra: Hidra, runs_dir: Path, pictures: Path, tmp_path: Path
) -> None:
    run = ["--checkpoint", runs_dir / "hidra"]
    assert_refused(hidra("adapt", "--support", tmp_path / "no", *run), 3, "is no folder")
    assert_refused(hidra("adapt", "--query", pictures / "query", *run), 2, "needs --support")
    alone = tmp_path / "alone"
    shutil.copytree(pictures / "support" / "ash", alone / "ash")
    assert_refused(hidra("adapt", "--support", alone, *run), 3, "one class alone")
    shutil.copytree(pictures / "support" / "ash", alone / "other")
    unknown = ["--query", pictures / "query"]
    assert_refused(hidra("adapt", "--support", alone, *unknown, *run), 3, "not among those learned")
    (alone / "labels.csv").write_text("filename,label\n../x.png,a\n")
    assert_refused(hidra("adapt", "--support", alone, *run), 3, "not a plain relative name")
    (alone / "labels.csv").write_text("filename,label\nnone.png,a\n")
    assert_refused(hidra("adapt", "--support", alone, *run), 3, "names none.png, which is not in")
    fixed = ["--checkpoint", runs_dir / "maml3"]
    assert_refused(hidra("adapt", "--support", pictures / "support", *fixed), 2, "serves only")


def test_held_out_pictures_are_each_labelled_without_themselves(
    runs_dir: Path, tiny_images: PreparedImages
) -> None:
    """A picture that is in two classes at once is always wrong while it is held out."""
    model = load_model(runs_dir / "hidra", CPU)
    table = tiny_images.table("test")
    pixels = torch.from_numpy(tiny_images.images[table.first[:2, None] + np.arange(2)]).float()
    twins = torch.stack([pixels[0, 0], pixels[0, 1], pixels[0, 0], pixels[0, 1]]) / 255
    held = hold_out(model, twins, torch.tensor([0, 0, 1, 1]), 2)
    assert held is not None
    assert held.folds == 2
    assert held.steps == 1
    assert len(held.accuracies) == 4, "it stops two steps after the last that was better"
    trained_for_two = hold_out(replace(model, steps=2), twins, torch.tensor([0, 0, 1, 1]), 2)
    assert trained_for_two is not None
    assert trained_for_two.steps == 2, "of equals, what the model was trained for"
    assert hold_out(model, twins[:3], torch.tensor([0, 0, 1]), 2) is None, "one of a class is left"


def test_no_step_at_all_is_taken_where_none_is_best(
    hidra: Hidra, cache_dir: Path, pictures: Path, tmp_path: Path
) -> None:
    """Prototypes label most pictures; from there, steps that are far too long make it worse."""
    flags = ["--head=protomaml", "--head-opt=scale=0.1", "--ways=2-5", "--inner-lr=1e-3"]
    places = [f"--cache-dir={cache_dir}", f"--runs-dir={tmp_path}", "--name=p", "-q"]
    assert hidra("meta-train", *TINY_RUN, *flags, *places).code == 0
    model = load_model(tmp_path / "p", CPU)
    inner = replace(model.settings.inner, inner_lr=1e3)
    model = replace(model, settings=model.settings.model_copy(update={"inner": inner}))
    given = labelled_pictures(pictures / "support")
    images = read_pictures(given.paths, model.meta.image_preprocessing).images
    held = hold_out(model, images, torch.tensor(given.labels), len(CLASSES))
    assert held is not None
    assert held.steps == 0
    assert held.accuracies[0] > max(held.accuracies[1:])
    right = (held.predictions == held.labels).double().mean().item()
    assert right == held.accuracies[0]


def test_confusion_counts_true_classes_in_rows() -> None:
    table = confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 1]), ["a", "b", "c"])
    assert table == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
