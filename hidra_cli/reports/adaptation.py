"""The adaptation of a classifier, shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hidra_cli.api.folders import counted, shown

if TYPE_CHECKING:
    from hidra_cli.jobs.adapt import OwnAdaptation
    from hidra_cli.jobs.drawn_task import DrawnAdaptation
    from hidra_cli.jobs.one_task import Adapted
    from hidra_cli.runs.model import TrainedModel
    from hidra_cli.system.console import Console

# A larger table of confusions is shown by its entries off the diagonal.
MOST_COLUMNS = 12
MOST_CONFUSIONS = 15
MOST_DUPLICATES = 20


def show_drawn(result: DrawnAdaptation, console: Console) -> None:
    """The steps and classes of a drawn task."""
    ways, shots = len(result.classes), result.shots
    what = f"{ways} ways, {shots} shots of {result.dataset}"
    _show_steps(what, result.model, result.adapted, console)
    console.table(
        "Each class after adapting",
        ["class", "query accuracy, %"],
        [
            [name, f"{100 * accuracy:.1f}"]
            for name, accuracy in zip(result.classes, result.adapted.per_class, strict=True)
        ],
    )
    console.print(f"classifier: {result.path}")


def show_own(result: OwnAdaptation, console: Console) -> None:
    """The steps, classes and confusions of people's own pictures."""
    model, held_out = result.model, result.held_out
    if result.choice is not None:
        console.note(result.choice.line)
    _show_audit(result, console)
    _show_steps(f"{len(result.classes)} classes of your own", model, result.adapted, console)
    if held_out is not None:
        most = len(held_out.accuracies) - 1
        steps = (
            f"{held_out.steps} inner steps, the best of up to {most}" if most else "no inner step"
        )
        console.print(
            f"{steps} on support pictures held out in {held_out.folds} parts: "
            f"{100 * held_out.accuracies[held_out.steps]:.1f} % of them right"
        )
    else:
        console.print(f"{model.steps} inner steps (as trained, or as given)")
    console.table(
        "Each class",
        ["class", "support pictures", "query accuracy, %"],
        [
            [name, str(count), _percent(accuracy)]
            for (name, count), accuracy in zip(
                result.counts.items(), result.adapted.per_class, strict=True
            )
        ],
    )
    if model.normalization == "transductive":
        console.warn(
            "this model takes batch statistics from the pictures predicted together: a prediction "
            "depends on the others; prefer a model trained with --normalization support"
        )
    _show_confusion(result, console)
    if not result.knows_its_pictures:
        console.warn(
            "the last support loss is above that of equal probabilities: the classifier does not "
            "know the pictures that it learned; try fewer --steps, or another model"
        )
    if result.suspects:
        console.table(
            "Mislabelled? Held out, these were confidently of another class",
            ["picture", "its class", "taken for", "probability, %"],
            [
                [str(one.path), one.label, one.predicted, f"{100 * one.probability:.0f}"]
                for one in result.suspects[:MOST_DUPLICATES]
            ],
            left=3,
        )
    if result.other is not None:
        console.note(f"{result.other} has a classifier already, which stays")
    console.print(f"classifier: {result.path}")
    console.note(f"next: hidra predict {result.path} DIR")


def _show_audit(result: OwnAdaptation, console: Console) -> None:
    """What is noteworthy about the pictures, before what was learned of them."""
    audit = result.audit
    for part, counts in audit.left_out.items():
        if counts:
            console.note(f"{part}: left out {counted(counts)}")
    for path, why in audit.damaged.items():
        console.warn(f"{shown(str(path))} is left out: {why}")
    for line in audit.notes:
        console.warn(line)
    if audit.duplicates:
        console.table(
            "Pictures that are the same, or nearly",
            ["where", "first", "second", "how"],
            [
                [
                    one.kind,
                    str(one.first.path),
                    str(one.second.path),
                    "the same" if one.exact else "nearly",
                ]
                for one in audit.duplicates[:MOST_DUPLICATES]
            ],
            left=4,
        )
        if len(audit.duplicates) > MOST_DUPLICATES:
            console.print(f"and {len(audit.duplicates) - MOST_DUPLICATES} more pairs")
    if learned := audit.learned_queries:
        console.warn(
            f"{len(learned)} query pictures are among those learned: the query accuracy is too good"
        )
    if audit.sizes:
        (w, h), (width, height) = audit.sizes
        console.note(f"pictures of {w}×{h} to {width}×{height} pixels")


def _show_confusion(result: OwnAdaptation, console: Console) -> None:
    if result.confusion is None:
        return
    classes, pictures, table = result.classes, result.confusion.pictures, result.confusion.table
    if len(classes) <= MOST_COLUMNS:
        rows = [
            [name, *(str(count) if count else "·" for count in row)]
            for name, row in zip(classes, table, strict=True)
        ]
        console.table(f"Confusion of {pictures} (rows: true class)", ["class", *classes], rows)
        return
    wrong = [
        (count, classes[i], classes[j])
        for i, row in enumerate(table)
        for j, count in enumerate(row)
        if count and i != j
    ]
    worst = sorted(wrong, key=lambda entry: (-entry[0], entry[1:]))[:MOST_CONFUSIONS]
    console.table(
        f"Most frequent confusions of {pictures}",
        ["true class", "taken for", "times"],
        [[true, taken, str(count)] for count, true, taken in worst],
        left=2,
    )


def _show_steps(what: str, model: TrainedModel, adapted: Adapted, console: Console) -> None:
    steps = zip(adapted.support_losses, adapted.accuracies, strict=True)
    console.table(
        f"Adapting {model.name} to {what} ({model.normalization} normalization)",
        ["inner steps", "support loss", "query accuracy, %"],
        [
            [str(step), f"{loss:.4f}", _percent(accuracy)]
            for step, (loss, accuracy) in enumerate(steps)
        ],
    )


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"
