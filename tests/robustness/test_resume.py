"""N + M iterations equal N, stop, resume, M: bit for bit, for every head, order and precision."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hidra_cli.engine.kernels import pooled_moments
from hidra_cli.engine.strategies.cores import POOL
from hidra_cli.errors import DataError
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.training.loop import train
from hidra_cli.jobs.training.state import restore
from hidra_cli.jobs.training.trainer import MetaTrainer
from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.directory import RunDir, create_run, owning
from hidra_cli.system.worker_pool import operator_threads

from ..conftest import Finished, Hidra
from ..jobs.test_training import settings_of
from .tools import SMALL, assert_told, assert_whole, checksums, rows, start

CPU = torch.device("cpu")


class Place:
    """Runs in one folder, trained in this process."""

    def __init__(self, hidra: Hidra, runs: Path, cache: Path) -> None:
        self.hidra, self.runs = hidra, runs
        self.flags = ["--cache-dir", cache, "--runs-dir", runs, "-q"]

    def train(self, name: str, iterations: int, *flags: str) -> RunDir:
        length = ["--ways=2-4", f"--iterations={iterations}", "--validate-every=3"]
        done = self.hidra("meta-train", *SMALL, *length, *flags, *self.flags, f"--name={name}")
        assert done.code == 0, done.err
        return RunDir(self.runs / name)

    def resume(self, name: str, *flags: str) -> Finished:
        return self.hidra("meta-train", "--resume", name, *flags, *self.flags)


@pytest.fixture
def place(hidra: Hidra, tmp_path: Path, cache_dir: Path) -> Place:
    return Place(hidra, tmp_path / "runs", cache_dir)


HEADS = {
    "hidra": [],
    "hidra-slots": ["--head=hidra", "--head-opt=master=slots"],
    "hidra-learned": ["--rates=learned", "--multi-step=5", "--second-order-from=3"],
    "hidra-augment": ["--augment=flip-crop"],
    "hidra-sigmoid": ["--loss=sigmoid", "--inner-lr=0.1"],
    "maml": ["--head=maml", "--ways=3"],
    "protomaml": ["--head=protomaml"],
    "cosine": ["--head=cosine"],
    "ridge": ["--head=ridge"],
    "normalized": ["--head-opt=normalize=true"],
    "random": ["--head=random"],
    "zero": ["--head=zero"],
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("order", ["1", "2"])
@pytest.mark.parametrize("head", HEADS)
def test_a_run_that_paused_equals_one_that_did_not(
    place: Place, head: str, order: str, precision: str
) -> None:
    flags = [*HEADS[head], f"--order={order}", f"--precision={precision}", "--steps=2"]
    whole = place.train("whole", 6, *flags)
    paused = place.train("paused", 4, *flags)
    done = place.resume("paused", "--iterations=6")
    assert done.code == 0, done.err
    assert checksums(paused)[paused.last.name] == checksums(whole)[whole.last.name]
    best, other = load_checkpoint(whole.best), load_checkpoint(paused.best)
    assert best.meta["iteration"] == other.meta["iteration"]
    assert all(torch.equal(tensor, other.tensors[n]) for n, tensor in best.tensors.items())
    assert rows(paused) == rows(whole)
    assert_whole(paused, 6)


def test_a_pause_before_the_first_validation_leaves_no_trace(place: Place) -> None:
    whole = place.train("whole", 6)
    paused = place.train("paused", 2)
    assert load_checkpoint(paused.best).meta["iteration"] == 2, "a short run has a best, too"
    assert place.resume("paused", "--iterations=6").code == 0
    assert checksums(paused)[paused.last.name] == checksums(whole)[whole.last.name]
    assert load_checkpoint(paused.best).meta["best"] == load_checkpoint(whole.best).meta["best"]
    assert rows(paused) == rows(whole)


def test_what_a_plugin_draws_from_torch_goes_on_too(
    tiny_images: PreparedImages, tmp_path: Path
) -> None:
    def trainer(iterations: int) -> MetaTrainer:
        # As is chosen for a backbone that has dropout from the start (tests/engine).
        settings = settings_of(outer__iterations=iterations, run__strategy="loop")
        made = MetaTrainer(settings, tiny_images, CPU)
        blocks = made.learner.backbone.get_submodule("blocks")
        assert isinstance(blocks, nn.ModuleList)
        blocks.append(nn.Dropout(0.5))
        return made

    def run(made: MetaTrainer, folder: RunDir) -> dict[str, Any]:
        train(made, folder)
        return dict(load_checkpoint(folder.last).tensors)

    names = ["whole", "paused", "other"]
    whole, paused, other = (create_run(tmp_path, n, settings_of()) for n in names)
    expected = run(trainer(6), whole)
    run(trainer(4), paused)
    torch.manual_seed(int(time.time()))  # the process that resumes is in any state
    again = trainer(6)
    restore(again, load_checkpoint(paused.last))
    found = run(again, paused)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    without = MetaTrainer(settings_of(), tiny_images, CPU)
    dropless = run(without, other)
    assert not all(torch.equal(dropless[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--inner-lr=0.1"], ["inner.inner_lr: 0.4 → 0.1 (flag)"]),
        (["--seed=7", "--ways=5"], ["run.seed: 0 → 7", "tasks.ways: 2-4 → 5"]),
        (["--head=maml"], ["model.head: hidra → maml"]),
        (["--bb-opt=filters=5"], ["model.backbone_options: {'filters': '4'} → {'filters': '5'}"]),
        (["--nonfinite=skip"], ["outer.nonfinite: stop → skip"]),
        (["--preset=omniglot-5way"], ["dataset.name: glyphs → omniglot (preset omniglot-5way)"]),
        (["--name=other"], ["--name and --resume cannot go together"]),
        (["--iterations=2"], ["is at iteration 3 already", "--iterations 3 or more"]),
    ],
)
def test_other_settings_are_refused_and_listed(
    place: Place, flags: list[str], said: list[str]
) -> None:
    run = place.train("mine", 3)
    before = {path: path.read_bytes() for path in run.path.rglob("*.*") if path.is_file()}
    done = place.resume("mine", *flags)
    assert_told(done, 2)
    for text in said:
        assert text in done.err, done.err
    assert {p: p.read_bytes() for p in run.path.rglob("*.*") if p.is_file()} == before


def test_the_same_settings_again_are_no_others(place: Place) -> None:
    place.train("mine", 3, "--bb-opt=blocks=2")
    flags = ["--iterations=4", "--bb-opt=filters=4", "--bb-opt=blocks=2", "--ways=2,3,4"]
    done = place.resume("mine", *flags, "--device=cpu", "--save-seconds=5", "--test-episodes=3")
    assert done.code == 0, done.err
    assert_whole(RunDir(place.runs / "mine"), 4)


def test_latest_goes_on_with_the_run_that_was_last_at_work(place: Place) -> None:
    for name in ("first", "second"):
        place.train(name, 3)
    os.utime(place.runs / "first" / "checkpoints" / "last.safetensors")
    done = place.resume("latest", "--iterations=4", "--json")
    assert done.json["run"].endswith("first")
    assert done.json["iterations"] == 4


def test_a_finished_run_has_nothing_left_to_do(place: Place) -> None:
    run = place.train("mine", 3)
    before = run.last.stat().st_mtime_ns, run.result.read_bytes()
    done = place.resume("mine", "--json")
    assert done.code == 0
    assert done.json["finished_before"] is True
    assert (run.last.stat().st_mtime_ns, run.result.read_bytes()) == before


def test_a_run_killed_during_its_test_is_tested_again(place: Place) -> None:
    run = place.train("mine", 3)
    expected = run.result.read_bytes()
    run.result.unlink()
    done = place.resume("mine", "--json")
    assert done.json["test"] == RunResult.of(expected)["test"]
    assert run.result.exists()


class RunResult:
    """result.json, read."""

    @staticmethod
    def of(content: bytes) -> dict[str, Any]:
        return dict(json.loads(content))


def test_the_checkpoint_before_a_damaged_one_is_taken(place: Place) -> None:
    whole = place.train("whole", 6)
    run = place.train("mine", 6)
    run.last.write_bytes(run.last.read_bytes()[:-9])
    done = place.resume("mine")
    assert done.code == 0, done.err
    assert "last.safetensors is damaged" in done.err
    assert "going on from previous.safetensors" in done.err
    assert checksums(run) == checksums(whole)
    assert rows(run) == rows(whole)


def test_a_run_whose_checkpoints_are_all_damaged_says_so(place: Place) -> None:
    run = place.train("mine", 6)
    for path in (run.last, run.previous):
        path.write_bytes(b"gone")
    assert_told(place.resume("mine"), 3)


def test_a_run_killed_before_its_first_checkpoint_begins_again(place: Place) -> None:
    whole = place.train("whole", 3)
    run = place.train("mine", 3)
    shutil.rmtree(run.last.parent)
    run.last.parent.mkdir()
    assert place.resume("mine").code == 0
    assert checksums(run) == checksums(whole)
    assert_whole(run, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + text.splitlines()[-1] + "\n4,2,1,0.5,half a ro",
        lambda text: text + "\x00\x00\x00\x00\x00",
        lambda text: text.replace("\n", "\n\n"),
    ],
    ids=["twice and half", "zeros of a power cut", "empty lines"],
)
def test_rows_are_there_once_whatever_was_left_behind(place: Place, damage: Any) -> None:
    whole = place.train("whole", 6)
    run = place.train("mine", 3)
    run.metrics.write_text(damage(run.metrics.read_text()))
    assert place.resume("mine", "--iterations=6").code == 0
    assert rows(run) == rows(whole)


def test_rows_that_someone_deleted_are_told_of(place: Place) -> None:
    run = place.train("mine", 3)
    run.metrics.unlink()
    done = place.resume("mine", "--iterations=4")
    assert done.code == 0
    assert "3 rows of" in done.err
    assert [row["iteration"] for row in rows(run)] == ["4"]


def test_steps_before_a_plugin_failed_are_saved(
    tiny_images: PreparedImages, tmp_path: Path
) -> None:
    settings = settings_of(outer__iterations=6, outer__validate_every=100)
    run, whole = (create_run(tmp_path, name, settings) for name in ("mine", "whole"))
    failing = MetaTrainer(settings, tiny_images, CPU)
    calls = 0

    def fail(ways: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise ZeroDivisionError("a plugin's fault")

    failing.learner.head.before_outer_step = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        train(failing, run)
    saved = load_checkpoint(run.last)
    assert saved.meta["iteration"] == 4
    again = MetaTrainer(settings, tiny_images, CPU)
    restore(again, saved)
    train(again, run)
    train(MetaTrainer(settings, tiny_images, CPU), whole)
    assert checksums(run) == checksums(whole)
    assert rows(run) == rows(whole)


def test_one_run_has_one_writer(place: Place) -> None:
    run = place.train("mine", 3)
    with owning(run):
        done = place.resume("mine", "--iterations=4")
    assert_told(done, 2)
    assert "another process is writing the run" in done.err
    assert place.resume("mine", "--iterations=4").code == 0


def test_other_images_are_refused(tiny_images: PreparedImages, place: Place) -> None:
    from dataclasses import replace

    run = place.train("mine", 3)
    checkpoint = load_checkpoint(run.last)
    other = replace(tiny_images, attributes=tiny_images.attributes | {"content_hash": "0" * 64})
    with pytest.raises(DataError, match="not those that"):
        restore(MetaTrainer(settings_of(), other, CPU), checkpoint)


@pytest.mark.parametrize(
    ("began", "now", "told"),
    [
        ({"strategy": "threads", "threads": 2}, "threads", ""),  # the same on one per task or fewer
        ({"strategy": "threads", "threads": 77}, "threads", "77 threads"),
        ({"strategy": "threads"}, "processes", ""),
        ({"strategy": "processes", "threads": 2}, "threads", ""),
        ({"strategy": "loop", "threads": 77}, "loop", "77 threads"),
        ({"strategy": "loop", "threads": 1}, "threads", ""),
        ({"strategy": "threads"}, "batched", "--strategy threads, now"),
        ({"strategy": "batched"}, "batched", ""),
        ({"strategy": "batched", "threads": 77}, "batched", "77 threads"),
        (
            {"strategy": "threads", "kernels": not pooled_moments.compiled()},
            "threads",
            "compiled kernels",
        ),
        ({"strategy": "loop", "resumed": [{"strategy": "threads"}]}, "threads", ""),
    ],
)
def test_what_changes_the_rounding_is_told_and_nothing_else(
    place: Place, began: dict[str, Any], now: str, told: str
) -> None:
    run = place.train("mine", 1)
    facts = RunResult.of(run.environment.read_bytes())
    for entry in began.get("resumed", []):
        entry |= {"kernels": facts["kernels"], "threads": facts["threads"]}
    run.environment.write_text(json.dumps(facts | began))
    done = place.resume("mine", "--iterations=2", f"--strategy={now}")
    assert done.code == 0
    warned = [line for line in done.err.splitlines() if "the same but for rounding" in line]
    assert len(warned) == bool(told)
    assert told in "".join(warned)
    last = RunResult.of(run.environment.read_bytes())["resumed"][-1]
    assert (last["strategy"], last["kernels"]) == (now, pooled_moments.compiled())


@pytest.mark.parametrize("strategy", ["threads", "processes"])
def test_a_task_per_core_and_a_loop_of_one_thread_are_the_same_run(
    place: Place, strategy: str
) -> None:
    """Which is why no warning is due between them: bit for bit, in either order."""
    POOL.stop()
    with operator_threads(2):
        at_once = place.train("whole", 4, f"--strategy={strategy}")
        place.train("mine", 2, f"--strategy={strategy}")
    assert bool(POOL.pids) == (strategy == "processes")
    with operator_threads(1):
        assert place.resume("mine", "--iterations=4", "--strategy=loop").code == 0
    runs = (RunDir(place.runs / "mine"), at_once)
    ours, theirs = (load_checkpoint(run.last).tensors for run in runs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_was_resumed_where_is_recorded(place: Place) -> None:
    run = place.train("mine", 3)
    assert place.resume("mine", "--iterations=4").code == 0
    assert place.resume("mine", "--iterations=5").code == 0
    facts = RunResult.of(run.environment.read_bytes())
    assert [entry["after_iteration"] for entry in facts["resumed"]] == [3, 4]
    assert "iterations = 5" in run.config.read_text()
    assert "resumed after iteration 4" in run.log.read_text()


LONG = [*SMALL, "--ways=2-4", "--iterations=100000", "--validate-every=1000", "--name=long"]


def wait_for_rows(run: RunDir, number: int) -> None:
    deadline = time.monotonic() + 120
    while not (run.metrics.exists() and len(run.metrics.read_text().splitlines()) > number):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_stopped_by_a_signal_goes_on_as_if_it_had_not_been(
    place: Place, cache_dir: Path
) -> None:
    # Sums differ with their order: as many threads, and the installed package's kernels.
    same = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONSAFEPATH": "1"}
    process = start("meta-train", *LONG, "--cache-dir", cache_dir, "--runs-dir", place.runs, **same)
    run = RunDir(place.runs / "long")
    wait_for_rows(run, 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"fix: hidra meta-train --resume {run.path}" in errors
    reached = load_checkpoint(run.last).meta["iteration"] + 3
    assert place.resume("long", f"--iterations={reached}").code == 0
    whole = place.train("whole", reached, "--validate-every=1000")
    assert rows(run) == rows(whole)
    a, b = load_checkpoint(run.last), load_checkpoint(whole.last)
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())


def others_of(process: int) -> list[int]:
    """The processes that another one has started."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in listed.split()]


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{number}").exists() for number in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_run_of_several_processes_is_one_run(place: Place, cache_dir: Path) -> None:
    """One process is killed at work, then the run is stopped; it ends as one of threads does."""
    flags: list[str | Path] = [*LONG, "--strategy=processes"]
    flags += ["--cache-dir", cache_dir, "--runs-dir", place.runs]
    environ = {"OMP_NUM_THREADS": "2", "PYTHONSAFEPATH": "1"}
    process = start("meta-train", *flags, **environ)
    run = RunDir(place.runs / "long")
    wait_for_rows(run, 3)
    (other,) = others_of(process.pid)
    os.kill(other, signal.SIGKILL)
    wait_for_rows(run, len(rows(run)) + 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.count("is gone (signal 9): it goes on in threads, to the same result") == 1

    process = start("meta-train", f"--resume={run.path}", "--cache-dir", cache_dir, **environ)
    wait_for_rows(run, len(rows(run)) + 3)
    left = others_of(process.pid)
    assert len(left) == 1
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    wait_until_gone(left)
    reached = load_checkpoint(run.last).meta["iteration"]
    with operator_threads(2):
        whole = place.train("whole", reached, "--validate-every=1000", "--strategy=threads")
    assert rows(run) == rows(whole)
    a, b = load_checkpoint(run.last), load_checkpoint(whole.last)
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_when_a_run_is_killed_no_process_of_it_goes_on(place: Place, cache_dir: Path) -> None:
    flags: list[str | Path] = [*LONG, "--strategy=processes"]
    flags += ["--cache-dir", cache_dir, "--runs-dir", place.runs]
    process = start("meta-train", *flags, OMP_NUM_THREADS="2")
    wait_for_rows(RunDir(place.runs / "long"), 3)
    left = others_of(process.pid)
    assert len(left) == 1
    process.kill()
    process.communicate(timeout=60)
    wait_until_gone(left)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_quits_at_once(
    place: Place, cache_dir: Path, number: signal.Signals
) -> None:
    slow = ["--meta-batch=4000", "--validate-every=1"]  # one step takes longer than the test
    process = start("meta-train", *LONG, *slow, "--cache-dir", cache_dir, "--runs-dir", place.runs)
    run = RunDir(place.runs / "long")
    wait_for_rows(run, 0)
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert time.monotonic() - begun < 2
    assert process.returncode == 128 + number


def test_a_run_directory_that_vanishes_is_told_of(place: Place, cache_dir: Path) -> None:
    process = start("meta-train", *LONG, "--cache-dir", cache_dir, "--runs-dir", place.runs,
                    HIDRA_RUN_SAVE_SECONDS="0")  # fmt: skip
    run = RunDir(place.runs / "long")
    wait_for_rows(run, 2)
    run.path.rename(place.runs / "elsewhere")
    out, errors = process.communicate(timeout=60)
    assert_told(Finished(process.returncode, out, errors), 1)
    assert "could not be written" in errors
    moved = RunDir(place.runs / "elsewhere")
    saved = load_checkpoint(moved.last).meta["iteration"]
    assert place.resume("elsewhere", f"--iterations={saved + 1}").code == 0
    assert_whole(moved, saved + 1)
