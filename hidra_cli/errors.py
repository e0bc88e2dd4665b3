"""The one error type people see: what went wrong, why, and what fixes it."""

from __future__ import annotations

import typing

EXIT_FAILED = 1


class HidraError(Exception):
    """A failure that people read as a message, never as a traceback.

    Args:
        what: what could not be done, in one sentence.
        why: which value, file or key is at fault.
        fix: the flag or command that mends it.
    """

    code: int = EXIT_FAILED
    label = "error"

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [f"{self.label}: {_indented(self.what)}"]
        lines += [f"why: {_indented(self.why)}"] if self.why else []
        lines += [f"fix: {_indented(self.fix)}"] if self.fix else []
        return "\n".join(lines)


def _indented(text: str) -> str:
    """Further lines are set in, so that no name from a file can look like a line of ours."""
    return "\n     ".join(line.strip() for line in text.split("\n"))


class RunError(HidraError):
    """A run that started could not go on."""


class NotFiniteError(RunError):
    """A loss or gradient that is infinite or not a number."""


class UsageError(HidraError):
    """A flag, setting or configuration file that cannot be right."""

    code = 2


class DataError(HidraError):
    """Data that is missing, damaged or too small for what was asked."""

    code = 3


class PluginError(HidraError):
    """A plugin that cannot be loaded or breaks its contract."""

    code = 4


class DeviceError(HidraError):
    """A device that is absent or out of memory."""

    code = 5


class StoppedError(HidraError):
    """A run stopped by a signal after saving; the exit code is 128 + the signal's number."""

    label = "stopped"

    def __init__(self, what: str, *, signal_number: int, why: str, fix: str) -> None:
        super().__init__(what, why=why, fix=fix)
        self.code = 128 + signal_number


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint at the known name closest to a mistyped one, or an empty string."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else ""
