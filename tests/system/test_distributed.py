"""Several processes are as one: the same steps, scores and files, stopped and resumed alike."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hidra_cli.engine.devices import resolve_device
from hidra_cli.errors import DeviceError, UsageError
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.directory import RunDir
from hidra_cli.system.distributed import SINGLE, ProcessGroup
from hidra_cli.system.torchrun import Rank, this_rank

from ..conftest import TINY_DATA, Hidra
from ..processes import TRAININGS, diverge, train

ROOT = Path(__file__).resolve().parents[2]
# Of weights and losses after a few steps in float32, between numbers of processes: only the order
# of the sum over tasks differs. docs/speed.md states it.
RELATIVE, ABSOLUTE = 1e-4, 1e-5
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
HIDRA = Path(sys.executable).with_name("hidra")
# The tests are found in this folder, the package only if it is not installed.
RUN_PROCESSES = (
    "import runpy, sys; sys.path.append('.'); runpy.run_module('tests.processes', None, '__main__')"
)
PATIENCE = 300  # seconds, on a machine that does other things too
MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@given(start=st.integers(0, 50), length=st.integers(0, 40), size=st.integers(1, 9))
def test_shares_are_the_whole_in_order_and_even(start: int, length: int, size: int) -> None:
    whole = range(start, start + length)
    shares = [ProcessGroup(rank, size).share(whole) for rank in range(size)]
    assert [n for share in shares for n in share] == list(whole)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_the_environment_says_which_process_this_is() -> None:
    ranks = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert this_rank(ranks | MEETING) == Rank(5, 8, 1)
    assert this_rank({}) == this_rank(ranks) == Rank()
    assert this_rank({"RANK": "0", "WORLD_SIZE": "1"} | MEETING) == Rank(0, 1, 0)
    for wrong in ({"RANK": "8"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "x"}):
        with pytest.raises(UsageError, match="which process") as failure:
            this_rank(ranks | MEETING | wrong)
        assert repr(next(iter(wrong.values()))) in failure.value.why


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu", 3).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", 3).type == "cpu"
    with pytest.raises(DeviceError, match="cuda:3"):
        resolve_device("cuda", 3)  # no such GPU here, nor any of that number


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun would say to one of two processes."""
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return os.environ | told | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def start_two(*arguments: str | Path, **variables: list[str]) -> list[subprocess.Popen[str]]:
    """`python …` as two processes that find each other; with a value of a variable for each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(rank, port) | {key: of[rank] for key, of in variables.items()},
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> list[dict[str, Any]]:
    """What two processes of `tests.processes` found."""
    out = tmp_path_factory.mktemp("processes")
    for process in start_two("-c", RUN_PROCESSES, out, cache_dir):
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    found = [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]
    for rank in range(2):
        found[rank]["threads at the end"] = (out / f"threads-{rank}").read_text().splitlines()
    return found


def test_what_is_put_together_is_the_same_in_every_process(both: list[dict[str, Any]]) -> None:
    found = both[0]["collectives"]
    assert found == both[1]["collectives"] == {
        "sums": [[[3.0] * 3] * 2, 11.0],
        "low precision": [4.0],
        "gradients": [[1.75, 3.5], [3.0, 6.0], None],
        "means": [0.75, 7.0],
        "gathered": [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]],
        "gathered nothing": [0],
        "largest": 15,
        "any": [True, False],
        "said": "Größe 0",
        "refused": "at first",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="threads are named in /proc")
def test_no_thread_outlives_the_group(both: list[dict[str, Any]]) -> None:
    for found in both:  # one that did would abort the process now and then
        assert any("gloo" in name for name in found["threads"])
        assert not [name for name in found["threads at the end"] if "gloo" in name]


def test_one_process_alone_needs_nobody() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert SINGLE.mean_gradient_([parameter], (1.0, 2.0), 1.0) == [1.0, 2.0]
    assert parameter.grad is None
    assert SINGLE.gather([[1.0], [2.0]]).tolist() == [[1.0], [2.0]]
    assert (SINGLE.largest(7), SINGLE.broadcast_text("x"), SINGLE.any(False)) == (7, "x", False)
    SINGLE.check_equal("thing", "x")


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one_does(
    name: str, both: list[dict[str, Any]], tmp_path: Path, cache_dir: Path
) -> None:
    alone = train(name, tmp_path, cache_dir)
    first, second = (found[name] for found in both)
    assert first == second, "all processes have the same weights, to the bit"
    assert first["without gradient"] == alone["without gradient"]
    assert first["best"][0] == alone["best"][0]
    assert first["best"][1] == pytest.approx(alone["best"][1], RELATIVE, ABSOLUTE)
    assert len(first["rows"]) == len(alone["rows"]) == 6
    for ours, theirs in zip(first["rows"], alone["rows"], strict=True):
        ours.pop("tasks_per_second"), theirs.pop("tasks_per_second")
        assert numbers(ours) == pytest.approx(numbers(theirs), RELATIVE, ABSOLUTE, nan_ok=True)
    for key, value in alone["weights"].items():
        expected = torch.tensor(value)
        found = torch.tensor(first["weights"][key])
        assert torch.allclose(found, expected, RELATIVE, ABSOLUTE), key


def numbers(row: dict[str, str]) -> list[float]:
    return [float(value or -1) for value in row.values()]


def test_a_loss_that_is_not_finite_stops_all_and_names_the_task(
    both: list[dict[str, Any]], tiny_images: PreparedImages
) -> None:
    alone = diverge(tiny_images)
    assert "training episode" in alone
    assert both[0]["not finite"] == alone
    assert "gradient norm" in both[1]["not finite"]


SETTINGS = [
    *TINY_DATA,
    "--bb-opt=filters=8",
    "--ways=2-4",
    "--queries=3",
    "--meta-batch=3",
    "--validate-every=4",
    "--validation-episodes=5",
    "--test-episodes=3",
]


def wait_for(run: RunDir, steps: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (run.metrics.exists() and len(run.metrics.read_text().splitlines()) > steps):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def saved(run: RunDir) -> int:
    """The iteration of the last checkpoint, which every row of metrics leads to."""
    iteration = int(load_checkpoint(run.last).meta["iteration"])
    with run.metrics.open(newline="") as file:
        assert [int(row["iteration"]) for row in csv.DictReader(file)] == [*range(1, iteration + 1)]
    assert not list(run.path.parent.rglob("*.tmp"))
    return iteration


def assert_alike(run: RunDir, other: RunDir) -> None:
    """The same training but for rounding."""
    a, b = load_checkpoint(run.last), load_checkpoint(other.last)
    assert a.meta.keys() == b.meta.keys()
    for key in a.meta.keys() - {"settings"}:  # which hold the length
        assert a.meta[key] == b.meta[key], key
    for name, tensor in a.tensors.items():
        assert torch.allclose(tensor, b.tensors[name], RELATIVE, ABSOLUTE), name


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> tuple[RunDir, list[tuple[int, str, str]]]:
    """A run of two processes of which one got SIGTERM, and how they ended: code, out, err."""
    runs = tmp_path_factory.mktemp("stopped")
    places = [f"--cache-dir={cache_dir}", f"--runs-dir={runs}", "--name=run"]
    command = ["-m", "hidra_cli.app", "meta-train", *SETTINGS, *places, "--iterations=100000"]
    processes = start_two(*command)
    wait_for(RunDir(runs / "run"), 3)
    processes[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=PATIENCE) for process in processes]
    ends = [(p.returncode, *text) for p, text in zip(processes, told, strict=True)]
    return RunDir(runs / "run"), ends


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    stopped: tuple[RunDir, list[tuple[int, str, str]]],
) -> None:
    run, ((code, _, told), (other_code, other_out, other_told)) = stopped
    assert code == other_code == 143
    assert f"stopped: after iteration {saved(run)}" in told
    assert "SIGTERM" in told
    assert "Traceback" not in told
    assert (other_out, other_told) == ("", ""), "only the first process speaks"
    assert "processes" not in json.dumps(load_checkpoint(run.last).meta)
    assert json.loads(run.environment.read_text())["processes"] == 2


def test_a_run_of_two_processes_goes_on_in_one_and_is_tested_by_two(
    stopped: tuple[RunDir, Any], hidra: Hidra, tmp_path: Path, cache_dir: Path
) -> None:
    run, whole = RunDir(tmp_path / "run"), RunDir(tmp_path / "whole")
    shutil.copytree(stopped[0].path, run.path)
    length = f"--iterations={saved(run) + 3}"
    places = [f"--cache-dir={cache_dir}", f"--runs-dir={tmp_path}"]
    resumed = hidra("meta-train", "--resume", run.path, length, *places)
    assert resumed.code == 0, resumed.err
    assert "was at work with 2 process(es) of" in resumed.err
    assert hidra("meta-train", *SETTINGS, length, *places, "--name=whole", "-q").code == 0
    assert_alike(run, whole)

    test = ["evaluate", str(run.path), "--ways=2,3,5", "--episodes=7", "--queries=3"]
    test += ["--pixels", places[0]]
    assert hidra(*test, "--out", tmp_path / "one").code == 0
    done = subprocess.run(
        [*TORCHRUN, "--no-python", HIDRA, *test, "--out", tmp_path / "two", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert json.loads(done.stdout)["environment"]["processes"] == 2
    one, two = ((tmp_path / name / "episodes.csv").read_text() for name in ("one", "two"))
    assert one == two
    assert len(two.splitlines()) == 1 + 2 * 3 * 7


def test_torchrun_stopped_and_resumed_with_two(
    stopped: tuple[RunDir, Any], hidra: Hidra, tmp_path: Path, cache_dir: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(stopped[0].path, run.path)
    begun = saved(run)
    places = [f"--cache-dir={cache_dir}", f"--runs-dir={tmp_path}"]
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "hidra_cli.app", "meta-train", "--resume", run.path, *places],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    wait_for(run, begun + 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, "torchrun's own code for a stop"
    assert f"stopped: after iteration {saved(run)}" in errors
    assert saved(run) > begun
    length = f"--iterations={saved(run)}"
    assert hidra("meta-train", *SETTINGS, length, *places, "--name=whole", "-q").code == 0
    assert_alike(run, RunDir(tmp_path / "whole"))


def test_a_process_that_dies_does_not_leave_the_other_waiting(
    stopped: tuple[RunDir, Any], tmp_path: Path, cache_dir: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(stopped[0].path, run.path)
    begun = saved(run)
    places = [f"--cache-dir={cache_dir}", f"--runs-dir={tmp_path}"]
    first, second = start_two("-m", "hidra_cli.app", "meta-train", "--resume", run.path, *places)
    wait_for(run, begun + 2)
    second.kill()
    _, errors = first.communicate(timeout=PATIENCE)
    second.communicate()
    assert first.returncode == 1
    assert "error: another process of this run is gone" in errors
    assert f"iteration {saved(run)} is safe in" in errors
    assert saved(run) >= begun + 2, "the steps before are saved"


def test_processes_that_differ_are_refused(cache_dir: Path, tmp_path: Path) -> None:
    command = ["-m", "hidra_cli.app", "meta-train", *SETTINGS, f"--cache-dir={cache_dir}"]
    processes = start_two(*command, f"--runs-dir={tmp_path}", HIDRA_RUN_SEED=["0", "1"])
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert "error: the processes do not see the same settings" in errors
    assert not list(tmp_path.iterdir())
