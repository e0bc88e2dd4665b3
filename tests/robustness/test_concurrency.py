"""Several processes at once, and processes that end at any moment: whole files, no waiting."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.model import load_model

from ..conftest import TINY_DATA, TINY_MODEL, TINY_RUN, Finished, Hidra

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals and groups of POSIX")

MANY = pytest.param(20, marks=pytest.mark.slow)
SOME = pytest.param(5, marks=pytest.mark.slow)  # of what takes long
PATIENCE = 60.0  # seconds; only a process that waits for ever takes them
# Whose child an orphan was, only its environment still says.
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here")


class Running:
    """A process, and the processes it started, however late they end.

    A variable of its own marks it: every process below inherits it, an orphan keeps it.
    """

    def __init__(self, command: list[str]) -> None:
        self.mark = f"TEST_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        given = {n: v for n, v in os.environ.items() if not n.startswith("HIDRA_")}
        # Files, not pipes: an orphan would hold these open.
        self.out = tempfile.TemporaryFile()  # noqa: SIM115, closed in `wipe`
        self.err = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
            env=given | {name: value, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that a signal to its group does not end the tests
        )

    def ended(self) -> Finished:
        """How it ended; it has to end by itself."""
        code = self.process.wait(PATIENCE)
        said = []
        for file in (self.out, self.err):
            file.seek(0)
            said.append(file.read().decode())
        return Finished(code, *said)

    def running(self) -> dict[int, str]:
        """Command lines of those of its processes that have not ended, by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # ended meanwhile, or is another user's
                continue
        return found

    def wipe(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for number in self.running():
            os.kill(number, signal.SIGKILL)
        self.out.close()
        self.err.close()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start("prepare", "glyphs")` starts a command line as a process of its own."""
    started: list[Running] = []

    def run(*arguments: str | Path, code: str | None = None) -> Running:
        program = ["-m", "hidra_cli.app"] if code is None else ["-c", code]
        started.append(Running([sys.executable, *program, *map(str, arguments)]))
        return started[-1]

    yield run
    for process in started:
        process.wipe()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that takes more than a second to decode: a large image under many names."""
    root = tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    Image.fromarray(noise).save(root / "image.png")
    for number in range(40):
        (root / "all" / f"class{number:02}").mkdir(parents=True)
        os.link(root / "image.png", root / "all" / f"class{number:02}" / "1.png")
    return root / "all"


@pytest.fixture(scope="module")
def small_source(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is decoded in no time."""
    root = tmp_path_factory.mktemp("small")
    for number in range(12):
        (root / f"class{number:02}").mkdir()
        Image.new("RGB", (9, 9), (20 * number, 0, 99)).save(root / f"class{number:02}" / "1.png")
    return root


def preparing(source: Path, cache: Path, *more: str) -> list[str | Path]:
    places: list[str | Path] = ["--source", source, "--cache-dir", cache]
    return ["prepare", "folder", *places, "--data-opt=size=8", "--workers=2", "--json", "-q", *more]


def stored(cache: Path) -> Path:
    """The one prepared file of a cache; nothing half-written may lie beside it."""
    (path,) = (p for p in (cache / "stores").iterdir() if p.suffix != ".lock")
    assert path.suffix == ".h5"
    return path


def wait_for(happened: Callable[[], bool], process: Running) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.process.poll() is None, process.ended()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_until_writing(cache: Path, process: Running) -> None:
    wait_for(lambda: any((cache / "stores").glob(f".*.{process.process.pid}.tmp")), process)


@pytest.mark.parametrize("times", [1, MANY])
def test_of_prepares_at_once_exactly_one_prepares(
    start: Start, small_source: Path, tmp_path: Path, times: int
) -> None:
    for number in range(times):
        cache = tmp_path / str(number)
        done = [p.ended() for p in [start(*preparing(small_source, cache)) for _ in range(3)]]
        assert [d.code for d in done] == [0, 0, 0], done
        assert sorted(d.json["prepared_now"] for d in done) == [False, False, True]
        found = open_store(stored(cache), "folder")
        assert {d.json["content_hash"] for d in done} == {found.content_hash}


@pytest.mark.parametrize("times", [1, MANY])
def test_rebuilds_at_once_all_rebuild_and_disturb_nobody(
    hidra: Hidra, start: Start, small_source: Path, tmp_path: Path, times: int
) -> None:
    before = hidra(*preparing(small_source, tmp_path)).json
    for _ in range(times):
        flags = [["--force"], [], ["--force"]]
        done = [p.ended() for p in [start(*preparing(small_source, tmp_path, *f)) for f in flags]]
        assert [d.code for d in done] == [0, 0, 0], done
        assert [d.json["prepared_now"] for d in done] == [True, False, True]
        assert {d.json["content_hash"] for d in done} == {before["content_hash"]}
        assert open_store(stored(tmp_path), "folder").content_hash == before["content_hash"]


@pytest.mark.parametrize("times", [1, MANY])
def test_a_reader_never_sees_a_rebuild(
    hidra: Hidra, start: Start, small_source: Path, tmp_path: Path, times: int
) -> None:
    path = Path(hidra(*preparing(small_source, tmp_path)).json["path"])
    indices = np.array([[11, 0, 3], [7, 7, 2]])

    def opened(load: bool) -> tuple[PreparedImages, str, torch.Tensor]:
        images = open_store(path, "folder", load=load)
        return images, images.content_hash, images.gather(indices)

    kept, content, pixels = opened(load=False)  # stays open through all the rebuilds
    reads, nodes = 0, set()
    for _ in range(times):
        process = start(*preparing(small_source, tmp_path, "--force"))
        while process.process.poll() is None:
            for load in (True, False):
                _, now, seen = opened(load)
                assert now == content
                assert torch.equal(seen, pixels)
            assert torch.equal(kept.gather(indices), pixels)
            nodes.add(path.stat().st_ino)
            reads += 1
        done = process.ended()
        assert done.code == 0, done.err
    assert reads > 3 * times
    assert len(nodes) > 1, "no rebuild was met"


@pytest.mark.parametrize("times", [2, MANY])
def test_a_prepare_killed_at_any_moment_hinders_no_other(
    start: Start, source: Path, tmp_path: Path, times: int
) -> None:
    moments = random.Random(times)
    content = ""
    for number in range(times):
        more = ["--force"] if number else []
        victim = start(*preparing(source, tmp_path, *more))
        if number == 1:  # with the lock, before a byte is written
            wait_for(lambda: any((tmp_path / "stores").glob("*.lock")), victim)
        else:
            wait_until_writing(tmp_path, victim)
            time.sleep(moments.uniform(0, 0.3))
        victim.process.kill()
        assert victim.ended().code == -signal.SIGKILL, "it was to be killed before its end"
        if content:
            (path,) = (tmp_path / "stores").glob("*.h5")
            assert open_store(path, "folder").content_hash == content
        done = start(*preparing(source, tmp_path, *more)).ended()
        assert done.code == 0, done.err
        assert done.json["prepared_now"] is True
        content = content or done.json["content_hash"]
        assert open_store(stored(tmp_path), "folder").content_hash == content


@needs_proc
@pytest.mark.parametrize("times", [1, MANY])
def test_no_decoding_process_outlives_a_killed_prepare(
    start: Start, source: Path, tmp_path: Path, times: int
) -> None:
    moments = random.Random(times)
    for number in range(times):
        victim = start(*preparing(source, tmp_path / str(number)))
        wait_until_writing(tmp_path / str(number), victim)
        time.sleep(moments.uniform(0.1, 0.3))
        victim.process.kill()
        victim.process.wait()
        deadline = time.monotonic() + 5
        while victim.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert victim.running() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [2, MANY])
def test_a_signal_to_the_whole_group_ends_prepare_and_leaves_nothing(
    start: Start, source: Path, tmp_path: Path, times: int, number: signal.Signals
) -> None:
    """A terminal sends Ctrl-C to the decoding processes too."""
    for index in range(times):
        process = start(*preparing(source, tmp_path))
        wait_until_writing(tmp_path, process)
        time.sleep(0.13 * (index % 5))
        os.killpg(process.process.pid, number)
        try:
            done = process.ended()
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs after {number.name}")
        assert done.code == 128 + number, done.err
        assert "Traceback" not in done.err
        assert [p.suffix for p in (tmp_path / "stores").iterdir()] == [".lock"]


# Waits, with everything imported, for a file whose name it is given, then runs a command line.
TOGETHER = """
import sys, time
from pathlib import Path
import hidra_cli.jobs.training.loop, hidra_cli.jobs.evaluate, hidra_cli.runs.model
from hidra_cli.app import main
go = Path(sys.argv.pop(1))
Path(f"{go}-{sys.argv.pop(1)}").touch()
while not go.exists():
    time.sleep(0.001)
main()
"""


def at_once(start: Start, folder: Path, commands: list[list[str | Path]]) -> list[Finished]:
    """Run command lines that begin in the same moment."""
    go = folder / "go"
    processes = [start(go, str(i), *c, code=TOGETHER) for i, c in enumerate(commands)]
    for index, process in enumerate(processes):
        wait_for(Path(f"{go}-{index}").exists, process)
    time.sleep(1 - time.time() % 1)  # directories are named after the second
    go.touch()
    return [process.ended() for process in processes]


@pytest.mark.parametrize("times", [1, SOME])
def test_runs_of_the_same_second_are_two_whole_runs(
    start: Start, cache_dir: Path, tmp_path: Path, times: int
) -> None:
    for number in range(times):
        runs = tmp_path / f"runs{number}"
        flags: list[str | Path] = [*TINY_RUN, "--ways=2-3", "--test-episodes=2", "--json", "-q"]
        command = ["meta-train", *flags, "--cache-dir", cache_dir, "--runs-dir", runs]
        done = at_once(start, tmp_path, [command, command])
        assert [d.code for d in done] == [0, 0], done
        assert {Path(d.json["run"]) for d in done} == set(runs.iterdir())
        assert len(list(runs.iterdir())) == 2
        for run in map(RunDir, runs.iterdir()):
            with run.metrics.open(newline="") as file:
                assert [row["iteration"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
            assert run.result.is_file()
            assert load_model(run.last, torch.device("cpu")).meta.iteration == 4
        (tmp_path / "go").unlink()


@pytest.mark.parametrize("times", [1, SOME])
def test_evaluations_of_the_same_second_both_keep_their_results(
    start: Start, runs_dir: Path, cache_dir: Path, tmp_path: Path, times: int
) -> None:
    places: list[str | Path] = [runs_dir / "hidra", "--cache-dir", cache_dir]
    evaluate = ["evaluate", *places, "--episodes=2", "--queries=1", "--json", "-q"]
    for _ in range(times):
        done = at_once(start, tmp_path, [[*evaluate, f"--ways={n}"] for n in (2, 3)])
        assert [d.code for d in done] == [0, 0], done
        assert len({d.json["folder"] for d in done}) == 2
        (tmp_path / "go").unlink()


@pytest.mark.parametrize("times", [2, MANY])
def test_a_run_can_be_evaluated_while_it_trains(
    hidra: Hidra, start: Start, cache_dir: Path, tmp_path: Path, times: int
) -> None:
    busy = RunDir(tmp_path / "busy")
    places = ["--cache-dir", cache_dir]
    endless = ["--iterations=1000000", "--validate-every=1", "--validation-episodes=2"]
    training = start(
        "meta-train", *TINY_DATA, *TINY_MODEL, *endless, "--ways=2-3", "--test-episodes=0", "-q",
        "--name=busy", "--runs-dir", tmp_path, *places,
    )  # fmt: skip
    few = ["--ways=2", "--episodes=2", "--queries=1", "--json", "--out", tmp_path / "out", *places]
    young = 0
    while not busy.best.is_file():
        assert training.process.poll() is None, training.ended()
        done = hidra("evaluate", busy.path, *few)
        young += 1
        # it may have got its first checkpoint meanwhile
        assert done.code in (0, 3), done.err
        assert done.code == 0 or "is not a run" in done.err
    assert young
    iterations = set()
    for number in range(times):
        done = hidra("evaluate", busy.path if number % 2 else busy.last, *few)
        assert done.code == 0, done.err
        for _ in range(60):  # as fast as can be: the last checkpoint is replaced at every step
            iterations.add(load_model(busy.last, torch.device("cpu")).meta.iteration)
            load_model(busy.path, torch.device("cpu"))
    assert len(iterations) > 1, "no checkpoint was replaced meanwhile"
    training.process.terminate()
    assert training.ended().code == 128 + signal.SIGTERM
    assert hidra("evaluate", busy.path, *few).code == 0
