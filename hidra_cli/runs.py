"""Run directories and result files. Every file appears whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata, resources
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from hidra_cli import __version__
from hidra_cli.engine import kernels
from hidra_cli.errors import DataError, UsageError
from hidra_cli.files import LEFTOVER, remove_leftovers, write_atomically, writing_to
from hidra_cli.settings import Settings, format_numbers


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
    with writing_to(path):
        runs_dir.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(LEFTOVER, f".{path.name[:80]}.", runs_dir))
        try:
            beside.chmod(0o777 & ~_umask())
            (beside / "checkpoints").mkdir()
            write_atomically(RunDir(beside).config, settings.to_toml().encode())
            return RunDir(_renamed(beside, path, name is not None))
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _renamed(beside: Path, path: Path, named: bool) -> Path:
    """Give a new run its name; a run started in the same second gets a number."""
    for attempt in itertools.count(1):
        wanted = path if attempt == 1 else path.with_name(f"{path.name}-{attempt}")
        try:
            if not wanted.exists():
                beside.rename(wanted)  # fails where another run came in between
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


def shipped_models() -> dict[str, Path]:
    """The meta-trained models that come with hidra, by name."""
    folder = Path(str(resources.files("hidra_data") / "models"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def results_home(chosen: Path) -> Path:
    """Where the results of a checkpoint go: its run, else its folder.

    Of a model that ships with hidra: the current folder, for it lies among the program's own files.
    """
    if chosen.is_dir():
        return chosen
    if chosen in shipped_models().values():
        return Path()
    return chosen.parents[1] if chosen.parent.name == "checkpoints" else chosen.parent


def find_checkpoint(chosen: Path) -> Path:
    """A checkpoint file, a run directory's best (else last) checkpoint, or a shipped model's name.

    Raises:
        DataError: there is none.
    """
    run = RunDir(chosen)
    try:
        for path in (chosen, run.best, run.last, run.previous):
            if path.is_file():
                return path
        if (shipped := shipped_models().get(str(chosen))) is not None:
            return shipped
        why = "it has no checkpoint yet" if chosen.is_dir() else "it does not exist"
    except OSError as exc:  # a name too long, or a folder that may not be looked into
        why = exc.strerror or str(exc)
    raise DataError(
        f"{chosen} is not a run",
        why=why,
        fix="name a run directory, or train one: hidra meta-train; or a model that ships with "
        "hidra: " + ", ".join(shipped_models()),
    )


def latest_run(runs_dir: Path) -> Path:
    """The newest run directory that has a checkpoint.

    Raises:
        DataError: there is none.
    """
    return _newest(runs_dir, lambda run: (run.best, run.last, run.previous))


def _newest(runs_dir: Path, marks: Callable[[RunDir], Sequence[Path]]) -> Path:
    """The run whose marks, the files that are there, were written last."""
    found: list[tuple[float, Path]] = []
    for path in runs_dir.iterdir() if runs_dir.is_dir() else []:
        times = []
        for mark in marks(RunDir(path)):
            with contextlib.suppress(OSError):  # not there, or renamed this moment
                times.append(mark.stat().st_mtime)
        if times and not path.name.startswith("."):
            found.append((max(times), path))
    if not found:
        raise DataError(
            f"there is no run under {runs_dir}",
            fix="train one with `hidra meta-train`, or give --checkpoint",
        )
    return max(found)[1]


def run_to_resume(chosen: str, runs_dir: Path) -> RunDir:
    """The run that `--resume` names: a path, a name under `runs_dir`, or "latest".

    Raises:
        DataError: there is none.
    """
    if chosen == "latest":
        newest = _newest(runs_dir, lambda run: (run.last, run.previous, run.config))
        return RunDir(newest)
    with contextlib.suppress(OSError):  # a name too long, or a folder that may not be looked into
        for path in (Path(chosen), runs_dir / chosen):
            if RunDir(path).config.is_file():
                return RunDir(path)
    raise DataError(
        f"{chosen} is not a run that can be resumed",
        why=f"neither it nor {runs_dir / chosen} has a config.toml",
        fix="--resume RUN with a run directory, or --resume latest",
    )


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


class MetricsFile:
    """metrics.csv, one row per outer step.

    Args:
        path: of the file.
        columns: their names; the first is the iteration.
        kept: rows up to this iteration are kept, later ones were not saved and are cut.

    Attributes:
        missing: how many of the rows to keep are not there.
    """

    def __init__(self, path: Path, columns: Sequence[str], kept: int = 0) -> None:
        self.path = path
        rows = _rows(path, columns, kept)
        self.missing = kept - len(rows)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())
        with writing_to(path):
            self._file: IO[str] = path.open("a", newline="", encoding="utf-8", buffering=1)
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, row: Mapping[str, Any]) -> None:
        with writing_to(self.path):
            self._writer.writerow(row)

    def flush_to_disk(self) -> None:
        """A checkpoint must not outlive the rows before it."""
        with writing_to(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing_to(self.path):
            self._file.close()


class NoMetrics(MetricsFile):
    """Of a process that leaves the writing to another."""

    def __init__(self) -> None:
        self.missing = 0

    def write(self, row: Mapping[str, Any]) -> None:
        pass

    def flush_to_disk(self) -> None:
        pass

    def close(self) -> None:
        pass


def _rows(path: Path, columns: Sequence[str], last: int) -> list[dict[str, str]]:
    """The whole rows of iterations 1 to `last`, each once and in order."""
    found: dict[int, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                number = row.get(columns[0]) or ""
                whole = set(row) == set(columns) and None not in row.values()
                if whole and re.fullmatch(r"[0-9]{1,18}", number) and 1 <= int(number) <= last:
                    found[int(number)] = row
    except (FileNotFoundError, csv.Error):
        pass
    except OSError as exc:
        raise DataError(f"{path} cannot be read", why=str(exc), fix="make it readable") from exc
    return [found[number] for number in sorted(found)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote; empty where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def environment(
    device: torch.device, plugins: Mapping[str, Any], processes: int = 1
) -> dict[str, Any]:
    """What a result depends on beside its settings: versions, hardware, command."""
    return {
        "hidra-cli": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _recorded_packages()},
        "plugins": dict(plugins),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernels.compiled(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _recorded_packages() -> Iterable[str]:
    return ("torch", "torchvision", "numpy", "pillow", "h5py", "safetensors", "pydantic")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
