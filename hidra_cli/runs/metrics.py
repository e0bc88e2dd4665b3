"""metrics.csv, one row per outer step, and the same as TensorBoard events."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hidra_cli.errors import DataError
from hidra_cli.system.files import write_atomically, writing_to


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
    found: dict[int, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                number = row.get(columns[0]) or ""
                whole = set(row) == set(columns) and None not in row.values()
                if whole and re.fullmatch(r"[0-9]{1,18}", number) and 1 <= int(number) <= last:
                    found[int(number)] = row
    except (FileNotFoundError, csv.Error):
        pass
    except OSError as exc:
        raise DataError(f"{path} cannot be read", why=str(exc), fix="make it readable") from exc
    return [found[number] for number in sorted(found)]
