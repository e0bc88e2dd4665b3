"""Runs, checkpoints and shipped models, found by what a person writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from hidra_cli.errors import DataError
from hidra_cli.runs.directory import RunDir

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


def runs_dir_of(folder: Path | None) -> Path:
    """`--runs-dir` > HIDRA_RUNS_DIR > ./runs."""
    return folder or Path(os.environ.get("HIDRA_RUNS_DIR") or "runs")


def shipped_models() -> dict[str, Path]:
    """The meta-trained models that come with hidra, by name."""
    folder = Path(str(resources.files("hidra_data") / "models"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def results_home(source: Path) -> Path:
    """Return where the results of a checkpoint go: its run, or else its folder.

    For a model that ships with hidra it is the current folder, because the model lies among the
    program's own files.
    """
    if source.is_dir():
        return source
    if source in shipped_models().values():
        return Path()
    return source.parents[1] if source.parent.name == "checkpoints" else source.parent


def find_checkpoint(source: Path) -> Path:
    """A checkpoint file, a run directory's best (else last) checkpoint, or a shipped model's name.

    Raises:
        DataError: there is none.
    """
    run = RunDir(source)
    try:
        for path in (source, run.best, run.last, run.previous):
            if path.is_file():
                return path
        if (shipped := shipped_models().get(str(source))) is not None:
            return shipped
        why = "it has no checkpoint yet" if source.is_dir() else "it does not exist"
    except OSError as exc:  # a name too long, or a folder that may not be looked into
        why = exc.strerror or str(exc)
    raise DataError(
        f"{source} is not a run",
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
    runs: list[tuple[float, Path]] = []
    for path in runs_dir.iterdir() if runs_dir.is_dir() else []:
        times = []
        for mark in marks(RunDir(path)):
            with contextlib.suppress(OSError):  # not there, or renamed this moment
                times.append(mark.stat().st_mtime)
        if times and not path.name.startswith("."):
            runs.append((max(times), path))
    if not runs:
        raise DataError(
            f"there is no run under {runs_dir}",
            fix="train one with `hidra meta-train`, or name a run or checkpoint",
        )
    return max(runs)[1]


def run_to_resume(name: str, runs_dir: Path) -> RunDir:
    """The run that `--resume` names: a path, a name under `runs_dir`, or "latest".

    Raises:
        DataError: there is none.
    """
    if name == "latest":
        newest = _newest(runs_dir, lambda run: (run.last, run.previous, run.config))
        return RunDir(newest)
    with contextlib.suppress(OSError):  # a name too long, or a folder that may not be looked into
        for path in (Path(name), runs_dir / name):
            if RunDir(path).config.is_file():
                return RunDir(path)
    raise DataError(
        f"{name} is not a run that can be resumed",
        why=f"neither it nor {runs_dir / name} has a config.toml",
        fix="--resume RUN with a run directory, or --resume latest",
    )


# What learns drawn tasks where nothing was meta-trained yet; data/models has its card.
SHIPPED = "omniglot-any"


def named_model(name: Path, runs_dir: Path | None) -> Path:
    """What `--checkpoint` names: "latest", a run under `runs_dir`, or what `find_checkpoint` takes.

    Raises:
        DataError: there is no run yet.
    """
    runs = runs_dir_of(runs_dir)
    if str(name) == "latest":
        return latest_run(runs)
    if str(name) in shipped_models():
        return name
    with contextlib.suppress(OSError):  # a name too long, or a folder that may not be looked into
        if not name.exists() and (runs / name).is_dir():
            return runs / name
    return name


def latest_or_shipped(runs_dir: Path | None, console: Console) -> Path:
    """The latest run, or the model that ships with hidra where there is none.

    Raises:
        DataError: there is neither.
    """
    try:
        return latest_run(runs_dir_of(runs_dir))
    except DataError:
        shipped = shipped_models().get(SHIPPED)
        if shipped is None:
            raise
        console.note(f"there is no run yet: using {SHIPPED}, which ships with hidra")
        return shipped
