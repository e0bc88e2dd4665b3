"""Every operation on a file fails once: the run says so, and goes on later as if it had not."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.directory import RunDir

from ..conftest import TINY_DATA, Finished, Hidra
from .tools import SMALL, assert_told, assert_whole, checksums, rows

RUN = [*SMALL, "--ways=2-3", "--iterations=4", "--validate-every=2", "--save-seconds=0", "-q"]


class Faults:
    """Lets the n-th operation below a folder fail as a disk would: open, write, flush, rename.

    The system's own functions are replaced, not the program's.
    """

    def __init__(self, folder: Path, code: int, fail_at: int) -> None:
        self.folder, self.code, self.fail_at = str(folder), code, fail_at
        self.count = 0
        self.names: list[str] = []

    def strike(self, what: str, path: object) -> None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(self.folder):
            return
        self.count += 1
        self.names.append(f"{what} {Path(path).name}")
        if self.count == self.fail_at:
            raise OSError(self.code, os.strerror(self.code), str(path))

    def wrap(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(path: Any, *arguments: Any, **more: Any) -> Any:
            self.strike(what, path)
            return function(path, *arguments, **more)

        return failing

    def wrap_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            if set(mode) & set("wax+"):
                self.strike("open", path)
            file = function(path, mode, *arguments, **more)
            if set(mode) & set("wax+"):
                self._let_writes_fail(file, path)
            return file

        return opening

    def _let_writes_fail(self, file: Any, path: object) -> None:
        if not hasattr(file, "__dict__"):  # objects in C cannot be given another write
            return
        write = file.write

        def failing(data: Any) -> Any:
            self.strike("write", path)
            return write(data)

        file.write = failing

    def fsync(self, descriptor: int) -> None:
        self.strike("flush", Path(f"/proc/self/fd/{descriptor}").readlink())
        _FSYNC(descriptor)


_FSYNC = os.fsync


@contextmanager
def faults(folder: Path, code: int = errno.ENOSPC, fail_at: int = 0) -> Iterator[Faults]:
    struck = Faults(folder, code, fail_at)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "chmod"):
            patch.setattr(os, name, struck.wrap(name, getattr(os, name)))
        patch.setattr(os, "fsync", struck.fsync)
        opening = struck.wrap_open(io.open)
        patch.setattr(io, "open", opening)
        patch.setattr(builtins, "open", opening)
        yield struck


def plan(operations: int, share: float) -> list[tuple[int, int]]:
    """Which operation fails, and how: a seeded share of all of them."""
    every = [
        (number, code)
        for code in (errno.ENOSPC, errno.EIO, errno.EACCES, errno.ENOENT)
        for number in range(1, operations + 1)
    ]
    chosen = random.Random(5).sample(every, max(1, round(share * len(every))))
    return sorted(chosen)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files cannot be named here")
@pytest.mark.parametrize("share", [0.03, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_run_survives_every_fault_of_the_disk(
    hidra: Hidra, tmp_path: Path, cache_dir: Path, share: float
) -> None:
    runs = tmp_path / "runs"
    places = ["--cache-dir", cache_dir, "--runs-dir", runs]

    def train(name: str, *flags: str | Path) -> Finished:
        return hidra("meta-train", *(flags or [*RUN, f"--name={name}"]), *places)

    with faults(runs) as seen:
        assert train("whole").code == 0
    whole = RunDir(runs / "whole")
    expected = checksums(whole), rows(whole)
    struck = failed = 0
    for number, code in plan(seen.count, share):
        with faults(runs, code, number) as fault:
            done = train("mine")
        struck += fault.count >= number
        at = fault.names[number - 1] if fault.count >= number else "nothing"
        run = RunDir(runs / "mine")
        if done.code:
            failed += 1
            assert_told(done, 1, 2, 3)
            left = [*run.path.rglob("*.tmp"), *runs.glob(".*")]
            assert not left, f"{at}: {left}"
            again = [f"--resume={run.path}", "-q"] if run.path.exists() else ()
            finished = train("mine", *again)
            assert finished.code == 0, f"after {at}: {done.err}{finished.err}"
        assert (checksums(run), rows(run)) == expected, at
        assert_whole(run, 4)
        shutil.rmtree(run.path)
    print(f"{struck} faults at {seen.count} operations, {failed} ended the run, nothing lost")
    assert struck > 0
    assert failed > 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files cannot be named here")
@pytest.mark.parametrize("share", [0.15, pytest.param(1.0, marks=pytest.mark.slow)])
def test_preparing_survives_every_fault_of_the_disk(
    hidra: Hidra, tmp_path: Path, share: float
) -> None:
    def prepare(cache: Path) -> Finished:
        flags = ["--cache-dir", cache, "--workers=1", "--json", "-q"]
        return hidra("prepare", "glyphs", *TINY_DATA, *flags)

    with faults(tmp_path) as seen:
        whole = prepare(tmp_path / "whole")
    expected = whole.json["content_hash"]
    for number, code in plan(seen.count, share):
        cache = tmp_path / f"{number}-{code}"
        with faults(tmp_path, code, number) as fault:
            done = prepare(cache)
        if done.code:
            assert_told(done, 1, 3)
            at = fault.names[number - 1]
            assert not list(cache.rglob("*.h5")), at
            assert not list(cache.rglob("*.tmp")), at
            again = prepare(cache)
            assert again.code == 0, at
            assert again.json["content_hash"] == expected, at
        else:
            assert done.json["content_hash"] == expected


def test_a_disk_that_is_full_keeps_the_last_good_checkpoint(
    hidra: Hidra, tmp_path: Path, cache_dir: Path, small_disk: Path
) -> None:
    flags = [*SMALL, "--ways=2-3", "--iterations=40", "--save-seconds=0", "-q", "--name=mine"]
    places = ["--cache-dir", cache_dir, "--runs-dir"]
    assert hidra("meta-train", *flags, *places, tmp_path).code == 0
    filler = small_disk / "filler"
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 60_000))
    full = hidra("meta-train", *flags, *places, small_disk)
    assert_told(full, 1)
    assert "No space left on device" in full.err
    run = RunDir(small_disk / "mine")
    assert "is safe in" in full.err
    assert f"hidra meta-train --resume {run.path}" in full.err
    load_checkpoint(run.last)
    assert not list(run.path.rglob("*.tmp"))
    filler.unlink()
    again = hidra("meta-train", "--resume", run.path, "-q", *places, small_disk)
    assert again.code == 0, again.err
    assert checksums(run) == checksums(RunDir(tmp_path / "mine"))
    assert_whole(run, 40)
