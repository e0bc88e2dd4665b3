"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hidra_cli.errors import RunError


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Tell a failed write as what it is: the path, the system's reason, what to do."""
    try:
        yield
    except OSError as exc:
        raise RunError(
            f"{path} could not be written",
            why=exc.strerror or str(exc).split("\n")[0],
            fix="free some space or choose another place (--cache-dir for prepared images, "
            "--runs-dir for runs); nothing half-written was left",
        ) from exc


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, then rename.

    Raises:
        RunError: the disk is full or the directory is gone; nothing half-written is left.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing_to(path):
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())
