"""Run directories, checkpoints and result files. Every file appears whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hidra_cli import __version__
from hidra_cli.errors import DataError, RunError, UsageError
from hidra_cli.files import write_atomically, writing_to
from hidra_cli.settings import Settings, format_numbers

CHECKPOINT_FORMAT = "hidra-checkpoint"
FORMAT_VERSION = 1
_HEADER = "hidra"
_HASH = "hidra-sha256"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and everything else as JSON."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix.`, without it."""
        start = prefix + "."
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write one safetensors file whose header holds `meta` as JSON, atomically.

    Raises:
        RunError: it cannot be written; an older file of this name is untouched.
    """
    whole = {"format": CHECKPOINT_FORMAT, "format_version": FORMAT_VERSION, **meta}
    text = json.dumps(whole, allow_nan=False)
    # Clones: safetensors refuses tensors that share memory.
    packed = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    header = {_HEADER: text, _HASH: _content_hash(packed, text)}
    write_atomically(path, save(packed, header))


def _content_hash(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of everything in a checkpoint: safetensors itself does not notice flipped bits."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: Path, expected: str = CHECKPOINT_FORMAT) -> Checkpoint:
    """Read a file of `save_checkpoint`.

    Raises:
        DataError: the file is missing, damaged, foreign or of another version.
    """
    if not path.is_file():
        raise DataError(f"there is no checkpoint {path}", fix="name a run directory or checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = header.get(_HEADER, "null")
        meta = json.loads(text)
        ours = isinstance(meta, dict) and "format" in meta
        if ours and header.get(_HASH) != _content_hash(tensors, text):
            raise ValueError("its content does not match its hash")
    except (SafetensorError, OSError, ValueError) as exc:
        raise DataError(
            f"the checkpoint {path} is damaged",
            why=str(exc).split("\n")[0],
            fix="use another checkpoint of the run (best.safetensors, last.safetensors)",
        ) from exc
    if not ours:
        raise DataError(f"{path} was not written by hidra", why="its header has no hidra entry")
    if meta["format"] != expected or meta.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} is a {meta['format']} of version {meta.get('format_version')}",
            why=f"this needs a {expected} of version {FORMAT_VERSION}",
            fix="use the hidra that wrote it, or another file",
        )
    return Checkpoint(path, tensors, meta)


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
    """Make a new run directory; an existing one is never written over.

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
        attempt = 1
        while True:
            try:
                path.mkdir()
                break
            except FileExistsError as exc:
                if name is not None:
                    raise UsageError(
                        f"the run directory {path} exists",
                        why="a run is never written over",
                        fix="choose another --name, or remove that directory",
                    ) from exc
                # Two runs started in the same second.
                attempt += 1
                path = runs_dir / f"{default_run_name(settings)}-{attempt}"
        (path / "checkpoints").mkdir()
    return RunDir(path)


def find_checkpoint(chosen: Path) -> Path:
    """A checkpoint file, or a run directory's best (else last) checkpoint.

    Raises:
        DataError: there is none.
    """
    if chosen.is_file():
        return chosen
    run = RunDir(chosen)
    for path in (run.best, run.last):
        if path.is_file():
            return path
    why = "it has no checkpoint yet" if chosen.is_dir() else "it does not exist"
    raise DataError(
        f"{chosen} is not a run",
        why=why,
        fix="name a run directory, or train one: hidra meta-train",
    )


def latest_run(runs_dir: Path) -> Path:
    """The newest run directory that has a checkpoint.

    Raises:
        DataError: there is none.
    """
    runs = [RunDir(p) for p in runs_dir.iterdir()] if runs_dir.is_dir() else []
    done = [r for r in runs if r.best.is_file() or r.last.is_file()]
    if not done:
        raise DataError(
            f"there is no run under {runs_dir}",
            fix="train one with `hidra meta-train`, or give --checkpoint",
        )
    return max(done, key=lambda r: (r.best if r.best.is_file() else r.last).stat().st_mtime).path


class MetricsFile:
    """metrics.csv, one row per outer step."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        with writing_to(path):
            self._file: IO[str] = path.open("w", newline="", encoding="utf-8", buffering=1)
            self._writer = csv.DictWriter(self._file, columns)
            self._writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        with writing_to(self.path):
            self._writer.writerow(row)

    def close(self) -> None:
        with writing_to(self.path):
            self._file.close()


def environment(device: torch.device, plugins: Mapping[str, Any]) -> dict[str, Any]:
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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Adam's state as named tensors: `optimizer.<parameter>.<moment>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{names[index]}.{key}": torch.as_tensor(value)
        for index, moments in state.items()
        for key, value in moments.items()
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


def restore_error(checkpoint: Checkpoint, why: str) -> RunError:
    """A checkpoint whose weights do not fit what its settings build."""
    return RunError(
        f"the weights in {checkpoint.path} do not fit the model its settings describe",
        why=why,
        fix="install the plugin versions the checkpoint names: "
        + ", ".join(
            f"{p['distribution']}=={p['version']}" for p in checkpoint.meta["plugins"].values()
        ),
    )
