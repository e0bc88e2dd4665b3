"""The plugins of a command are found once, and handed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hidra_cli.api import registry
from hidra_cli.api.registry import Kind, Plugin
from hidra_cli.jobs.training import trainer
from hidra_cli.runs import build, model

from ..conftest import TINY_RUN, Hidra


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the registry is asked to find."""
    asked: list[tuple[str, str]] = []
    find: Callable[[Kind, str], Plugin] = registry.find

    def counted(kind: Kind, name: str) -> Plugin:
        asked.append((kind, name))
        return find(kind, name)

    monkeypatch.setattr(registry, "find", counted)
    return asked


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The heads of the learners that are built."""
    heads: list[str] = []
    build_learner = build.build_learner

    def counted(settings, *arguments, **options):  # type: ignore[no-untyped-def]
        heads.append(settings.model.head)
        return build_learner(settings, *arguments, **options)

    for user in (model, trainer):
        monkeypatch.setattr(user, "build_learner", counted)
    return heads


def test_training_and_its_test_ask_for_each_plugin_once(
    hidra: Hidra, cache_dir: Path, tmp_path: Path, searches: list[tuple[str, str]]
) -> None:
    place = ["--cache-dir", cache_dir, "--runs-dir", tmp_path, "-q"]
    assert hidra("meta-train", *TINY_RUN, *place, "--name=mine", "--iterations=2").code == 0
    assert sorted(searches) == [("backbone", "conv4"), ("dataset", "glyphs"), ("head", "hidra")]


def test_a_resumed_run_asks_for_each_plugin_once_and_builds_its_model_once(
    hidra: Hidra,
    cache_dir: Path,
    tmp_path: Path,
    searches: list[tuple[str, str]],
    built: list[str],
) -> None:
    place = ["--cache-dir", cache_dir, "--runs-dir", tmp_path, "-q"]
    begin = [*TINY_RUN, *place, "--name=mine", "--iterations=1", "--test-episodes=0"]
    assert hidra("meta-train", *begin).code == 0
    searches.clear()
    built.clear()
    assert hidra("meta-train", "--resume=mine", "--iterations=2", *place).code == 0
    assert sorted(searches) == [("backbone", "conv4"), ("dataset", "glyphs"), ("head", "hidra")]
    assert built == ["hidra"]


def test_prediction_asks_for_the_plugins_of_the_model_once_and_builds_it_once(
    hidra: Hidra,
    runs_dir: Path,
    cache_dir: Path,
    tmp_path: Path,
    searches: list[tuple[str, str]],
    built: list[str],
) -> None:
    place = ["--checkpoint", runs_dir / "hidra", "--cache-dir", cache_dir, "--out", tmp_path]
    assert hidra("adapt", "--ways=3", "--shots=2", "--queries=3", *place).code == 0
    Image.new("L", (20, 20), 90).save(tmp_path / "picture.png")
    searches.clear()
    built.clear()
    classifier = tmp_path / "classifier.safetensors"
    done = hidra("predict", classifier, tmp_path / "picture.png")
    assert done.code == 0, done.err
    assert sorted(searches) == [("backbone", "conv4"), ("head", "hidra")]
    assert built == ["hidra"]
