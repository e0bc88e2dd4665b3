"""The console: results on stdout, everything else on stderr. Plain text; no rich."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from hidra_cli.errors import HidraError


class Advance(Protocol):
    """Report progress: the number done, a short remark, and the total if it was unknown before."""

    def __call__(self, done: int, remark: str = "", *, total: int | None = None) -> None: ...


_SECONDS_BETWEEN_LINES = 5.0


def printable(text: str) -> str:
    r"""Text without control characters: an escape sequence in a file's name becomes \x1b[…

    A name from a file must not move the cursor, change colours or reverse the line.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """Printable text without a line's end: a name from a file is no line of its own."""
    return printable(text).replace("\n", "\\n")


class Console:
    """The output of a command or a job, as plain text. `terminal.Terminal` draws it.

    Args:
        json_output: stdout carries exactly one JSON object, no tables.
        verbosity: −1 quiet (errors and results only), 0 normal, 1 verbose.
    """

    def __init__(self, *, json_output: bool = False, verbosity: int = 0) -> None:
        self.json_output = json_output
        self.verbosity = verbosity
        self._results = sys.stdout  # where `print` of others may come to write elsewhere
        self._log: IO[str] | None = None

    @contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        """Also write every line, every table and the final error to a file."""
        with contextlib.suppress(OSError):  # a log that fails must not stop a run
            self._log = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        try:
            yield
        except HidraError as error:
            self._write_log(str(error))
            raise
        finally:
            log, self._log = self._log, None
            if log is not None:
                with contextlib.suppress(OSError):
                    log.close()

    def _write_log(self, text: str) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):
                stamp = datetime.now().astimezone().isoformat(timespec="seconds")
                self._log.write(f"{stamp} {printable(text)}\n")

    def note(self, text: str) -> None:
        """A line about what is going on."""
        text = one_line(text)
        self._write_log(text)
        if self.verbosity >= 0:
            self._show(text)

    def detail(self, text: str) -> None:
        """A line for `-v` only."""
        text = one_line(text)
        self._write_log(text)
        if self.verbosity >= 1:
            self._show(text, "detail")

    def warn(self, text: str) -> None:
        """A line that is never left out."""
        text = one_line(text)
        self._write_log(f"warning: {text}")
        self._show(text, "warning")

    def print(self, text: str) -> None:
        """A line of the result; left out where JSON was asked for."""
        text = one_line(text)
        self._write_log(text)
        if not self.json_output:
            self._show_result(text)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
    ) -> None:
        """A table of the result; the first `left` columns are text, the others numbers."""
        title, rows = one_line(title), [[one_line(cell) for cell in row] for row in rows]
        self._write_log("\n".join([title, *("  ".join(row) for row in [columns, *rows])]))
        if not self.json_output:
            self._show_table(title, columns, rows, left)

    def raw(self, text: str) -> None:
        """A result in a form for other programs; left out where JSON was asked for.

        It is written as it is, but for a terminal, which escape sequences in it could reach.
        """
        if not self.json_output:
            shown = printable(text.replace("\r\n", "\n")) if self.on_terminal else text
            self._results.write(shown)

    @property
    def on_terminal(self) -> bool:
        """Whether results are printed on a terminal."""
        return self._results.isatty()

    def result(self, result: Any) -> None:
        """The result as one JSON object, with --json only."""
        if self.json_output:
            self._results.write(json.dumps(result, indent=2, allow_nan=False) + "\n")

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Advance]:
        """Progress with ETA: a line every few seconds."""
        yield _progress_lines(self, what, total)

    def _show(self, text: str, kind: Literal["", "detail", "warning"] = "") -> None:
        """A line on stderr."""
        prefix = "warning: " if kind == "warning" else ""
        sys.stderr.write(f"{prefix}{printable(text)}\n")

    def _show_result(self, text: str) -> None:
        """A line on stdout."""
        self._results.write(f"{printable(text)}\n")

    def _show_table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int
    ) -> None:
        """A table on stdout."""
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        self._show_result(title)
        for row in (columns, *rows):
            cells = [
                text.ljust(width) if index < left else text.rjust(width)
                for index, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            self._show_result("  ".join(cells).rstrip())


class Silence(Console):
    """Prints nothing. For all processes except the first, and for jobs called from Python."""

    def __init__(self) -> None:
        super().__init__(verbosity=-1)

    @contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        yield

    def raw(self, text: str) -> None:
        pass

    def _show(self, text: str, kind: Literal["", "detail", "warning"] = "") -> None:
        pass

    def _show_result(self, text: str) -> None:
        pass

    def _show_table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int
    ) -> None:
        pass


def _progress_lines(console: Console, what: str, whole: int | None) -> Advance:
    last = time.monotonic()
    begun: tuple[float, int] | None = None  # a resumed run had done this part before

    def advance(done: int, remark: str = "", *, total: int | None = None) -> None:
        nonlocal last, begun
        now, goal = time.monotonic(), total or whole or done
        start, before = begun = begun or (now, done)
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        parts = [f"{done}/{goal}"]
        if done > before:
            parts.append(f"{(now - start) / (done - before) * (goal - done):.0f} s left")
        if console.verbosity >= 0:
            console._show(f"{what}: {', '.join([*parts, remark] if remark else parts)}")

    return advance
