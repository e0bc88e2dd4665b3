"""`hidra adapt --support`: learn one's own pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hidra_cli.commands import common
from hidra_cli.commands.adapting import Wish, check_finite, show_steps

if TYPE_CHECKING:
    from torch import Tensor

    from hidra_cli.adaptation import Adapted, HeldOut
    from hidra_cli.classifiers import Kept
    from hidra_cli.console import Console
    from hidra_cli.engine.tasks import Task
    from hidra_cli.models import TrainedModel
    from hidra_cli.pictures import LabelledPictures

# A larger table of confusions is shown by its entries off the diagonal.
MOST_COLUMNS = 12
MOST_CONFUSIONS = 15


def adapt_own(
    wish: Wish,
    model: TrainedModel,
    kept: Kept | None,
    given: LabelledPictures,
    support: Path,
    query: Path | None,
) -> None:
    """Learn the pictures given now, with those that a classifier kept, and save a classifier."""
    from hidra_cli.adaptation import adapt_task, hold_out, own_task
    from hidra_cli.classifiers import save_classifier
    from hidra_cli.pictures import labelled_pictures, read_pictures
    from hidra_cli.runs import results_home

    console, invert = wish.console, bool(model.meta["invert"])
    images = read_pictures(given.paths, model.image_shape, invert).to(wish.device)
    classes, images, targets = _together(given, images, kept)
    counts = dict(zip(classes, targets.bincount(minlength=len(classes)).tolist(), strict=True))
    _check_given(counts, wish.ways, wish.shots)
    model.check((len(classes),), model.image_shape)
    held = hold_out(model, images, targets, len(classes)) if wish.steps is None else None
    steps = wish.steps if held is None else held.steps
    model = model if steps is None else replace(model, steps=steps)
    queries = None
    if query is not None:
        asked = labelled_pictures(query).within(classes, query)
        queries = (
            read_pictures(asked.paths, model.image_shape, invert).to(wish.device),
            targets.new_tensor(asked.labels),
        )
    task = own_task((images, targets), queries, len(classes))
    adapted = adapt_task(model, task)
    _show_own(model, classes, counts, held, adapted, console)
    check_finite(adapted)
    table = _confusion(model, task, adapted, held, classes, console)
    place = results_home(model.path) / "adapted" / f"{support.resolve().name}-{len(classes)}w"
    path = common.made(wish.out or place) / "classifier.safetensors"
    save_classifier(path, model, adapted.weights, task, classes, keep=wish.keep)
    console.print(f"classifier: {path}")
    console.note(f"next: hidra predict {path} DIR")
    console.result(
        {
            "checkpoint": str(model.path),
            "classes": counts,
            "steps": model.steps,
            "held_out_accuracy_per_step": held.accuracies if held else None,
            "normalization": model.normalization,
            "accuracy_per_step": adapted.accuracies if queries else None,
            "support_loss_per_step": adapted.support_losses,
            "accuracy_per_class": {
                name: None if math.isnan(accuracy) else accuracy
                for name, accuracy in zip(classes, adapted.per_class, strict=True)
            }
            if queries
            else None,
            "confusion": table,
            "classifier": str(path),
        }
    )


def _together(
    given: LabelledPictures, images: Tensor, kept: Kept | None
) -> tuple[list[str], Tensor, Tensor]:
    """Classes, images and labels: those a classifier kept, then those given now."""
    import torch

    if kept is None:
        return list(given.classes), images, torch.tensor(given.labels, device=images.device)
    classes = [*kept.classes, *(name for name in given.classes if name not in kept.classes)]
    places = torch.tensor([classes.index(name) for name in given.classes], device=images.device)
    targets = places[torch.tensor(given.labels, device=images.device)]
    return classes, torch.cat([kept.images, images]), torch.cat([kept.labels, targets])


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
            f"{held.steps} inner steps, the best of 1 to {len(held.accuracies) - 1} on support "
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
    from hidra_cli.adaptation import confusion, predictions

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


def _check_given(counts: dict[str, int], ways: int | None, shots: int | None) -> None:
    """Numbers that are given must be those of the folder."""
    from hidra_cli.errors import DataError, UsageError

    if len(counts) < 2:
        raise DataError(
            "one class alone cannot be told from others",
            why=f"the only class is {next(iter(counts))!r}",
            fix="add a folder of pictures for another class",
        )
    if ways is not None and ways != len(counts):
        raise UsageError(
            f"--ways {ways}, but there are {len(counts)} classes",
            why=", ".join(counts),
            fix="leave --ways out: it is taken from the folder",
        )
    for name, count in counts.items():
        if shots is not None and count != shots:
            raise UsageError(
                f"--shots {shots}, but the class {name!r} has {count} pictures",
                why="classes may differ in size when --shots is left out",
                fix="leave --shots out: it is taken from the folder",
            )
