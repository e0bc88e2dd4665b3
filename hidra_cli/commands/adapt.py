"""`hidra adapt`: learn one task from a few images, drawn or your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags, picture_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hidra_cli.system.console import Console

_OWN, _DRAWN = "Own pictures", "A task drawn from a dataset"

Ways = Annotated[
    int | None,
    typer.Option(help=flags.with_default("Classes of the task.", "5, or as trained")),
]
Shots = Annotated[
    int | None, typer.Option(help=flags.with_default("Support images per class.", "as trained"))
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help=flags.with_default(
            "latest, a run, a checkpoint or a model that ships with hidra.",
            "of own pictures the shipped model that suits them, else the latest run",
        ),
        autocompletion=completion.run_paths,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help=flags.with_default("Inner steps.", "chosen by held-out pictures, or as trained"),
        min=0,
    ),
]
Support = Annotated[
    Path | None,
    typer.Option(help="Folder of labelled pictures to learn.", rich_help_panel=_OWN),
]
Query = Annotated[
    Path | None,
    typer.Option(help="Folder of labelled pictures to test on.", rich_help_panel=_OWN),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help=flags.with_default(
            "CSV or JSON label file of --support.", "labels.csv or .json in it"
        ),
        rich_help_panel=_OWN,
    ),
]
QueryLabels = Annotated[
    Path | None,
    typer.Option(
        help=flags.with_default("CSV or JSON label file of --query.", "labels.csv or .json in it"),
        rich_help_panel=_OWN,
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        help="A classifier to add the classes and pictures of --support to.",
        rich_help_panel=_OWN,
    ),
]
Forget = Annotated[
    bool,
    typer.Option(
        "--forget",
        help="Leave the support images out of the classifier; it cannot grow then.",
        rich_help_panel=_OWN,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the classifier that is in --out.")]
Queries = Annotated[
    int, typer.Option(help="Query images per class.", min=1, rich_help_panel=_DRAWN)
]
Episode = Annotated[
    int,
    typer.Option(help="Which task of the split.", min=0, max=2**63 - 1, rich_help_panel=_DRAWN),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Another dataset than the run's.",
        rich_help_panel=_DRAWN,
        autocompletion=completion.datasets,
    ),
]
Seed = Annotated[
    int, typer.Option(help="Of the episodes.", min=0, max=2**63 - 1, rich_help_panel=_DRAWN)
]


@flags.with_console
def adapt(
    console: Console,
    ways: Ways = None,
    shots: Shots = None,
    checkpoint: Checkpoint = None,
    steps: Steps = None,
    support: Support = None,
    query: Query = None,
    labels: Labels = None,
    query_labels: QueryLabels = None,
    base: Base = None,
    forget: Forget = False,
    fit: picture_flags.Fit = None,
    background: picture_flags.Background = None,
    value_range: picture_flags.ValueRange = None,
    max_pixels: picture_flags.MaxPixels = None,
    skip_broken: picture_flags.SkipBroken = False,
    force: Force = False,
    queries: Queries = 15,
    episode: Episode = 0,
    dataset: Dataset = None,
    source: flags.Source = None,
    data_opt: flags.DataOpt = None,
    split: flags.Split = "test",
    seed: Seed = 0,
    device: flags.Device = None,
    out: flags.Out = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Learn a task, show how well, and save the classifier.

    The task is a folder of your pictures (one folder per class, or a label file), or it is drawn
    from the test split of the run's dataset.

    Examples:

      hidra adapt --support my-pictures --query my-other-pictures

      hidra adapt --base classifier.safetensors --support more-pictures

      hidra adapt --ways 7 --shots 5

    Next: hidra predict CLASSIFIER DIR
    """
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.jobs.adapt import adapt_pictures
    from hidra_cli.jobs.drawn_task import DrawnTask, adapt_drawn
    from hidra_cli.jobs.one_task import AdaptRequest
    from hidra_cli.jobs.own_data import OwnPictures
    from hidra_cli.reports.adaptation import show_drawn, show_own
    from hidra_cli.runs.locate import latest_or_shipped, named_model

    where = resolve_device(device or "auto")
    if checkpoint is not None:
        checkpoint = named_model(checkpoint, runs_dir)
    request = AdaptRequest(where, ways, shots, steps, out, keep=not forget, force=force)
    files = {"--query": query, "--labels": labels, "--query-labels": query_labels, "--base": base}
    reading = {"--fit": fit, "--background": background, "--value-range": value_range}
    if support is None:
        _check_only_drawn({**files, **reading})
        options = flags.assignments("--data-opt", data_opt)
        which = DrawnTask(split, queries, episode, seed, dataset, source, options, cache_dir)
        model = checkpoint or latest_or_shipped(runs_dir, console)
        drawn = adapt_drawn(which, model, request, console)
        show_drawn(drawn, console)
        console.result(drawn.to_json())
        return
    _check_only_own({"--dataset": dataset, "--source": source, "--data-opt": data_opt})
    _check_only_new(base, {"--checkpoint": checkpoint, **reading})
    _check_query(query, query_labels)
    how = picture_flags.picture_options(fit, background, value_range, max_pixels, skip_broken)
    pictures = OwnPictures(support, query, labels, query_labels, base, how)
    own = adapt_pictures(pictures, checkpoint, request)
    show_own(own, console)
    console.result(own.to_json())


def _check_only_drawn(own: Mapping[str, object]) -> None:
    from hidra_cli.errors import UsageError

    for flag, value in own.items():
        if value is not None:
            raise UsageError(
                f"{flag} needs --support",
                why="without it, the task is drawn from a dataset",
                fix="add --support DIR",
            )


def _check_only_own(drawn: Mapping[str, object]) -> None:
    from hidra_cli.errors import UsageError

    for flag, value in drawn.items():
        if value:
            raise UsageError(
                f"{flag} and --support cannot go together",
                why="the task is in the folder of --support, or drawn from a dataset",
                fix=f"leave one of them out: {flag} or --support",
            )


def _check_only_new(base: Path | None, new: Mapping[str, object]) -> None:
    from hidra_cli.errors import UsageError

    for flag, value in new.items():
        if base is not None and value is not None:
            raise UsageError(
                f"--base and {flag} cannot go together",
                why="a classifier grows from the model that it was adapted from, and reads all "
                "its pictures alike",
                fix=f"leave {flag} out",
            )


def _check_query(query: Path | None, query_labels: Path | None) -> None:
    from hidra_cli.errors import UsageError

    if query is None and query_labels is not None:
        raise UsageError("--query-labels needs --query", fix="add --query DIR")
