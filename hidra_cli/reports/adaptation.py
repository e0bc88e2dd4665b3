"""What a classifier of one's own pictures learned, shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hidra_cli.engine.task_batch import Task
    from hidra_cli.jobs.adapt import Adapted, HeldOut
    from hidra_cli.runs.model import TrainedModel
    from hidra_cli.system.console import Console


# A larger table of confusions is shown by its entries off the diagonal.
MOST_COLUMNS = 12


MOST_CONFUSIONS = 15


def _show_own(
    model: TrainedModel,
    classes: list[str],
    counts: dict[str, int],
    held: HeldOut | None,
    adapted: Adapted,
    console: Console,
) -> None:
    show_steps(f"{len(classes)} classes of one's own", model, adapted, console)
    if held is not None:
        right = f"{100 * held.accuracies[held.steps]:.1f} % of them right"
        console.print(
            f"{held.steps} inner steps, the best of up to {len(held.accuracies) - 1} on support "
            f"pictures held out in {held.folds} parts: {right}"
        )
    else:
        console.print(f"{model.steps} inner steps (as trained, or as given)")
    console.table(
        "Each class",
        ["class", "support pictures", "query accuracy, %"],
        [
            [name, str(counts[name]), "–" if math.isnan(a) else f"{100 * a:.1f}"]
            for name, a in zip(classes, adapted.per_class, strict=True)
        ],
    )
    if model.normalization == "transductive":
        console.warn(
            "this model takes batch statistics from the pictures predicted together: a prediction "
            "depends on the others; prefer a model trained with --normalization support"
        )


def _confusion(
    model: TrainedModel,
    task: Task,
    adapted: Adapted,
    held: HeldOut | None,
    classes: list[str],
    console: Console,
) -> list[list[int]] | None:
    """Show which classes are taken for which: of the queries, or else of held-out pictures."""
    from hidra_cli.jobs.adapt import confusion, predictions

    if len(task.query_labels):
        what, labels = "queries", task.query_labels
        found = predictions(model, adapted.weights, task)
    elif held is not None:
        what, labels, found = "held-out support pictures", held.labels, held.predictions
    else:
        return None
    table = confusion(labels, found, classes)
    if len(classes) <= MOST_COLUMNS:
        rows = [
            [name, *(str(count) if count else "·" for count in row)]
            for name, row in zip(classes, table, strict=True)
        ]
        console.table(f"Confusion of {what} (rows: true class)", ["class", *classes], rows)
    else:
        wrong = [
            (count, classes[i], classes[j])
            for i, row in enumerate(table)
            for j, count in enumerate(row)
            if count and i != j
        ]
        worst = sorted(wrong, key=lambda entry: (-entry[0], entry[1:]))[:MOST_CONFUSIONS]
        console.table(
            f"Most frequent confusions of {what}",
            ["true class", "taken for", "times"],
            [[true, taken, str(count)] for count, true, taken in worst],
            left=2,
        )
    return table


def show_steps(what: str, model: TrainedModel, adapted: Adapted, console: Console) -> None:
    console.table(
        f"Adapting {model.name} to {what} ({model.normalization} normalization)",
        ["inner steps", "support loss", "query accuracy, %"],
        [
            [str(step), f"{loss:.4f}", "–" if math.isnan(accuracy) else f"{100 * accuracy:.1f}"]
            for step, (loss, accuracy) in enumerate(
                zip(adapted.support_losses, adapted.accuracies, strict=True)
            )
        ],
    )
