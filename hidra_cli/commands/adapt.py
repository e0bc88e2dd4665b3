"""`hidra adapt`: learn one task from a few images, drawn or one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import common, completing
from hidra_cli.commands.adapting import Wish, check_finite, show_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hidra_cli.api.data import Split
    from hidra_cli.console import Console
    from hidra_cli.models import TrainedModel
    from hidra_cli.store.reader import PreparedImages

# What adapts where nothing was meta-trained yet; data/models has its card.
SHIPPED = "omniglot-any"
_OWN, _DRAWN = "Own pictures", "A task drawn from a dataset"


def adapt(
    ways: Annotated[
        int | None, typer.Option(help="Classes of the task. [5, or as trained]")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Support images per class. [as trained]")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A run directory or checkpoint. [the latest run, else omniglot-any]",
            autocompletion=completing.run_paths,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Inner steps. [chosen by held-out pictures, or as trained]", min=0),
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
            help="CSV or JSON label file of --support. [labels.csv or .json in it]",
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
            autocompletion=completing.datasets,
        ),
    ] = None,
    source: common.Source = None,
    data_opt: common.DataOpt = None,
    split: common.Split = "test",
    seed: Annotated[
        int, typer.Option(help="Of the episodes.", min=0, max=2**63 - 1, rich_help_panel=_DRAWN)
    ] = 0,
    device: common.Device = None,
    out: common.Out = None,
    runs_dir: common.RunsDir = None,
    cache_dir: common.CacheDir = None,
    json_output: common.Json = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
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
    from hidra_cli.classifiers import load_base
    from hidra_cli.commands.adapt_own import adapt_own
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.models import load_model
    from hidra_cli.pictures import labelled_pictures

    console = common.make_console(json_output, quiet, verbose)
    where = resolve_device(device or "auto")
    wish = Wish(where, steps, ways, shots, out, not forget, console)
    if support is None:
        _check_only_drawn({"--query": query, "--labels": labels, "--base": base})
        model = load_model(checkpoint or _latest(runs_dir, console), where, steps=steps)
        _check_classifies(model)
        settings = common.another_dataset(model.settings.dataset, dataset, source, data_opt)
        images = common.open_images(settings, cache_dir, console)
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


def _latest(runs_dir: Path | None, console: Console) -> Path:
    """The latest run, or the model that ships with hidra where there is none."""
    from hidra_cli.errors import DataError
    from hidra_cli.runs import latest_run, shipped_models

    try:
        return latest_run(common.runs_dir_of(runs_dir))
    except DataError:
        shipped = shipped_models().get(SHIPPED)
        if shipped is None:
            raise
        console.note(f"there is no run yet: using {SHIPPED}, which ships with hidra")
        return shipped


def _check_classifies(model: TrainedModel) -> None:
    from hidra_cli.errors import UsageError
    from hidra_cli.problems import CLASSIFICATION

    if model.problem is not CLASSIFICATION:
        raise UsageError(
            f"{model.name} makes no classifiers",
            why=f"it was trained on functions ({model.settings.dataset.name}), not on classes",
            fix=f"measure how it adapts: hidra evaluate {model.path}",
        )


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
    from hidra_cli.adaptation import adapt_task
    from hidra_cli.classifiers import save_classifier
    from hidra_cli.episodes import EpisodeSampler
    from hidra_cli.runs import results_home

    console, ways, shots = wish.console, wish.ways, wish.shots
    n = ways if ways is not None else (5 if model.learner.head.any_ways else model.max_ways)
    k = shots if shots is not None else min(model.settings.tasks.shots)
    _check_positive(n, k)
    model.check((n,), images.image_shape)
    table = images.table(split)
    sampler = EpisodeSampler(table, (n,), (k,), queries, seed)
    indices = sampler.indices([episode], n, k)
    task = sampler.batch(images, [episode], n, k, wish.device).task(0)
    adapted = adapt_task(model, task)
    classes = [table.names[row] for row in indices.classes[0]]
    show_steps(f"{n} ways, {k} shots of {images.dataset}", model, adapted, console)
    check_finite(adapted)
    console.table(
        "Each class after adapting",
        ["class", "query accuracy, %"],
        [[c, f"{100 * a:.1f}"] for c, a in zip(classes, adapted.per_class, strict=True)],
    )
    of = "" if split == "test" else f"{split}-"
    name = f"{images.dataset}-{of}{n}w{k}s-seed{seed}-episode{episode}"
    path = common.made(wish.out or results_home(model.path) / "adapted" / name)
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


def _check_positive(ways: int, shots: int) -> None:
    from hidra_cli.errors import UsageError

    if ways < 2 or shots < 1:
        raise UsageError(
            f"a task of {ways} ways and {shots} shots cannot be drawn",
            why="it needs at least 2 ways and 1 shot",
            fix="--ways 2 or more, --shots 1 or more",
        )
