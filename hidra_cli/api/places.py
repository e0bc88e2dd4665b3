"""Where in the author's files a fault is."""

from __future__ import annotations

import contextlib
import inspect
import os
import traceback
from pathlib import Path
from typing import Any


def place_of(code: Any) -> str:
    """File and line where a class or a function begins, as `file.py:31`; "" without a source."""
    try:
        code = inspect.unwrap(code)
        file = inspect.getsourcefile(code)
        line = inspect.getsourcelines(code)[1]
    except (OSError, TypeError, ValueError):
        return ""
    return f"{_short(file)}:{line}" if file else ""


def place_raised(exc: BaseException, package: str) -> str:
    """File and line of the last code of a package that an exception came through; "" for none.

    Args:
        exc: with its traceback; the exceptions that it came from are searched too.
        package: the name of the top-level module.
    """
    for frame, line in reversed(list(traceback.walk_tb(exc.__traceback__))):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            return f"{_short(frame.f_code.co_filename)}:{line}"
    before = exc.__cause__ or exc.__context__
    return place_raised(before, package) if before is not None else ""


def _short(file: str) -> str:
    """A path below the current folder is shown from there."""
    with contextlib.suppress(ValueError, OSError):
        return str(Path(file).relative_to(Path.cwd()))
    return os.fspath(file)


def summary(exc: BaseException) -> str:
    """An exception in one line."""
    text = str(exc).strip().split("\n")[0]
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
