"""Run directories and result files. Every file appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hidra_cli.errors import UsageError
from hidra_cli.settings.numbers import format_numbers
from hidra_cli.settings.schema import Settings
from hidra_cli.system.files import LEFTOVER, remove_leftovers, write_atomically, writing_to


@dataclass(frozen=True)
class RunDir:
    """One run's directory."""

    path: Path

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one."""
        return self.path / "checkpoints" / "previous.safetensors"

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def events(self) -> Path:
        """TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        return self.path / "result.json"


def default_run_name(settings: Settings) -> str:
    """`<time>-<dataset>-<head>-<ways>w<shots>s`."""
    numbers = [format_numbers(n) for n in (settings.tasks.ways, settings.tasks.shots)]
    ways, shots = (text if len(text) <= 24 else text[:21] + "…" for text in numbers)
    name = f"{settings.dataset.name}-{settings.model.head}-{ways}w{shots}s"
    return f"{datetime.now():%Y%m%d-%H%M%S}-{name}".replace(":", "_")


def create_run(runs_dir: Path, name: str | None, settings: Settings) -> RunDir:
    """Make a new run directory with its `config.toml`; an existing one is never written over.

    It appears whole, so that a run killed at any moment can be resumed.

    Raises:
        UsageError: a directory of the given name exists.
        RunError: it cannot be made.
    """
    if name is not None and (name in ("", "..") or Path(name).name != name):
        raise UsageError(
            f"--name {name!r} is not the name of a directory",
            why="it is empty, or leads to another directory",
            fix="--name my-run, and --runs-dir for the place of all runs",
        )
    path = runs_dir / (name or default_run_name(settings))
    with writing_to(path, "another place for runs (--runs-dir)"):
        runs_dir.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(LEFTOVER, f".{path.name[:80]}.", runs_dir))
        try:
            partial.chmod(0o777 & ~_umask())
            (partial / "checkpoints").mkdir()
            write_atomically(RunDir(partial).config, settings.to_toml().encode())
            return RunDir(_renamed(partial, path, name is not None))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _renamed(partial: Path, path: Path, named: bool) -> Path:
    """Give a new run its name; a run started in the same second gets a number."""
    for attempt in itertools.count(1):
        wanted = path if attempt == 1 else path.with_name(f"{path.name}-{attempt}")
        try:
            if not wanted.exists():
                partial.rename(wanted)  # fails where another run came in between
                return wanted
        except OSError as exc:
            if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if named:
            raise UsageError(
                f"the run directory {path} exists",
                why="a run is never written over",
                fix="choose another --name, go on with --resume, or remove that directory",
            )
    raise AssertionError


def _umask() -> int:
    """The permissions that new files of this process lack; mkdtemp ignores them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def owning(run: RunDir) -> Iterator[None]:
    """Be the one process that writes into a run.

    Raises:
        UsageError: another process does.
    """
    # Released by the system when its process ends, so that no stale lock can be left.
    lock = FileLock(run.path / ".lock")
    with writing_to(run.path):
        try:
            lock.acquire(timeout=0)
        except Timeout as exc:
            raise UsageError(
                f"another process is writing the run {run.path}",
                why="one run has one writer",
                fix="wait for it, or stop it, then run the same command again",
            ) from exc
    try:
        for folder in (run.path, run.last.parent):
            remove_leftovers(folder)
        yield
    finally:
        lock.release()
