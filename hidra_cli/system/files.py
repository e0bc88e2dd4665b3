"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hidra_cli.errors import RunError

# The end of the name of a file that is being written.
LEFTOVER = ".tmp"


@contextlib.contextmanager
def writing_to(path: Path, place: str = "another place") -> Iterator[None]:
    """Turn a failed write into an error with the path, the system's reason and a remedy.

    Args:
        path: the file or folder that is written.
        place: another place and the flag that chooses it, in words.
    """
    try:
        yield
    except OSError as exc:
        raise RunError(
            f"{path} could not be written",
            why=exc.strerror or str(exc).split("\n")[0],
            fix=f"free some space or choose {place}; no half-written file is left",
        ) from exc


def write_atomically(path: Path, content: bytes, *, keep_old_as: Path | None = None) -> None:
    """Write another file in the same directory, flush it to disk, then rename it.

    Args:
        path: of the file.
        content: of the file.
        keep_old_as: another name in the same directory for the earlier file.

    Raises:
        RunError: the disk is full or the directory is gone; no half-written file is left.
    """
    with writing_to(path):
        if not path.name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        partial = path.with_name(f".{path.name}.{os.getpid()}{LEFTOVER}")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep_old_as is not None and path.exists():
                _keep(path, keep_old_as)
            partial.replace(path)
            _flush_names(path.parent)
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                partial.unlink(missing_ok=True)


def _keep(path: Path, other: Path) -> None:
    """Give a file a second name in one step. It keeps its first name."""
    spare = other.with_name(f".{other.name}.{os.getpid()}{LEFTOVER}")
    try:
        try:
            os.link(path, spare)
        except OSError:  # a file system without such names
            shutil.copyfile(path, spare)
        spare.replace(other)
    finally:
        with contextlib.suppress(OSError):
            spare.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """Make a rename survive a power cut, if the system supports it."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of a killed process. The caller holds the folder's lock."""
    for leftover in folder.glob(f".*{LEFTOVER}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def result_folder(folder: Path, *, own: bool = False) -> Path:
    """A folder for result files; with `own`, one that no other process gets."""
    import itertools

    from hidra_cli.system.files import writing_to

    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(2):
            try:
                folder.mkdir(exist_ok=not own)
                return folder
            except FileExistsError:
                if not own:
                    raise
                stem = folder.name if attempt == 2 else folder.name.rpartition("-")[0]
                folder = folder.with_name(f"{stem}-{attempt}")
    raise AssertionError


def check_file(path: Path, flag: str, *endings: str) -> None:
    """Check before the work that a file can be written, and make its folder.

    Args:
        path: of the file.
        flag: that names it.
        endings: those that are understood; none for any.

    Raises:
        UsageError: it is a folder, or has another ending.
        RunError: it cannot be written.
    """
    from hidra_cli.errors import UsageError

    with writing_to(path):
        if path.name in ("", "..") or path.is_dir():
            example = f"{flag} {path / f'result{endings[0] if endings else str()}'}"
            raise UsageError(
                f"{flag} {path} is a folder", why="a file is written", fix=f"name one: {example}"
            )
        if endings and path.suffix.lower() not in endings:
            raise UsageError(
                f"{flag} {path} has an ending that is not understood",
                why=f"what is written ends in {' or '.join(endings)}",
                fix=f"{flag} {path.with_suffix(endings[0])}",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_writable(path.parent)


def check_folder(folder: Path, flag: str) -> None:
    """Check before the work that a folder can be made, or written to.

    Raises:
        UsageError: it is a file.
        RunError: it cannot be made or written to.
    """
    from hidra_cli.errors import UsageError

    with writing_to(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"{flag} {folder} is a file", why="a folder is made", fix="name another place"
            )
        _check_writable(next(f for f in (folder, *folder.absolute().parents) if f.exists()))


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_other_file(target: Path, what: str, *read: Path) -> None:
    """Refuse to overwrite a file that was read, and name it."""
    from hidra_cli.errors import UsageError

    if target.resolve() in (path.resolve() for path in read):
        raise UsageError(
            f"--out {target} is {what}",
            why="it would be overwritten",
            fix="name another file",
        )
