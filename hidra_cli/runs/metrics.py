"""metrics.csv, one row per outer step, and the same rows as TensorBoard events."""

from __future__ import annotations

import csv
import io
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from hidra_cli.errors import DataError, RunError, UsageError
from hidra_cli.runs.directory import RunDir
from hidra_cli.system.files import write_atomically, writing_to

# Column of metrics.csv → name of the TensorBoard curve.
CURVES = {
    "loss": "training/loss",
    "accuracy": "training/accuracy",
    "gradient_norm": "training/gradient_norm",
    "tasks_per_second": "training/tasks_per_second",
    "validation_accuracy": "validation/accuracy",
    "validation_mean_squared_error": "validation/mean_squared_error",
}


def check_log(log: Literal["csv", "tensorboard"]) -> None:
    """Check that this kind of log can be written.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    if log == "csv":
        return
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as exc:
        raise UsageError(
            "--log tensorboard needs TensorBoard, which is not installed",
            why=f"{type(exc).__name__}: {exc}",
            fix="pip install 'hidra-cli[tensorboard]', or leave --log out: metrics.csv is always "
            "written",
        ) from exc


def open_metrics(
    log: Literal["csv", "tensorboard"], run: RunDir, columns: Sequence[str], kept: int
) -> MetricsFile:
    """Open the metrics of a run, of which the rows up to iteration `kept` are kept.

    Raises:
        RunError: a file could not be written.
    """
    if log == "csv":
        return MetricsFile(run.metrics, columns, kept)
    return MetricsAndEvents(run.metrics, columns, kept, run.events)


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


class MetricsAndEvents(MetricsFile):
    """metrics.csv, and the events of each row.

    Args:
        path, columns, kept: as of `MetricsFile`.
        events: folder of the event files. A resumed run begins another file there, which tells
            TensorBoard to drop the events after iteration `kept`.
    """

    def __init__(self, path: Path, columns: Sequence[str], kept: int, events: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(path, columns, kept)
        self.events = events
        self._thread_report = threading.excepthook
        threading.excepthook = self._report_unless_writer
        try:
            with writing_to(events):
                self._event_writer = SummaryWriter(str(events), purge_step=kept + 1)
        except RunError:
            self._file.close()
            threading.excepthook = self._thread_report
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row and its events; they are with the system when this returns.

        Raises:
            RunError: the disk is full or gone.
        """
        super().write(row)
        with writing_to(self.events):
            for name, curve in CURVES.items():
                if row.get(name):
                    self._event_writer.add_scalar(curve, float(row[name]), int(row["iteration"]))
            self._event_writer.flush()  # an error of the writer's thread is raised here

    def close(self) -> None:
        try:
            with writing_to(self.events):
                self._event_writer.close()
        finally:
            threading.excepthook = self._thread_report
            super().close()

    def _report_unless_writer(self, args: threading.ExceptHookArgs) -> None:
        """No traceback of the writer's thread: `write` raises its error."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._thread_report(args)


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
    rows: dict[int, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                number = row.get(columns[0]) or ""
                whole = set(row) == set(columns) and None not in row.values()
                if whole and re.fullmatch(r"[0-9]{1,18}", number) and 1 <= int(number) <= last:
                    rows[int(number)] = row
    except (FileNotFoundError, csv.Error):
        pass
    except OSError as exc:
        raise DataError(f"{path} cannot be read", why=str(exc), fix="make it readable") from exc
    return [rows[number] for number in sorted(rows)]
