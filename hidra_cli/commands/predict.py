"""`hidra predict`: label pictures with an adapted classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hidra_cli.commands import flags

if TYPE_CHECKING:
    from torch import Tensor

    from hidra_cli.system.console import Console

Format = Literal["table", "csv", "jsonl"]
NONE_OF_THESE = "none of these"
MOST_ROWS = 200  # of the table; the other formats have no end


@flags.with_console
def predict(
    console: Console,
    classifier: Annotated[Path, typer.Argument(help="A classifier of `hidra adapt`.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    top_k: Annotated[int, typer.Option("--top-k", help="Labels to show per picture.", min=1)] = 1,
    form: Annotated[
        Format, typer.Option("--format", help="Of what is printed: table, csv or jsonl.")
    ] = "table",
    out: Annotated[
        Path | None, typer.Option(help="Write it into this file (as csv, or jsonl) instead.")
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="Also draw the first pictures and their labels: a PNG.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures per forward pass.", min=1)] = 64,
    none_below: Annotated[
        float | None,
        typer.Option(
            help=flags.with_default(
                "Say 'none of these' where no class has this probability; of sigmoid classifiers.",
                "0.5",
            ),
            min=0,
            max=1,
            show_default=False,
        ),
    ] = None,
    device: flags.Device = None,
) -> None:
    """Label pictures: class and probability, for one picture or thousands.

    A picture that cannot be read is reported and left out; the exit code is then 3. A classifier
    whose model was trained with --loss sigmoid may find that a picture is of none of its classes.

    Examples:

      hidra predict classifier.safetensors new-pictures --top-k 3

      hidra predict classifier.safetensors a.jpg b.png --format csv
    """
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.errors import DataError
    from hidra_cli.images.own_pictures import pictures_in
    from hidra_cli.jobs.classifier import load_classifier

    chosen = load_classifier(classifier, resolve_device(device or "auto"))
    least = _least_probability(none_below, chosen.learner.loss_name)
    paths = pictures_in(pictures)
    if chosen.normalization == "transductive":
        console.warn("these predictions depend on which pictures are predicted together")
    rows: list[dict[str, Any]] = []
    damaged: list[DataError] = []
    with console.progress("predicting", len(paths)) as advance:
        for done, (path, answer) in enumerate(chosen.predict(paths, batch), start=1):
            if isinstance(answer, DataError):
                damaged.append(answer)
                console.warn(f"{answer.what}: {answer.why}")
            else:
                rows.append(_row(path, answer, chosen.classes, top_k, least))
            advance(done)
    _write(rows, form, out, console)
    if gallery is not None:
        from hidra_cli.reports.figures import predictions_gallery
        from hidra_cli.system.files import write_atomically

        shown = [row | {"label": _ranks(row)[0][0]} for row in rows]
        write_atomically(gallery, predictions_gallery(shown, chosen.preprocessing))
        console.note(f"gallery: {gallery}")
    console.result({"predictions": rows, "damaged": [str(error.what) for error in damaged]})
    if damaged:
        raise DataError(
            f"{len(damaged)} of {len(paths)} pictures could not be read",
            why=damaged[0].what,
            fix="repair or remove them; the others were labelled",
        )


def _least_probability(chosen: float | None, loss: str) -> float:
    """Below which no class is named; under softmax one always is."""
    from hidra_cli.errors import UsageError

    if loss == "sigmoid":
        return 0.5 if chosen is None else chosen
    if chosen is not None:
        raise UsageError(
            "--none-below needs a classifier that judges each class by itself",
            why=f"this one's model was trained with --loss {loss}, whose classes share what there "
            "is: some class is always likely",
            fix="leave it out, or adapt a model of hidra meta-train --loss sigmoid",
        )
    return 0.0


def _row(
    path: Path, answer: Tensor, classes: tuple[str, ...], top_k: int, least: float
) -> dict[str, Any]:
    values, places = answer.topk(min(top_k, len(classes)))
    top = [
        {"label": classes[place], "probability": round(value, 6)}
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
    ]
    first = top[0] if answer.max() >= least else top[0] | {"label": None}
    return {"image": str(path), **first, **({"top": top} if top_k > 1 else {})}


def _ranks(row: dict[str, Any]) -> list[tuple[str, float]]:
    """(label, probability) of the answer and of the classes after it."""
    tops = [row, *row.get("top", [])[1:]]
    return [
        (NONE_OF_THESE if top["label"] is None else top["label"], top["probability"])
        for top in tops
    ]


def _write(rows: list[dict[str, Any]], form: Format, out: Path | None, console: Console) -> None:
    """Print predictions, or write them into a file."""
    from hidra_cli.system.files import write_atomically

    if out is not None:
        as_lines = form == "jsonl" or out.suffix == ".jsonl"
        write_atomically(out, (_json_lines(rows) if as_lines else _csv(rows)).encode())
        console.note(f"written: {out}")
    elif form == "table":
        console.table(
            f"{len(rows)} pictures" + (f", the first {MOST_ROWS}" if len(rows) > MOST_ROWS else ""),
            ["picture", "label", "probability, %"],
            [
                [row["image"] if rank == 0 else "", label, f"{100 * probability:.1f}"]
                for row in rows[:MOST_ROWS]
                for rank, (label, probability) in enumerate(_ranks(row))
            ],
            left=2,
        )
    else:
        console.raw(_csv(rows) if form == "csv" else _json_lines(rows))


def _csv(rows: list[dict[str, Any]]) -> str:
    """image, label, probability; with --top-k also label_2, probability_2, …"""
    import csv
    import io

    ranks = len(rows[0].get("top", [0])) if rows else 1
    more = [f"{name}_{rank}" for rank in range(2, ranks + 1) for name in ("label", "probability")]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "label", "probability", *more])
    for row in rows:
        writer.writerow([row["image"], *(value for rank in _ranks(row) for value in rank)])
    return text.getvalue()


def _json_lines(rows: list[dict[str, Any]]) -> str:
    import json

    return "".join(json.dumps(row) + "\n" for row in rows)
