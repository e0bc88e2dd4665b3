"""The metrics of a run as TensorBoard events too.

Written here and not by `torch.utils.tensorboard`: its thread tells of a full disk too late, and by
a traceback.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hidra_cli.errors import RunError, UsageError
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.metrics import MetricsFile
from hidra_cli.system.files import writing_to

# Column of metrics.csv → name of the curve.
CURVES = {
    "loss": "training/loss",
    "accuracy": "training/accuracy",
    "gradient_norm": "training/gradient_norm",
    "tasks_per_second": "training/tasks_per_second",
    "validation_accuracy": "validation/accuracy",
    "validation_mean_squared_error": "validation/mean_squared_error",
}
# What TensorBoard knows an event file by. It reads the files of a folder in the order of names.
_NAME = "events.out.tfevents."


def check_log(log: Literal["csv", "tensorboard"]) -> None:
    """Check that this kind of log can be written.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    if log == "csv":
        return
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401
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


class MetricsAndEvents(MetricsFile):
    """metrics.csv, and one event per row.

    Args:
        path, columns, kept: as of `MetricsFile`.
        events: folder of the event files; each time a run goes on it gets another one, which
            begins by taking back the events after iteration `kept`.
    """

    def __init__(self, path: Path, columns: Sequence[str], kept: int, events: Path) -> None:
        super().__init__(path, columns, kept)
        try:
            self._events = _EventFile(events, kept)
        except RunError:
            self._file.close()
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        super().write(row)
        values = {tag: float(row[name]) for name, tag in CURVES.items() if row.get(name)}
        self._events.write(int(row["iteration"]), values)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._events.close()


class _EventFile:
    """One file of records, each a protocol buffer with its checksum."""

    def __init__(self, folder: Path, kept: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        with writing_to(folder):
            folder.mkdir(exist_ok=True)
            numbers = [path.name.removeprefix(_NAME) for path in folder.glob(f"{_NAME}*")]
            last = max((int(n) for n in numbers if n.isdecimal()), default=0)
            self.path = folder / f"{_NAME}{last + 1:010d}"
            self._file = self.path.open("xb")
        self._records = RecordWriter(self._file)
        try:
            self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=time.time(), step=kept + 1, session_log=start))
        except RunError:
            with contextlib.suppress(RunError):  # the first error is the one to tell
                self.close()
            raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by curve; they are with the system when this returns.

        Raises:
            RunError: the disk is full or gone.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))

    def _add(self, event: Any) -> None:
        with writing_to(self.path):
            self._records.write(event.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        with writing_to(self.path):
            self._file.close()
