"""`hidra adapt`: learn one task from a few images, drawn or one's own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hidra_cli.api.data import Split
    from hidra_cli.images.own_pictures import LabelledPictures
    from hidra_cli.images.prepared import PreparedImages
    from hidra_cli.jobs.adapt import Wish
    from hidra_cli.jobs.classifier import Kept
    from hidra_cli.runs.model import TrainedModel
    from hidra_cli.system.console import Console

_OWN, _DRAWN = "Own pictures", "A task drawn from a dataset"


@flags.with_console
def adapt(
    console: Console,
    ways: Annotated[
        int | None,
        typer.Option(help=flags.with_default("Classes of the task.", "5, or as trained")),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help=flags.with_default("Support images per class.", "as trained"))
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help=flags.with_default(
                "A run directory or checkpoint.", "the latest run, else omniglot-any"
            ),
            autocompletion=completion.run_paths,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help=flags.with_default("Inner steps.", "chosen by held-out pictures, or as trained"),
            min=0,
        ),
    ] = None,
    support: Annotated[
        Path | None,
        typer.Option(help="Folder of labelled pictures to learn.", rich_help_panel=_OWN),
    ] = None,
    query: Annotated[
        Path | None,
        typer.Option(help="Folder of labelled pictures to test on.", rich_help_panel=_OWN),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help=flags.with_default(
                "CSV or JSON label file of --support.", "labels.csv or .json in it"
            ),
            rich_help_panel=_OWN,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="A classifier to add the classes and pictures of --support to.",
            rich_help_panel=_OWN,
        ),
    ] = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="Leave the support images out of the classifier; it cannot grow then.",
            rich_help_panel=_OWN,
        ),
    ] = False,
    queries: Annotated[
        int, typer.Option(help="Query images per class.", min=1, rich_help_panel=_DRAWN)
    ] = 15,
    episode: Annotated[
        int,
        typer.Option(help="Which task of the split.", min=0, max=2**63 - 1, rich_help_panel=_DRAWN),
    ] = 0,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Another dataset than the run's.",
            rich_help_panel=_DRAWN,
            autocompletion=completion.datasets,
        ),
    ] = None,
    source: flags.Source = None,
    data_opt: flags.DataOpt = None,
    split: flags.Split = "test",
    seed: Annotated[
        int, typer.Option(help="Of the episodes.", min=0, max=2**63 - 1, rich_help_panel=_DRAWN)
    ] = 0,
    device: flags.Device = None,
    out: flags.Out = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Learn a task, show how well, and save the classifier.

    The task is a folder of one's own pictures (one folder per class, or a label file), or is drawn
    from the test split of the run's dataset.

    Examples:

      hidra adapt --support my-pictures --query my-other-pictures

      hidra adapt --base classifier.safetensors --support more-pictures

      hidra adapt --ways 7 --shots 5

    Next: hidra predict CLASSIFIER DIR
    """
    from hidra_cli.jobs.adapt import Wish, _check_classifies
    from hidra_cli.runs.locate import _latest

    pass
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.images.open import open_images
    from hidra_cli.images.own_pictures import labelled_pictures
    from hidra_cli.jobs.classifier import load_base
    from hidra_cli.runs.model import load_model

    where = resolve_device(device or "auto")
    wish = Wish(where, steps, ways, shots, out, not forget, console)
    if support is None:
        _check_only_drawn({"--query": query, "--labels": labels, "--base": base})
        model = load_model(checkpoint or _latest(runs_dir, console), where, steps=steps)
        _check_classifies(model)
        settings = flags.another_dataset(model.settings.dataset, dataset, source, data_opt)
        images = open_images(settings, cache_dir, console)
        _adapt_drawn(wish, model, images, split, episode, seed, queries)
        return
    other = {"--dataset": dataset, "--source": source, "--data-opt": data_opt}
    _check_only_own(other, base, checkpoint)
    kept = None
    if base is not None:
        model, kept = load_base(base, where)
    else:
        model = load_model(checkpoint or _latest(runs_dir, console), where)
        _check_classifies(model)
    adapt_own(wish, model, kept, labelled_pictures(support, labels), support, query)


def _check_only_drawn(own: Mapping[str, object]) -> None:
    from hidra_cli.errors import UsageError

    for flag, value in own.items():
        if value is not None:
            raise UsageError(
                f"{flag} needs --support",
                why="without it, the task is drawn from a dataset",
                fix="add --support DIR",
            )


def _check_only_own(
    drawn: Mapping[str, object], base: Path | None, checkpoint: Path | None
) -> None:
    from hidra_cli.errors import UsageError

    for flag, value in drawn.items():
        if value:
            raise UsageError(
                f"{flag} and --support cannot go together",
                why="the task is in the folder of --support, or drawn from a dataset",
                fix=f"leave one of them out: {flag} or --support",
            )
    if base is not None and checkpoint is not None:
        raise UsageError(
            "--base and --checkpoint cannot go together",
            why="a classifier grows from the model that it was adapted from",
            fix="leave --checkpoint out",
        )


def _adapt_drawn(
    wish: Wish,
    model: TrainedModel,
    images: PreparedImages,
    split: Split,
    episode: int,
    seed: int,
    queries: int,
) -> None:
    from hidra_cli.jobs.adapt import _check_positive, adapt_task, check_finite
    from hidra_cli.jobs.classifier import save_classifier
    from hidra_cli.reports.adaptation import show_steps
    from hidra_cli.runs.locate import results_home
    from hidra_cli.system.files import made
    from hidra_cli.tasks.images import ImageSampler
    from hidra_cli.tasks.shape import TaskShape

    console, ways, shots = wish.console, wish.ways, wish.shots
    n = ways if ways is not None else (5 if model.learner.head.any_ways else model.max_ways)
    k = shots if shots is not None else min(model.settings.tasks.shots)
    _check_positive(n, k)
    model.check((n,), images.image_shape)
    shape = TaskShape(n, k)
    sampler = ImageSampler(images, split, (n,), (k,), queries, seed, device=wish.device)
    indices = sampler.indices([episode], shape)
    task = sampler.batch([episode], shape).task(0)
    adapted = adapt_task(model, task)
    classes = [sampler.table.names[row] for row in indices.classes[0]]
    show_steps(f"{n} ways, {k} shots of {images.dataset}", model, adapted, console)
    check_finite(adapted)
    console.table(
        "Each class after adapting",
        ["class", "query accuracy, %"],
        [[c, f"{100 * a:.1f}"] for c, a in zip(classes, adapted.per_class, strict=True)],
    )
    of = "" if split == "test" else f"{split}-"
    name = f"{images.dataset}-{of}{n}w{k}s-seed{seed}-episode{episode}"
    path = made(wish.out or results_home(model.path) / "adapted" / name)
    path /= "classifier.safetensors"
    save_classifier(path, model, adapted.weights, task, classes, keep=wish.keep)
    console.print(f"classifier: {path}")
    console.result(
        {
            "checkpoint": str(model.path),
            "dataset": images.dataset,
            "split": split,
            "ways": n,
            "shots": k,
            "episode": episode,
            "seed": seed,
            "normalization": model.normalization,
            "accuracy_per_step": adapted.accuracies,
            "support_loss_per_step": adapted.support_losses,
            "accuracy_per_class": dict(zip(classes, adapted.per_class, strict=True)),
            "classifier": str(path),
        }
    )


def adapt_own(
    wish: Wish,
    model: TrainedModel,
    kept: Kept | None,
    given: LabelledPictures,
    support: Path,
    query: Path | None,
) -> None:
    """Learn the pictures given now, with those that a classifier kept, and save a classifier."""
    from hidra_cli.images.own_pictures import labelled_pictures, read_pictures
    from hidra_cli.jobs.adapt import (
        _check_given,
        _together,
        adapt_task,
        check_finite,
        hold_out,
        own_task,
    )
    from hidra_cli.jobs.classifier import save_classifier
    from hidra_cli.reports.adaptation import _confusion, _show_own
    from hidra_cli.runs.locate import results_home
    from hidra_cli.system.files import made

    console, preprocessing = wish.console, model.meta.image_preprocessing
    images = read_pictures(given.paths, preprocessing).to(wish.device)
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
            read_pictures(asked.paths, preprocessing).to(wish.device),
            targets.new_tensor(asked.labels),
        )
    task = own_task((images, targets), queries, len(classes))
    adapted = adapt_task(model, task)
    _show_own(model, classes, counts, held, adapted, console)
    check_finite(adapted)
    table = _confusion(model, task, adapted, held, classes, console)
    place = results_home(model.path) / "adapted" / f"{support.resolve().name}-{len(classes)}w"
    path = made(wish.out or place) / "classifier.safetensors"
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
