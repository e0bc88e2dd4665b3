"""Files of the cache: one process at a time writes one, beside its place, and then renames it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from hidra_cli.system.files import writing_to


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let other writers of a file wait; its folder is made where it is missing.

    Raises:
        RunError: the folder cannot be written to.
    """
    # Released by the system when its process ends, so that no stale lock can be left.
    lock = FileLock(path.with_suffix(".lock"))
    with writing_to(path, "another place for prepared images (--cache-dir)"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make and check a file under another name, then rename it. The lock is held."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink()  # of a process that was killed: the lock is ours
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
