"""`hidra meta-train` as its user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ..conftest import TINY_DATA, TINY_MODEL, TINY_RUN, Hidra, WriteImage


def test_a_run_leaves_everything_that_is_needed_to_trust_it(runs_dir: Path) -> None:
    run = runs_dir / "hidra"
    assert {path.name for path in run.iterdir()} >= {
        "checkpoints",
        "config.toml",
        "environment.json",
        "metrics.csv",
        "result.json",
    }
    config = tomllib.loads((run / "config.toml").read_text())
    tasks = {"ways": "2-5", "shots": "1", "queries": 3, "augment": "none"}
    assert config["tasks"] == tasks
    result = json.loads((run / "result.json").read_text())
    assert [row["ways"] for row in result["test"]] == [2, 5, 10]
    assert all(0 <= row["accuracy"] <= 1 and row["episodes"] == 4 for row in result["test"])
    facts = json.loads((run / "environment.json").read_text())
    assert facts["packages"]["torch"]
    assert facts["dataset"]["content_hash"]
    assert facts["plugins"]["head"] == {
        "name": "hidra",
        "distribution": "hidra-cli",
        "version": facts["hidra-cli"],
    }


def test_its_config_starts_the_same_run_again(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    arguments = ["--config", runs_dir / "hidra" / "config.toml", "--cache-dir", cache_dir]
    done = hidra("meta-train", *arguments, "--runs-dir", tmp_path, "--name", "again", "--json")
    assert done.code == 0, done.err
    first = json.loads((runs_dir / "hidra" / "result.json").read_text())
    numbers = [[row["accuracy"] for row in result["test"]] for result in (done.json, first)]
    assert numbers[0] == numbers[1]
    assert done.json["best_validation"] == first["best_validation"]
    metrics = [(r / "metrics.csv").read_text() for r in (runs_dir / "hidra", tmp_path / "again")]
    without_speed = [
        [[cell for i, cell in enumerate(line.split(",")) if i != 6] for line in text.splitlines()]
        for text in metrics
    ]
    assert without_speed[0] == without_speed[1]


def test_the_result_is_on_stdout_and_the_rest_on_stderr(
    hidra: Hidra, cache_dir: Path, tmp_path: Path
) -> None:
    done = hidra(
        "meta-train", *TINY_RUN, "--ways=2-5", "--cache-dir", cache_dir, "--runs-dir", tmp_path
    )
    assert done.code == 0
    assert "Test accuracy of hidra on glyphs, 1-shot, 4 episodes, support" in done.out
    assert "±" in done.out
    assert "run " not in done.out
    assert f"run {tmp_path}" in done.err
    assert "next: hidra evaluate" in done.err


def test_a_dry_run_reports_and_writes_nothing(
    hidra: Hidra, cache_dir: Path, tmp_path: Path
) -> None:
    done = hidra(
        "meta-train", *TINY_DATA, *TINY_MODEL, "--ways=3", "--dry-run", "--json",
        "--cache-dir", cache_dir, "--runs-dir", tmp_path / "runs",
    )  # fmt: skip
    assert done.code == 0, done.err
    # three more blocks of 8 → 8 channels after the first of 1 → 8, each with an affine
    assert done.json["meta_parameters"] == 9 * 8 + 3 * 9 * 64 + 4 * 16 + 9
    assert done.json["tasks_per_second"] > 0
    assert not (tmp_path / "runs").exists()


def test_print_config_names_the_origin_of_each_value(
    hidra: Hidra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('[tasks]\nways = "2-9"\nqueries = 7\n[run]\nseed = 4\n')
    monkeypatch.setenv("HIDRA_TASKS_QUERIES", "8")
    monkeypatch.setenv("HIDRA_RUN_SEED", "5")
    done = hidra("meta-train", "--config", config, "--seed", "6", "--print-config", "--json")
    assert done.code == 0
    assert done.json["tasks.ways"]["from"] == str(config)
    assert done.json["tasks.queries"] == {"value": "8", "from": "environment"}
    assert done.json["run.seed"] == {"value": "6", "from": "flag"}
    assert done.json["inner.order"] == {"value": "2", "from": "default"}


@pytest.mark.parametrize("backbone", ["conv4", "resnet12"])
@pytest.mark.parametrize("normalization", ["support", "tasknorm", "transductive", "none"])
def test_every_backbone_and_normalization_runs(
    hidra: Hidra, cache_dir: Path, tmp_path: Path, backbone: str, normalization: str
) -> None:
    option = "filters=4" if backbone == "conv4" else "width=4"
    done = hidra(
        "meta-train", *TINY_DATA, "--iterations=1", "--validation-episodes=2", "--ways=3",
        "--queries=2", "--test-episodes=2", "--meta-batch=1", f"--backbone={backbone}",
        f"--bb-opt={option}", f"--normalization={normalization}", "--json",
        "--cache-dir", cache_dir, "--runs-dir", tmp_path, "--name", "one",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["iterations"] == 1


def test_the_final_table_is_checked_before_the_run(
    hidra: Hidra, tmp_path: Path, write_image: WriteImage
) -> None:
    for split, images in (("train", 6), ("val", 6), ("test", 3)):
        for number in range(3):
            for image in range(images):
                write_image(tmp_path / "mine" / split / f"{split}{number}" / f"{image}.png")
    own = ["--source", tmp_path / "mine", "--data-opt=size=16", "--cache-dir", tmp_path / "cache"]
    assert hidra("prepare", "folder", *own, "-q").code == 0
    model = ["--bb-opt=filters=4", "--ways=2-3", "--queries=3", "--runs-dir", tmp_path / "runs"]
    refused = hidra("meta-train", "--dataset=folder", *own, *model)
    assert refused.code == 3
    assert "class 'test0' of folder has too few images" in refused.err
    assert not (tmp_path / "runs").exists()
    few = ["--iterations=1", "--validation-episodes=2", "--test-episodes=0"]
    assert hidra("meta-train", "--dataset=folder", *own, *model, *few, "-q").code == 0


def test_a_dry_run_measures_the_memory_of_the_heaviest_step(
    cache_dir: Path, tmp_path: Path
) -> None:
    """Each in a process of its own, whose peak is that of the step."""

    def memory(*flags: str) -> float:
        command = [
            sys.executable, "-m", "hidra_cli.app", "meta-train", *TINY_DATA, "--bb-opt=filters=128",
            "--ways=10", "--queries=7", "--meta-batch=3", "--strategy=loop", "--steps=5",
            "--dry-run", "--json", *flags,
            "--cache-dir", str(cache_dir), "--runs-dir", str(tmp_path),
        ]  # fmt: skip
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(json.loads(done.stdout)["memory_mb"])

    first, second, later = memory("--order=1"), memory(), memory("--second-order-from=3")
    assert first > 30, "large enough to be told from noise"
    assert second > 1.5 * first
    assert later > 1.5 * first, "training begins with order 1, but that is not all it will take"


def test_tf32_is_float32_where_there_is_none_and_says_so(
    hidra: Hidra, cache_dir: Path, tmp_path: Path
) -> None:
    told = {}
    for precision in ("float32", "tf32"):
        done = hidra(
            "meta-train", *TINY_RUN, "--ways=2-4", "--iterations=2", f"--precision={precision}",
            "--device=cpu", "--name", precision, "--cache-dir", cache_dir, "--runs-dir", tmp_path,
        )  # fmt: skip
        assert done.code == 0, done.err
        told[precision] = done.err
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in told]
    columns = [[row.split(",")[:6] for row in run] for run in rows]  # those without a clock
    assert columns[0] == columns[1]
    assert "cpu has no TF32" in told["tf32"]
    assert "TF32" not in told["float32"]
    tested = hidra("evaluate", tmp_path / "tf32", "--ways=3", "--episodes=4", "--queries=3",
                   "--cache-dir", cache_dir)  # fmt: skip
    assert tested.code == 0, tested.err
