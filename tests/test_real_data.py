"""Real Omniglot and CIFAR-100, from the archives to an evaluated model."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Hidra


def test_real_omniglot_from_archives_to_accuracy(
    hidra: Hidra, real_omniglot: Path, tmp_path: Path
) -> None:
    cache = ["--cache-dir", tmp_path / "cache", "--json", "-q"]
    prepared = hidra("prepare", "omniglot", "--source", real_omniglot, *cache)
    assert prepared.code == 0, prepared.err
    assert prepared.json["classes"] == {"train": 1028, "val": 172, "test": 423}
    assert prepared.json["images"] == {"train": 20560, "val": 3440, "test": 8460}
    again = hidra("prepare", "omniglot", "--source", real_omniglot, *cache)
    assert again.json["prepared_now"] is False
    assert again.json["content_hash"] == prepared.json["content_hash"]
    trained = hidra(
        "meta-train", "--dataset=omniglot", "--ways=5", "--iterations=150", "--bb-opt=filters=16",
        "--validation-episodes=20", "--test-episodes=100", "--name=omni",
        "--runs-dir", tmp_path / "runs", *cache,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    (five,) = [row for row in trained.json["test"] if row["ways"] == 5]
    assert five["accuracy"] > 0.6  # pixels alone give less than 0.5
    evaluated = hidra(
        "evaluate", tmp_path / "runs" / "omni", "--ways=5", "--episodes=60", "--pixels", *cache
    )
    assert evaluated.code == 0, evaluated.err
    difference = evaluated.json["comparisons"][0]
    assert difference["difference"] + difference["interval"] < 0


@pytest.mark.slow
def test_real_cifar_fs_from_its_zip_to_accuracy(
    hidra: Hidra, real_cifar100: Path, tmp_path: Path
) -> None:
    cache = ["--cache-dir", tmp_path / "cache", "--json", "-q"]
    prepared = hidra("prepare", "cifar-fs", "--source", real_cifar100, *cache)
    assert prepared.code == 0, prepared.err
    assert prepared.json["classes"] == {"train": 64, "val": 16, "test": 20}
    assert prepared.json["images"] == {"train": 38400, "val": 9600, "test": 12000}
    trained = hidra(
        "meta-train", "--dataset=cifar-fs", "--ways=5", "--iterations=200", "--bb-opt=filters=16",
        "--inner-lr=0.1", "--validation-episodes=20", "--test-episodes=100", "--name=cifar",
        "--runs-dir", tmp_path / "runs", *cache,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    (five,) = [row for row in trained.json["test"] if row["ways"] == 5]
    assert five["accuracy"] - five["interval"] > 0.25  # chance is 0.2


@pytest.mark.slow
def test_what_the_default_run_learns_from_glyphs_holds_on_real_omniglot(
    hidra: Hidra, real_omniglot: Path, tmp_path: Path
) -> None:
    places = ["--cache-dir", tmp_path / "cache", "--json", "-q"]
    assert hidra("prepare", "omniglot", "--source", real_omniglot, *places).code == 0
    trained = hidra("meta-train", "--runs-dir", tmp_path / "runs", "--name=glyphs", *places)
    assert trained.code == 0, trained.err
    assert [row["ways"] for row in trained.json["test"]] == [2, 5, 10, 20]
    evaluated = hidra(
        "evaluate", tmp_path / "runs" / "glyphs", "--dataset=omniglot", "--ways=5", *places
    )
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["results"][0]["accuracy"] >= 0.80
