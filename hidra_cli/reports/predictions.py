"""Predictions as a table, as CSV, as JSON lines and as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hidra_cli.system.console import one_line
from hidra_cli.system.files import write_atomically

if TYPE_CHECKING:
    from hidra_cli.api.preprocessing import Preprocessing
    from hidra_cli.jobs.predict import Prediction, Predictions
    from hidra_cli.system.console import Console

Format = Literal["table", "csv", "jsonl"]
MOST_ROWS = 200  # of the table; the other formats have no limit


def show_notes(result: Predictions, console: Console) -> None:
    """Print how many pictures were left out, and how the others were read."""
    from hidra_cli.api.folders import counted

    if result.left_out:
        console.note(f"left out {counted(result.left_out)}")
    if result.damaged:
        console.note(f"left out {len(result.damaged)} pictures that cannot be read")
    for line in result.notes:
        console.warn(line)


def format_of(out: Path, form: Format) -> Format:
    """The format of a file, which its ending says.

    Raises:
        UsageError: the ending is not understood, or says another format than the flag.
    """
    from hidra_cli.errors import UsageError

    endings: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl"}
    says = endings.get(out.suffix.lower())
    if says is None or form not in ("table", says):
        ending = ".jsonl" if form == "jsonl" else ".csv"
        raise UsageError(
            f"--out {out} cannot be used" + ("" if form == "table" else f" with --format {form}"),
            why="a file ends in .csv or .jsonl, as its format",
            fix=f"--out {out.with_suffix(ending) if out.name else 'labels' + ending}",
        )
    return says


def write_predictions(
    rows: Sequence[Prediction], form: Format, out: Path | None, console: Console
) -> None:
    """Print predictions, or write them into a file.

    Raises:
        RunError: the file cannot be written.
    """
    if out is not None:
        write_atomically(
            out,
            (_json_lines(rows) if form == "jsonl" else _csv(rows)).encode(errors="surrogateescape"),
        )
        console.note(f"written: {out}")
    elif form == "table":
        console.table(
            f"{len(rows)} pictures" + (f", the first {MOST_ROWS}" if len(rows) > MOST_ROWS else ""),
            ["picture", "label", "probability, %"],
            [
                [str(row.image) if rank == 0 else "", label, f"{100 * probability:.1f}"]
                for row in rows[:MOST_ROWS]
                for rank, (label, probability) in enumerate(_ranks(row))
            ],
            left=2,
        )
    else:
        escaped = console.on_terminal
        console.raw(_csv(rows, escaped=escaped) if form == "csv" else _json_lines(rows))


def write_gallery(
    rows: Sequence[Prediction], path: Path, preprocessing: Preprocessing, console: Console
) -> None:
    """Draw the first pictures and their labels into a PNG file.

    Raises:
        RunError: the file cannot be written.
    """
    from hidra_cli.reports.figures import predictions_gallery

    labels = [(row.image, row.shown_label, row.probability) for row in rows]
    write_atomically(path, predictions_gallery(labels, preprocessing))
    console.note(f"gallery: {path}")


def _ranks(row: Prediction) -> list[tuple[str, float]]:
    """(label, probability) of the answer and of the classes after it."""
    return [(row.shown_label, row.probability), *row.ranks[1:]]


def _csv(rows: Sequence[Prediction], *, escaped: bool = False) -> str:
    """image, label, probability; with --top-k also label_2, probability_2, …

    On a terminal a name that holds a line's end is escaped, so that it is no line of its own.
    """
    ranks = len(rows[0].ranks) if rows else 1
    more = [f"{name}_{rank}" for rank in range(2, ranks + 1) for name in ("label", "probability")]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "label", "probability", *more])
    for row in rows:
        image = one_line(str(row.image)) if escaped else row.image
        writer.writerow([image, *(value for rank in _ranks(row) for value in rank)])
    return text.getvalue()


def _json_lines(rows: Sequence[Prediction]) -> str:
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)
