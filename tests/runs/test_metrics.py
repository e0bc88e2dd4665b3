"""The rows of a run, and TensorBoard's files, read back by TensorBoard itself."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from hidra_cli.errors import RunError
from hidra_cli.jobs.training.loop import METRICS
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.metrics import CURVES, open_metrics

from ..conftest import Finished, Hidra
from ..robustness.test_faults import faults
from ..robustness.tools import SMALL, assert_told, checksums, rows

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="the extra `tensorboard` is not installed",
)
RUN = [*SMALL, "--ways=2-3", "--validate-every=2", "--test-episodes=0", "-q", "--name=mine"]


def curves(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """Curve → (step, value), as TensorBoard shows them."""
    events = accumulators.EventAccumulator(str(run.events), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def columns(run: RunDir) -> dict[str, list[tuple[int, Any]]]:
    """The same from metrics.csv, without the speed."""
    return {
        tag: [
            (int(row["iteration"]), pytest.approx(float(row[name]), rel=1e-6))
            for row in rows(run)
            if row[name]
        ]
        for name, tag in CURVES.items()
        if name != "tasks_per_second" and any(row[name] for row in rows(run))
    }


@pytest.fixture
def train(hidra: Hidra, cache_dir: Path, tmp_path: Path) -> object:
    def run(*flags: str | Path, runs: Path = tmp_path) -> Finished:
        return hidra("meta-train", *flags, "--cache-dir", cache_dir, "--runs-dir", runs)

    return run


def test_the_events_are_the_metrics(train: Hidra, tmp_path: Path) -> None:
    done = train(*RUN, "--iterations=4", "--log=tensorboard")
    assert done.code == 0, done.err
    run = RunDir(tmp_path / "mine")
    found = curves(run)
    speeds = found.pop("training/tasks_per_second")
    assert [step for step, _ in speeds] == [1, 2, 3, 4]
    assert all(value > 0 for _, value in speeds)
    assert found == columns(run)
    assert len(found["training/loss"]) == 4
    assert [step for step, _ in found["validation/accuracy"]] == [2, 4]


def test_by_default_there_are_none(train: Hidra, tmp_path: Path) -> None:
    assert train(*RUN, "--iterations=1").code == 0
    assert not RunDir(tmp_path / "mine").events.exists()


def test_a_resumed_run_goes_on_and_takes_back_what_was_not_saved(
    train: Hidra, tmp_path: Path
) -> None:
    assert train(*RUN, "--iterations=3", "--log=tensorboard").code == 0
    run = RunDir(tmp_path / "mine")
    assert train("--resume=mine", "-q", "--iterations=5").code == 0  # the setting stays
    assert curves(run).keys() >= columns(run).keys()
    assert {tag: curves(run)[tag] for tag in columns(run)} == columns(run)
    # A process that was killed after iteration 5, of which only iteration 2 was saved.
    (tmp_path / "short").mkdir()
    assert train(*RUN, "--iterations=2", runs=tmp_path / "short").code == 0
    for name in ("last.safetensors", "best.safetensors"):
        shutil.copy(tmp_path / "short" / "mine" / "checkpoints" / name, run.last.parent / name)
    done = train("--resume=mine", "-q", "--iterations=6", "--log=tensorboard")
    assert done.code == 0, done.err
    found = curves(run)
    assert [step for step, _ in found["training/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["training/tasks_per_second"]] == [1, 2, 3, 4, 5, 6]
    assert {tag: found[tag] for tag in columns(run)} == columns(run)


def test_events_change_nothing_of_the_run_and_may_begin_later(train: Hidra, tmp_path: Path) -> None:
    assert train(*RUN, "--iterations=4", "--log=csv", runs=tmp_path / "plain").code == 0
    assert train(*RUN, "--iterations=2").code == 0
    done = train("--resume=mine", "-q", "--iterations=4", "--log=tensorboard")
    assert done.code == 0, done.err
    run, plain = RunDir(tmp_path / "mine"), RunDir(tmp_path / "plain" / "mine")
    assert rows(run) == rows(plain)
    assert [step for step, _ in curves(run)["training/loss"]] == [3, 4]


def test_without_tensorboard_it_is_told_before_the_run_starts(
    train: Hidra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    done = train(*RUN, "--iterations=1", "--log=tensorboard")
    assert_told(done, 2)
    assert "pip install 'hidra-cli[tensorboard]'" in done.err
    assert not (tmp_path / "mine").exists()
    assert train(*RUN, "--iterations=1").code == 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files cannot be named here")
def test_a_run_whose_events_cannot_be_written_goes_on_later(train: Hidra, tmp_path: Path) -> None:
    flags = [*RUN, "--iterations=4", "--log=tensorboard"]
    runs = tmp_path / "runs"
    with faults(runs) as seen:
        assert train(*flags, runs=runs).code == 0
    run = RunDir(runs / "mine")
    expected = checksums(run), rows(run)
    at = [n for n, name in enumerate(seen.names, 1) if "tfevents" in name]
    assert len(at) >= 1 + 2 + 4  # opened, begun, and an event per step
    for number in (at[1], at[5]):
        shutil.rmtree(run.path)
        with faults(runs, errno.ENOSPC, number):
            failed = train(*flags, runs=runs)
        assert_told(failed, 1)
        assert "No space left on device" in failed.err
        again = train("--resume=mine", "-q", runs=runs)
        assert again.code == 0, again.err
        assert (checksums(run), rows(run)) == expected
        found = curves(run)
        assert {tag: found[tag] for tag in columns(run)} == columns(run)


def test_a_record_cut_off_by_a_full_disk_is_passed_over(small_disk: Path) -> None:
    run = RunDir(small_disk)
    metrics = open_metrics("tensorboard", run, METRICS, kept=0)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    written = ({"iteration": step, "loss": "0.5"} for step in range(1, 1000))
    with pytest.raises(RunError, match="could not be written"):
        deque(map(metrics.write, written))
    with contextlib.suppress(RunError):
        metrics.close()
    filler.unlink()
    metrics = open_metrics("tensorboard", run, METRICS, kept=3)
    for step in range(4, 7):
        metrics.write({"iteration": step, "loss": "0.25"})
    metrics.close()
    losses = [(step, 0.5 if step < 4 else 0.25) for step in range(1, 7)]
    assert curves(run) == {"training/loss": losses}


def test_a_folder_that_cannot_be_written_is_told_of(train: Hidra, tmp_path: Path) -> None:
    assert train(*RUN, "--iterations=1").code == 0
    run = RunDir(tmp_path / "mine")
    run.events.write_text("a file in its place")
    done = train("--resume=mine", "-q", "--iterations=2", "--log=tensorboard")
    assert_told(done, 1)
    assert str(run.events) in done.err
    assert train("--resume=mine", "-q", "--iterations=2", "--log=csv").code == 0


def test_functions_have_curves_of_their_errors(hidra: Hidra, tmp_path: Path) -> None:
    flags = ["--preset=sinusoids", "--iterations=4", "--validate-every=2", "--test-episodes=0"]
    small = ["--validation-episodes=2", "--name=mine", "-q", "--runs-dir", tmp_path]
    done = hidra("meta-train", *flags, *small, "--log=tensorboard")
    assert done.code == 0, done.err
    found = curves(RunDir(tmp_path / "mine"))
    assert [step for step, _ in found["validation/mean_squared_error"]] == [2, 4]
    assert not any("accuracy" in tag for tag in found)
    assert {tag: found[tag] for tag in columns(RunDir(tmp_path / "mine"))} == columns(
        RunDir(tmp_path / "mine")
    )
