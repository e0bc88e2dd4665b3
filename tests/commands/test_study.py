"""Studies: trained once, tested once, taken up again, and told in one table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hidra_cli.jobs.study.plan import is_wanted, load_study, trainings
from hidra_cli.reports.study import markdown, summary
from hidra_cli.runs.records import EvaluationProtocol, ProtocolModel
from hidra_cli.runs.scores import Cell, interval, read_episodes
from hidra_cli.tasks.objective import CLASSIFICATION

from ..conftest import TINY_OPTIONS, Hidra

STUDY = f"""
title = "Tiny"
seeds = [0, 1]

[settings.dataset]
name = "glyphs"
options = {json.dumps(TINY_OPTIONS).replace(":", " =")}

[settings.tasks]
ways = "2-4"
queries = 3

[settings.model]
backbone_options = {{ filters = 4 }}

[settings.outer]
iterations = 3
meta_batch = 2
validate_every = 2
validation_episodes = 4
test_episodes = 0

[evaluation]
ways = [2, 4]
queries = 3
episodes = 6

[models.any]
label = "HIDRA, any way"

[models.maml]
per_way = true
ways = [4]
settings = {{ model = {{ head = "maml" }} }}
"""


def _cells(tested: Path) -> list[Cell]:
    return read_episodes(tested / "episodes.csv")


STUDIES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "studies").glob("*.toml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY)
    return path


def test_a_study_plans_every_model_seed_and_number_of_ways(file: Path) -> None:
    runs = list(trainings(load_study(file)))
    assert [run.name for run in runs] == [
        "any-seed0",
        "maml-4w-seed0",
        "any-seed1",
        "maml-4w-seed1",
    ]
    assert runs[0].ways == (2, 4)
    assert runs[3].ways == (4,)
    assert runs[3].settings["tasks"] == {"ways": 4, "queries": 3}
    assert runs[3].settings["run"] == {"seed": 1}
    assert {run.iterations for run in runs} == {3}


def test_a_model_s_options_join_the_study_s_and_not_those_of_another_head(file: Path) -> None:
    more = STUDY.replace(
        "backbone_options = { filters = 4 }",
        'head = "cosine"\nhead_options = { scale = 5.0 }\nbackbone_options = { filters = 4 }',
    )
    more += "[models.deep]\nsettings = { model = { backbone_options = { blocks = 2 } } }\n"
    file.write_text(more)
    of = {t.model: t.resolved.settings.model for t in trainings(load_study(file))}
    assert of["deep"].backbone_options == {"filters": 4, "blocks": 2}
    assert of["deep"].head_options == of["any"].head_options == {"scale": 5.0}
    assert (of["maml"].head, of["maml"].head_options) == ("maml", {})


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_this_project_are_valid(path: Path) -> None:
    study = load_study(path)
    assert len(study.seeds) >= 3, "an interval over episodes says nothing of the seeds"
    assert study.evaluation.episodes >= 600
    assert len(list(trainings(study))) >= 3 * len(study.models)


def test_a_study_is_trained_tested_told_and_not_done_twice(
    hidra: Hidra,
    file: Path,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HIDRA_INNER_INNER_LR", "0.123")
    out = tmp_path / "out"
    command = ["study", file, f"--out={out}", f"--cache-dir={cache_dir}", "--jobs=2", "--json"]
    done = hidra(*command)
    assert done.code == 0, done.err
    config = (out / "runs" / "any-seed0" / "config.toml").read_text()
    assert "inner_lr = 0.4" in config, "a variable of the shell is no part of a study"
    found = done.json
    rows = {(row["model"], row["ways"]): row for row in found["results"]}
    assert set(rows) == {("HIDRA, any way", 2), ("HIDRA, any way", 4), ("maml", 4)}
    cells = [
        cell
        for seed in (0, 1)
        for cell in _cells(out / "evaluations" / f"any-seed{seed}")
        if cell.ways == 4
    ]
    row = rows["HIDRA, any way", 4]
    assert row["per_seed"] == pytest.approx([cell.final.mean() for cell in cells])
    assert row["accuracy"] == pytest.approx(sum(row["per_seed"]) / 2)
    (difference,) = found["differences"]
    assert (difference["model"], difference["ways"]) == ("maml", 4)
    assert difference["difference"] == pytest.approx(rows["maml", 4]["accuracy"] - row["accuracy"])
    table = (out / "table.md").read_text()
    mean, half = row["accuracy"], row["interval"]
    assert f"{100 * mean:.2f} ± {100 * half:.2f}" in table
    assert (out / "scores.png").read_bytes().startswith(b"\x89PNG")
    learned = [(curve["model"], curve["ways"], curve["seed"]) for curve in found["learning"]]
    of_seed = [("HIDRA, any way", "2-4"), ("maml", "4")]
    assert learned == [(*run, seed) for seed in (0, 1) for run in of_seed]
    best = json.loads((out / "runs" / "any-seed0" / "result.json").read_text())["best_validation"]
    ((iteration, validated),) = found["learning"][0]["points"]  # of 3 steps, the second
    assert (iteration, validated) == (2, pytest.approx(best["accuracy"], abs=1e-5))
    assert (out / "differences.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "learning.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*")}
    again = hidra(*command)
    assert again.json["results"] == found["results"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert interval(cells[0].final)[0] == pytest.approx(row["per_seed"][0])


def test_a_model_is_compared_with_the_one_it_names(file: Path) -> None:
    more = '[models.{}]\nlabel = "{}"\nways = [4]\n{}\n'
    file.write_text(
        STUDY.replace("per_way = true\nways = [4]\n", "ways = [4]\n")
        + more.format("wide", "wide", "")
        + more.format("wide-maml", "wide MAML", 'minus = "wide"')
    )
    study = load_study(file)
    generator = np.random.default_rng(0)
    scores = {run.model: generator.random((12, 1)) for run in trainings(study)}
    cells = [
        Cell(study.models[name].label or name, "support", 4, 1, own, CLASSIFICATION)
        for name, own in scores.items()
    ]
    found = summary(study, cells)
    assert {(row["model"], row["minus"]): row["difference"] for row in found["differences"]} == {
        ("maml", "HIDRA, any way"): pytest.approx((scores["maml"] - scores["any"]).mean()),
        ("wide MAML", "wide"): pytest.approx((scores["wide-maml"] - scores["wide"]).mean()),
    }
    table = markdown(study, found).splitlines()
    (line,) = [line for line in table if line.startswith("| minus wide |")]
    assert table[table.index(line) - 1].startswith("| wide MAML |")
    difference = 100 * (scores["wide-maml"] - scores["wide"]).mean()
    assert f"| {difference:+.2f} ± " in line


def test_a_changed_study_takes_no_run_of_before(
    hidra: Hidra, file: Path, tmp_path: Path, cache_dir: Path
) -> None:
    file.write_text(file.read_text().replace("[0, 1]", "[0]"))
    out = tmp_path / "out"
    command = ["study", file, f"--out={out}", f"--cache-dir={cache_dir}", "--json"]
    first = hidra(*command)
    assert first.code == 0, first.err
    trained = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*")}
    text = file.read_text()

    file.write_text(text.replace("iterations = 3", "iterations = 4"))
    changed = hidra(*command)
    assert changed.code == 2
    for said in ("any-seed0", "outer.iterations: 3 → 4", "--out"):
        assert said in changed.err, changed.err

    file.write_text(text.replace("episodes = 6", "episodes = 8"))
    tested_anew = hidra(*command)
    assert tested_anew.code == 0, tested_anew.err
    scores = [len(cell.final) for cell in _cells(out / "evaluations" / "any-seed0")]
    assert scores == [8, 8]
    assert {path: path.stat().st_mtime_ns for path in trained} == trained

    for path in out.glob("evaluations/*/result.json"):  # as an older version wrote it
        older = json.loads(path.read_text())
        del older["protocol"]
        older["environment"]["command"] = ["hidra", "evaluate"]
        path.write_text(json.dumps(older))
    # What was tested is enough for the table: the runs themselves may be elsewhere.
    shutil.rmtree(out / "runs")
    again = hidra(*command)
    assert again.code == 0, again.err
    assert again.json["results"] == tested_anew.json["results"]
    assert tested_anew.json["learning"] != []
    assert again.json["learning"] == []
    file.write_text(text.replace("filters = 4", "filters = 5"))
    assert "filters" in hidra(*command).err


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"dataset_hash": "of other data"}, True),  # which the evaluation warned of
        ({"ways": (2,)}, False),
        ({"shots": (5,)}, False),
        ({"queries": 4}, False),
        ({"episodes": 7}, False),
        ({"seed": 1}, False),
        ({"split": "val"}, False),
        ({"within_groups": True}, False),
        ({"pixels": True}, False),
        ({"models": ()}, False),
        ({"sha256": None}, True),  # an older file
        ({"sha256": "of another checkpoint"}, False),
        ({"steps": 2}, False),
        ({"normalization": "none"}, False),
    ],
)
def test_a_study_takes_an_evaluation_by_its_protocol(
    file: Path, change: dict[str, Any], wanted: bool
) -> None:
    study = load_study(file)
    training = next(trainings(study))
    model = {"sha256": "a", "steps": 1, "normalization": "support"}
    protocol = {
        "models": (ProtocolModel.model_validate(model | change),),
        "dataset_hash": "d",
        "split": "test",
        "within_groups": False,
        "ways": (2, 4),
        "shots": (1,),
        "queries": 3,
        "episodes": 6,
        "seed": 0,
        "pixels": False,
    }
    measured = EvaluationProtocol.model_validate(protocol | change)
    assert is_wanted(study, training, measured, "a") is wanted
    assert is_wanted(study, training, measured, None) is (wanted or "sha256" in change)


def test_a_stopped_study_goes_on(hidra: Hidra, file: Path, tmp_path: Path, cache_dir: Path) -> None:
    file.write_text(
        file.read_text().replace("iterations = 3", "iterations = 60").replace("[0, 1]", "[0]")
    )
    out = tmp_path / "out"
    flags = [str(file), f"--out={out}", f"--cache-dir={cache_dir}"]
    command = [sys.executable, "-m", "hidra_cli.app", "study", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    metrics = out / "runs" / "any-seed0" / "metrics.csv"
    waited = time.monotonic()
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() - waited < 120
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "the same command goes on" in told
    taken = len(metrics.read_text().splitlines()) - 1
    assert (metrics.parent / "checkpoints" / "last.safetensors").exists()
    done = hidra("study", *flags)
    assert done.code == 0, done.err
    log = (out / "logs" / "any-seed0.txt").read_text()
    assert f"resumed after iteration {taken}" in log


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "Tiny"', "", ["title: Field required"]),
        ("[models.any]", "[models.Any_Way]", ["Any_Way", "a-z, 0-9 and -"]),
        ("episodes = 6", "episode = 6", ["evaluation.episode"]),
        ("iterations = 3", "iterations = 0", ["outer.iterations = 0"]),
        ("ways = [4]", 'minus = "mam"', ["maml.minus", "'mam' is no other model"]),
        ("ways = [4]", 'minus = "maml"', ["'maml' is no other model"]),
        ("[evaluation]", "[evaluation", ["cannot be read"]),
    ],
)
def test_a_wrong_study_is_told_before_anything_is_trained(
    hidra: Hidra, file: Path, tmp_path: Path, old: str, new: str, said: list[str]
) -> None:
    file.write_text(file.read_text().replace(old, new, 1))
    done = hidra("study", file, f"--out={tmp_path / 'out'}")
    assert done.code == 2, done.err
    for text in said:
        assert text in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_named_with_what_it_said(
    hidra: Hidra, file: Path, tmp_path: Path, cache_dir: Path
) -> None:
    file.write_text(file.read_text().replace("filters = 4", "filters = 4, colour = 3"))
    done = hidra("study", file, f"--out={tmp_path / 'out'}", f"--cache-dir={cache_dir}")
    assert done.code == 1
    assert "the run any-seed0 ended with exit code 2" in done.err
    assert "colour: unknown option" in done.err
