"""`hidra evaluate` as its user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..conftest import TINY_DATA, Hidra

FAST = ["--episodes=6", "--queries=2"]


def test_any_ways_and_shots_with_a_table_a_file_and_a_picture(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    done = hidra(
        "evaluate", runs_dir / "hidra", "--ways=2,7,10", "--shots=1,3", *FAST, "--steps=2",
        "--cache-dir", cache_dir, "--out", tmp_path, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    shown = {(row["ways"], row["shots"]) for row in done.json["results"]}
    assert shown == {(n, k) for n in (2, 7, 10) for k in (1, 3)}
    for row in done.json["results"]:
        assert row["normalization"] == "support"
        assert [step["step"] for step in row["per_step"]] == [0, 1, 2]
        # identical neurons know nothing yet: chance, up to how rounding breaks their tie
        assert row["per_step"][0]["accuracy"] == pytest.approx(1 / row["ways"], abs=0.15)
        assert row["accuracy"] == row["per_step"][-1]["accuracy"]
    assert json.loads((tmp_path / "result.json").read_text())["results"] == done.json["results"]
    with Image.open(tmp_path / "accuracy.png") as picture:
        assert picture.size[0] > 800
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_last_step_alone_is_the_same_without_the_way_there(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    asked = ["evaluate", runs_dir / "hidra", "--ways=3", *FAST, "--steps=2", "--json"]
    place = ["--cache-dir", cache_dir, "--out", tmp_path]
    (whole,) = hidra(*asked, *place).json["results"]
    (last,) = hidra(*asked, *place, "--last-step").json["results"]
    assert len(whole.pop("per_step")) == 3
    assert last == whole


def test_models_are_compared_on_the_same_episodes(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    common = [*FAST, "--cache-dir", cache_dir, "--out", tmp_path, "--json"]
    runs = [runs_dir / "hidra", runs_dir / "zero", runs_dir / "maml3"]
    done = hidra("evaluate", *runs, "--ways=2,3", "--pixels", *common)
    assert done.code == 0, done.err
    found = {(row["model"], row["ways"]): row["accuracy"] for row in done.json["results"]}
    pixels = "nearest neighbour on pixels"
    assert set(found) == {
        ("hidra", 2),
        ("hidra", 3),
        ("zero", 2),
        ("zero", 3),
        ("maml3", 3),
        (pixels, 2),
        (pixels, 3),
    }
    for row in done.json["comparisons"]:
        expected = found[row["model"], row["ways"]] - found["hidra", row["ways"]]
        assert row["difference"] == pytest.approx(expected)
    alone = hidra("evaluate", runs_dir / "zero", "--ways=2,3", *common)
    assert [row["accuracy"] for row in alone.json["results"]] == [
        found["zero", 2],
        found["zero", 3],
    ]


def test_hidra_and_zero_heads_are_the_same_learner_under_softmax(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    runs = [runs_dir / "hidra", runs_dir / "zero"]
    out = ["--out", tmp_path, "--json", "--cache-dir", cache_dir]
    done = hidra("evaluate", *runs, "--ways=5", *FAST, *out)
    assert done.json["comparisons"][0]["difference"] == pytest.approx(0, abs=0.05)


def test_it_takes_the_latest_run_and_leaves_the_results_in_it(
    hidra: Hidra, runs_dir: Path, cache_dir: Path
) -> None:
    done = hidra("evaluate", "--runs-dir", runs_dir, "--cache-dir", cache_dir, *FAST, "--json")
    assert done.code == 0, done.err
    folder = Path(done.json["folder"])
    assert folder.parent == runs_dir / "zero" / "evaluations"
    assert (folder / "accuracy.png").is_file()


def test_another_dataset_of_the_same_shape(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    other = [option.replace("alphabets=4", "alphabets=5") for option in TINY_DATA]
    done = hidra(
        "evaluate", runs_dir / "hidra", "--dataset=glyphs", *other, "--ways=2", *FAST,
        "--cache-dir", cache_dir, "--out", tmp_path, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    other_size = [option.replace("size=16", "size=20") for option in TINY_DATA]
    refused = hidra(
        "evaluate", runs_dir / "hidra", "--dataset=glyphs", *other_size, "--ways=2", *FAST,
        "--cache-dir", cache_dir, "--out", tmp_path,
    )  # fmt: skip
    assert refused.code == 2
    assert "was trained on 16×16 images" in refused.err
    assert "these are 20×20" in refused.err


def test_another_normalization_than_the_trained_one_is_named(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    out = ["--cache-dir", cache_dir, "--out", tmp_path, "--json", "--ways=5", *FAST]
    found = {}
    for mode in ("support", "transductive"):
        done = hidra("evaluate", runs_dir / "hidra", f"--normalization={mode}", *out)
        assert done.code == 0, done.err
        assert done.json["results"][0]["normalization"] == mode
        found[mode] = done.json["results"][0]["accuracy"]
    assert found["support"] != found["transductive"]


def test_a_normalization_with_other_weights_than_the_trained_one_is_refused(
    hidra: Hidra, runs_dir: Path, cache_dir: Path
) -> None:
    done = hidra(
        "evaluate", runs_dir / "hidra", "--normalization=tasknorm", "--ways=5", *FAST,
        "--cache-dir", cache_dir,
    )  # fmt: skip
    assert done.code == 2, done.err
    assert "cannot be used with tasknorm normalization" in done.err
    assert "trained with support" in done.err
