"""What is on disk has a type: read once, checked whole, and written as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.errors import DataError, RunError
from hidra_cli.jobs.classifier import CLASSIFIER_FORMAT
from hidra_cli.runs.checkpoint import Checkpoint, checkpoint_bytes, load_checkpoint
from hidra_cli.runs.compatibility import MemoryLimit
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.locate import shipped_models
from hidra_cli.runs.model_records import CheckpointMeta, ClassifierMeta
from hidra_cli.runs.records import (
    Environment,
    EvaluationResult,
    Record,
    RunResult,
    load_record,
    record_or_none,
)

from ..conftest import Hidra


@pytest.fixture
def checkpoint(runs_dir: Path) -> Checkpoint:
    return load_checkpoint(RunDir(runs_dir / "hidra").last)


def as_written(checkpoint: Checkpoint) -> dict[str, Any]:
    """The JSON of a file, without what every file begins with."""
    return {k: v for k, v in checkpoint.meta.items() if k not in ("format", "format_version")}


def text(content: Any) -> str:
    """With the order of the keys."""
    return json.dumps(content)


def test_a_checkpoint_read_and_written_is_the_same_file(checkpoint: Checkpoint) -> None:
    content = checkpoint_bytes(checkpoint.tensors, checkpoint.model_meta.to_json())
    assert content == checkpoint.path.read_bytes()


def test_a_file_without_preprocessing_says_it_by_its_shape() -> None:
    older = load_checkpoint(shipped_models()["omniglot-any"]).model_meta
    assert older.image_preprocessing == Preprocessing((1, 28, 28), invert=True)


def test_older_files_are_read_and_lose_nothing() -> None:
    for path in shipped_models().values():
        shipped = load_checkpoint(path)
        again, before = shipped.model_meta.to_json(), as_written(shipped)
        assert text({key: again[key] for key in before}) == text(before)


def test_every_entry_is_written() -> None:
    for kind in (CheckpointMeta, ClassifierMeta):
        assert set(kind.order) == set(kind.model_fields)


def test_a_classifier_read_and_written_says_the_same(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    flags = ["--ways=3", "--queries=1", "--cache-dir", cache_dir, "--out", tmp_path, "--json"]
    made = hidra("adapt", "--checkpoint", runs_dir / "hidra", *flags).json["classifier"]
    classifier = load_checkpoint(Path(made), CLASSIFIER_FORMAT)
    assert text(classifier.classifier_meta.to_json()) == text(as_written(classifier))


def test_files_of_a_run_read_and_written_are_the_same(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    run = RunDir(runs_dir / "hidra")
    flags = ["--ways=2,3", "--queries=2", "--episodes=4", "--cache-dir", cache_dir]
    done = hidra("evaluate", run.path, runs_dir / "zero", *flags, "--out", tmp_path)
    assert done.code == 0, done.err
    kinds: dict[Path, type[Record]] = {
        run.environment: Environment,
        run.result: RunResult,
        tmp_path / "result.json": EvaluationResult,
    }
    for path, kind in kinds.items():
        assert text(load_record(path, kind).to_json()) == text(json.loads(path.read_text()))
    result = load_record(tmp_path / "result.json", EvaluationResult)
    older = result.model_copy(update={"protocol": None})
    assert result.measured is not None
    assert older.measured is not None
    models = [model.model_copy(update={"sha256": None}) for model in result.measured.models]
    assert older.measured == result.measured.model_copy(update={"models": tuple(models)})


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("iteration", "4", "iteration: Input should be a valid integer"),
        ("iteration", True, "iteration: Input should be a valid integer"),
        ("iteration", -1, "iteration: Input should be greater than or equal to 0"),
        ("iteration", 10**40, "iteration: "),
        ("image_shape", [1, 16], "image_shape.2: Field required"),
        ("image_shape", [1, 16, 10**6], "image_shape.2: Input should be less than"),
        ("max_ways", 0, "max_ways: "),
        ("invert", "yes", "invert: Input should be a valid boolean"),
        ("dataset_hash", "x" * 20_000, "dataset_hash: "),
        ("plugins", {"head": {}}, "plugins.head.name: Field required"),
        ("plugins", {}, "plugins: Dictionary should have at least 3 items"),
        ("settings", {"run": {"seed": "x"}}, "settings.run.seed: "),
        ("settings", {"nowhere": 1}, "settings.nowhere: Extra inputs are not permitted"),
        ("best", {"iteration": 1, "interval": 0.1}, "best: it needs one of accuracy, mean_sq"),
        ("best", {"iteration": 1, "interval": 0.1, "accuracy": 1.5}, "best: accuracy is a share"),
        ("skipped", [1], "skipped.1: Field required"),
        ("preprocessing", {"fit": "squash"}, "preprocessing: "),
        ("preprocessing", Preprocessing((3, 16, 16)).record(), "its pictures are read in another"),
    ],
)
def test_a_wrong_entry_is_named(
    checkpoint: Checkpoint, tmp_path: Path, entry: str, value: Any, said: str
) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(checkpoint_bytes({}, checkpoint.meta | {entry: value}))
    with pytest.raises(DataError, match="is incomplete") as caught:
        _ = load_checkpoint(path).model_meta
    assert caught.value.why.startswith(said)


def test_a_missing_entry_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for entry in ("settings", "plugins", "image_shape", "iteration", "dataset_hash", "invert"):
        rest = {key: value for key, value in checkpoint.meta.items() if key != entry}
        path.write_bytes(checkpoint_bytes({}, rest))
        with pytest.raises(DataError) as caught:
            _ = load_checkpoint(path).model_meta
        assert caught.value.why == f"{entry}: Field required"


def test_a_damaged_file_says_what_is_wrong_or_is_as_good_as_none(
    runs_dir: Path, tmp_path: Path
) -> None:
    whole = json.loads(RunDir(runs_dir / "hidra").result.read_text())
    path = tmp_path / "result.json"
    deep = b"[" * 100_000
    for content, said in (
        (None, "No such file"),
        (b"", "JSONDecodeError"),
        (b"[1]", "Input should be"),
        (deep, "RecursionError"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (text(whole | {"iterations": 0}).encode(), "iterations: "),
        (text(whole | {"format_version": 2}).encode(), "format_version: "),
        (text(whole | {"skipped": float("nan")}).encode(), "skipped: "),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"result\.json is damaged") as caught:
            load_record(path, RunResult)
        assert said in caught.value.why
        assert record_or_none(path, RunResult) is None


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ([10, 2**45], 1),  # no memory holds the second one
        ([10] * 1000, 25),  # small ones, but too many
    ],
)
def test_no_tensor_beyond_the_limit_is_made(sizes: list[int], most: int) -> None:
    made: list[torch.Tensor] = []

    def build() -> None:
        with MemoryLimit(1000, RunError("too large")):
            made.extend(torch.nn.Parameter(torch.empty(size)) for size in sizes)

    with pytest.raises(RunError, match="too large"):
        build()
    assert sum(tensor.nbytes for tensor in made) <= 1000
    made.clear()
    sizes[:] = sizes[:most]
    build()
    assert len(made) == most
