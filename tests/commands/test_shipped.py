"""The models that ship with hidra: there without a run, and as good as their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hidra_cli.runs.locate import find_checkpoint, results_home, shipped_models
from hidra_cli.runs.model import load_model

from ..conftest import Hidra
from .test_bad_input import assert_refused

NAME, PHOTOS = "omniglot-any", "photos-any"


@pytest.fixture(scope="module")
def strokes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of simple drawings, three pictures each: a bar, a cross, a ring of dots."""
    folder = tmp_path_factory.mktemp("strokes")
    for number in range(3):
        at = 30 + 6 * number
        bar = {(at + d, y) for d in range(6) for y in range(10, 95)}
        cross = bar | {(y, at + d) for d in range(6) for y in range(10, 95)}
        dots = {(x + d, y + e) for x in (15, 80) for y in (15 + number, 80) for d in range(9)
                for e in range(9)}  # fmt: skip
        for name, ink in (("bar", bar), ("cross", cross), ("dots", dots)):
            picture = Image.new("L", (105, 105), 255)
            for place in ink:
                picture.putpixel(place, 0)
            (folder / name).mkdir(exist_ok=True)
            picture.save(folder / name / f"{number}.png")
    return folder


def test_adapt_needs_no_run(hidra: Hidra, strokes: Path, tmp_path: Path) -> None:
    no_runs = ["--runs-dir", tmp_path / "none"]
    done = hidra("adapt", "--support", strokes, *no_runs, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["choice"]["model"] == NAME
    assert f"{NAME} learns them: the pictures look like drawings" in done.err
    assert max(found["held_out_accuracy_per_step"]) > 0.85, "these are easy to tell"
    predicted = hidra("predict", found["classifier"], strokes, "--json").json["predictions"]
    assert all(row["label"] == Path(row["image"]).parent.name for row in predicted)


def test_results_never_go_among_the_program_s_own_files(
    hidra: Hidra, strokes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert results_home(find_checkpoint(Path(NAME))) == Path()
    done = hidra("adapt", "--support", strokes, "--checkpoint", NAME, "--json")
    assert done.code == 0, done.err
    assert (tmp_path / done.json["classifier"]).is_file()
    assert Path(done.json["classifier"]).parts[0] == "adapted"


def test_a_run_is_taken_only_when_it_is_named(
    hidra: Hidra, strokes: Path, runs_dir: Path, tmp_path: Path
) -> None:
    """A run that lies in ./runs knows nothing of a person's pictures."""
    adapt = ["adapt", "--support", strokes, "--runs-dir", runs_dir, "--out", tmp_path, "--force"]
    adapt.append("--json")
    unnamed = hidra(*adapt).json
    assert Path(unnamed["checkpoint"]) == shipped_models()[NAME]
    for name in ("latest", "hidra"):
        done = hidra(*adapt, "--checkpoint", name)
        assert done.code == 0, done.err
        assert Path(done.json["checkpoint"]).is_relative_to(runs_dir)
        assert done.json["choice"] is None


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of pictures in colour, two of each: a sky, a wood, a fire, with noise."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    colours = {"sky": (90, 150, 220), "wood": (110, 80, 40), "fire": (230, 90, 20)}
    for name, colour in colours.items():
        for number in range(2):
            small = np.array(colour) + random.integers(-60, 60, (5, 6, 1))
            image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
            image = image.resize((120, 100), Image.Resampling.BICUBIC)
            (folder / name).mkdir(exist_ok=True)
            image.save(folder / name / f"{number}.jpg")
    return folder


def test_photographs_get_their_model(hidra: Hidra, photographs: Path, tmp_path: Path) -> None:
    done = hidra("adapt", "--support", photographs, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    assert f"{PHOTOS} learns them: the pictures look like photographs" in done.err
    choice = done.json["choice"]
    assert choice["model"] == PHOTOS
    assert choice["held_out"] == 6
    assert set(choice["right"]) == set(shipped_models())
    assert done.json["steps"] == 0, "its head starts at the solution"
    predict = ["predict", done.json["classifier"], photographs]
    answers = hidra(*predict, "--json").json["predictions"]
    assert all(row["label"] == Path(row["image"]).parent.name for row in answers)
    assert all(row["known"] > 0.5 for row in answers), "it has learned these very pictures"
    never = hidra(*predict, "--unknown=1", "--json").json["predictions"]
    assert {row["label"] for row in never} == {None}
    assert "unknown" in hidra(*predict, "--unknown=1").out
    off = hidra(*predict, "--unknown=off", "--json").json["predictions"]
    assert not any("known" in row for row in off)
    assert_refused(hidra(*predict, "--unknown=maybe"), 2, "is none of off, auto and a number")
    more = ["--support", photographs, "--out", tmp_path / "grown", "--json"]
    grown = hidra("adapt", "--base", done.json["classifier"], *more)
    assert grown.json["classes"] == {"fire": 4, "sky": 4, "wood": 4}


def test_one_picture_of_a_class_is_judged_by_its_looks(
    hidra: Hidra, photographs: Path, strokes: Path, tmp_path: Path
) -> None:
    for folder, model in ((photographs, PHOTOS), (strokes, NAME)):
        for picture in folder.glob("*/0.*"):
            place = tmp_path / model / picture.parent.name
            place.mkdir(parents=True)
            (place / picture.name).write_bytes(picture.read_bytes())
        done = hidra("adapt", "--support", tmp_path / model, "--out", tmp_path, "--force",
                     "--json")  # fmt: skip
        assert done.code == 0, done.err
        choice = done.json["choice"]
        assert (choice["model"], choice["right"]) == (model, {})


def test_a_name_that_is_no_run_is_answered_with_those_that_ship(hidra: Hidra) -> None:
    assert_refused(hidra("evaluate", "omniglot-all"), 3, "omniglot-all is not a run", NAME)


def test_info_names_it(hidra: Hidra) -> None:
    assert hidra("info", "--json").json["shipped_models"][NAME] == str(shipped_models()[NAME])


@pytest.mark.parametrize(("name", "most"), [(NAME, 600_000), (PHOTOS, 10_000)])
def test_it_is_small_and_without_an_optimizer(name: str, most: int) -> None:
    assert shipped_models()[name].stat().st_size < most
    model = load_model(Path(name), torch.device("cpu"))
    assert model.name == name
    assert model.learner.head.any_ways
    assert model.settings.dataset.source is None, "no path of the machine it was made on"


def test_it_is_as_good_as_its_card_says(hidra: Hidra, real_omniglot: Path, tmp_path: Path) -> None:
    """On a few episodes; the card has the command for all of them."""
    cache = ["--cache-dir", tmp_path / "cache"]
    prepare = ["prepare", "omniglot", "--source", real_omniglot, "--data-opt=rotations=true"]
    assert hidra(*prepare, *cache, "-q").code == 0
    test = ["--ways=5", "--episodes=40", "--out", tmp_path / "test", "--json"]
    done = hidra("evaluate", NAME, *test, *cache)
    assert done.code == 0, done.err
    (row,) = done.json["results"]
    card = shipped_models()[NAME].with_suffix(".md").read_text()
    match = re.search(r"^\| 1 \|.*$", card, re.MULTILINE)
    assert match
    claimed = float(match[0].split("|")[3].split("±")[0]) / 100
    assert abs(row["accuracy"] - claimed) < 0.03 + row["interval"]
