"""Regression on functions with any number of outputs, as its user meets it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.directory import RunDir

from ..conftest import TINY_DATA, Hidra

RUN = [
    "--dataset=sinusoids", "--backbone=mlp", "--loss=mse", "--normalization=none",
    "--inner-lr=0.01", "--queries=10", "--meta-batch=2", "--validate-every=5",
    "--validation-episodes=8", "--test-episodes=8", "-q",
]  # fmt: skip


def train(hidra: Hidra, runs: Path, name: str, iterations: int, *more: str) -> RunDir:
    flags = [f"--iterations={iterations}", "--runs-dir", runs, "--name", name]
    done = hidra("meta-train", *RUN, *flags, "--ways=1-8", "--shots=10", *more)
    assert done.code == 0, done.err
    return RunDir(runs / name)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).tensors


def rows(run: RunDir) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def told(hidra: Hidra, tmp_path: Path) -> tuple[RunDir, Any]:
    """A short run with one task batch per step, and what it told."""
    flags = ["--iterations=10", "--runs-dir", tmp_path, "--name", "run", "--json"]
    done = hidra("meta-train", *RUN, *flags, "--ways=1-8", "--shots=10")
    assert done.code == 0, done.err
    return RunDir(tmp_path / "run"), done.json


def test_a_run_reports_squared_errors(told: tuple[RunDir, Any]) -> None:
    run, result = told
    assert [row["ways"] for row in result["test"]] == [1, 2, 5, 8]
    assert all(row["mean_squared_error"] > 0 for row in result["test"])
    assert not any("accuracy" in row for row in result["test"])
    found = rows(run)
    assert all(row["accuracy"] == "" and float(row["loss"]) > 0 for row in found)
    errors = {
        int(row["iteration"]): float(row["validation_mean_squared_error"])
        for row in found
        if row["validation_mean_squared_error"]
    }
    assert set(errors) == {5, 10}
    assert not any(row["validation_accuracy"] for row in found)
    best = result["best_validation"]
    assert best["iteration"] == min(errors, key=lambda i: errors[i]), "the lowest is the best"
    assert best["mean_squared_error"] == pytest.approx(min(errors.values()), rel=1e-5)
    assert load_checkpoint(run.best).meta["iteration"] == best["iteration"]
    assert result["environment"]["dataset"]["title"].startswith("Sinusoids")


def test_evaluate_at_any_number_of_outputs(
    hidra: Hidra, told: tuple[RunDir, Any], tmp_path: Path
) -> None:
    run, _ = told
    other = train(hidra, tmp_path, "zero", 5, "--head=zero")
    out = tmp_path / "out"
    common = ["--ways=1,3,8", "--queries=6", "--episodes=5", "--out", out]
    done = hidra("evaluate", run.path, other.path, *common)
    assert done.code == 0, done.err
    assert "Mean squared error per output on sinusoids" in done.out
    assert "6 queries in all" in done.out
    assert "Paired differences of mean squared error" in done.out
    assert "ccuracy" not in done.out
    assert (out / "mean_squared_error.png").is_file()
    found = hidra("evaluate", run.path, other.path, *common, "--json").json
    cells = {(r["model"], r["ways"]): r["mean_squared_error"] for r in found["results"]}
    assert set(cells) == {(m, n) for m in ("run", "zero") for n in (1, 3, 8)}
    assert all(len(r["per_step"]) == 2 for r in found["results"])
    for row in found["comparisons"]:
        expected = cells[row["model"], row["ways"]] - cells["run", row["ways"]]
        assert row["difference"] == pytest.approx(expected)


def test_resuming_is_bit_exact(hidra: Hidra, tmp_path: Path) -> None:
    whole = train(hidra, tmp_path, "whole", 10, "--test-episodes=0")
    paused = train(hidra, tmp_path, "paused", 5, "--test-episodes=0")
    done = hidra("meta-train", "--resume", paused.path, "--iterations=10", "-q")
    assert done.code == 0, done.err
    for a, b in ((whole.last, paused.last), (whole.best, paused.best)):
        first, second = tensors(a), tensors(b)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    without_speed = [
        [{k: v for k, v in row.items() if k != "tasks_per_second"} for row in rows(run)]
        for run in (whole, paused)
    ]
    assert without_speed[0] == without_speed[1]


def test_it_learns(hidra: Hidra, tmp_path: Path) -> None:
    flags = ["--ways=1-3", "--outer-lr=0.005", "--validate-every=1000"]
    errors = {}
    for iterations in (1, 250):
        run = train(hidra, tmp_path, f"run{iterations}", iterations, *flags, "--test-episodes=0")
        done = hidra(
            "evaluate", run.path, "--ways=1,3,8", "--episodes=60", "--queries=10", "--json"
        )
        errors[iterations] = [row["mean_squared_error"] for row in done.json["results"]]
    assert all(b < 0.8 * a for a, b in zip(errors[1], errors[250], strict=True)), errors


@pytest.mark.parametrize("head", ["hidra", "maml"])
def test_one_output_alone_can_be_tried_out(hidra: Hidra, head: str) -> None:
    done = hidra("meta-train", *RUN, f"--head={head}", "--ways=1", "--shots=5", "--dry-run")
    assert done.code == 0, done.err


def test_the_report_says_what_it_leaves_out(hidra: Hidra, told: tuple[RunDir, Any]) -> None:
    run, _ = told
    done = hidra("report", run.path, "--json")
    assert done.code == 0, done.err
    notes = " ".join(done.json["notes"])
    assert "result.json has mean squared errors" in notes
    assert "sinusoids is a family of functions" in notes
    assert "damaged" not in notes


@pytest.mark.parametrize(
    ("flags", "why", "fix"),
    [
        (["--loss=softmax"], "values of functions, not classes", "--loss mse"),
        (["--loss=sigmoid"], "values of functions, not classes", "--loss mse"),
        (["--backbone=conv4"], "the inputs of sinusoids are numbers", "--backbone mlp"),
        (["--source=."], "a family of functions", "leave --source out"),
        (["--data-opt=period=2"], "period: unknown option", "amplitude"),
        (["--data-opt=reach=-1"], "reach=-1.0 is not positive", "dataset sinusoids"),
        (["--head=maml", "--ways=1-3"], "asked for 1, 2, 3 ways", "any number"),
    ],
)
def test_what_cannot_be_is_refused_with_a_fix(
    hidra: Hidra, tmp_path: Path, flags: list[str], why: str, fix: str
) -> None:
    done = hidra("meta-train", *RUN, "--runs-dir", tmp_path / "runs", *flags)
    assert done.code == 2
    assert why in done.err
    assert fix in done.err.partition("fix:")[2]
    assert not (tmp_path / "runs").exists()


def test_commands_for_images_refuse_functions(
    hidra: Hidra, told: tuple[RunDir, Any], runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    run, _ = told
    for words, said in (
        (["prepare", "sinusoids"], "there is nothing to prepare"),
        (["adapt", "--checkpoint", run.path], "makes no classifiers"),
        (["adapt", "--checkpoint", run.path, "--support", tmp_path], "makes no classifiers"),
        (["adapt", "--checkpoint", runs_dir / "hidra", "--dataset=sinusoids"], "needs images"),
        (["evaluate", run.path, "--pixels"], "--pixels needs images"),
        (["evaluate", runs_dir / "hidra", "--dataset=sinusoids"], "was trained on 16×16 images"),
        (["evaluate", run.path, "--dataset=glyphs", *TINY_DATA], "was trained on 1×1 images"),
    ):
        done = hidra(*words, *(["--cache-dir", cache_dir] if words[0] != "info" else []))
        assert done.code == 2, (words, done.err)
        assert said in done.err, words
        assert "fix: " in done.err


def test_a_step_that_is_too_long_names_the_task_and_what_helps(
    hidra: Hidra, tmp_path: Path
) -> None:
    flags = ["--inner-lr=1e30", "--steps=3", "--iterations=2", "--runs-dir", tmp_path]
    done = hidra("meta-train", *RUN, *flags, "--ways=2")
    assert done.code == 1
    assert "training episode 0 of seed 0" in done.err
    assert "lower --inner-lr" in done.err
    assert "hidra adapt" not in done.err


def test_plugins_show_a_family(hidra: Hidra) -> None:
    done = hidra("plugins", "show", "dataset", "sinusoids")
    assert done.code == 0, done.err
    assert "functions, drawn as needed" in done.out
    assert "amplitude" in done.out


def test_squared_error_of_pictures_is_of_one_hot_codes(
    hidra: Hidra, cache_dir: Path, tmp_path: Path
) -> None:
    done = hidra(
        "meta-train", *TINY_DATA, "--loss=mse", "--backbone=mlp", "--ways=2-4", "--queries=2",
        "--iterations=2", "--validation-episodes=2", "--test-episodes=2", "--inner-lr=0.1",
        "--cache-dir", cache_dir, "--runs-dir", tmp_path, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert all(0 <= row["accuracy"] <= 1 for row in done.json["test"])
