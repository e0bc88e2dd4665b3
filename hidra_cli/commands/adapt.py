"""`hidra adapt`: learn one task from a few images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import common

if TYPE_CHECKING:
    from hidra_cli.adaptation import Adapted


def adapt(
    ways: Annotated[
        int | None, typer.Option(help="Classes of the task. [5, or as trained]")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Support images per class. [as trained]")
    ] = None,
    queries: Annotated[int, typer.Option(help="Query images per class.", min=1)] = 15,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A run directory or checkpoint. [the latest run]")
    ] = None,
    episode: Annotated[
        int, typer.Option(help="Which task of the split.", min=0, max=2**63 - 1)
    ] = 0,
    steps: Annotated[int | None, typer.Option(help="Inner steps. [as trained]", min=0)] = None,
    dataset: Annotated[str | None, typer.Option(help="Another dataset than the run's.")] = None,
    source: common.Source = None,
    data_opt: common.DataOpt = None,
    split: common.Split = "test",
    seed: Annotated[int, typer.Option(help="Of the episodes.", min=0, max=2**63 - 1)] = 0,
    device: common.Device = None,
    out: common.Out = None,
    runs_dir: common.RunsDir = None,
    cache_dir: common.CacheDir = None,
    json_output: common.Json = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
) -> None:
    """Draw a task from the test split, learn it, show how well, and save the classifier.

    Examples:

      hidra adapt --ways 7 --shots 5

      hidra adapt --checkpoint runs/my-run --ways 20 --episode 3
    """
    from hidra_cli.adaptation import adapt_task, save_classifier
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.episodes import EpisodeSampler
    from hidra_cli.models import load_model
    from hidra_cli.runs import latest_run

    console = common.make_console(json_output, quiet, verbose)
    where = resolve_device(device or "auto")
    run = checkpoint or latest_run(common.runs_dir_of(runs_dir))
    model = load_model(run, where, steps=steps)
    settings = common.another_dataset(model.settings.dataset, dataset, source, data_opt)
    images = common.open_images(settings, cache_dir, console)
    n = ways if ways is not None else (5 if model.learner.head.any_ways else model.max_ways)
    k = shots if shots is not None else min(model.settings.tasks.shots)
    _check_positive(n, k)
    model.check((n,), images.image_shape)
    table = images.table(split)
    sampler = EpisodeSampler(table, (n,), (k,), queries, seed)
    indices = sampler.indices([episode], n, k)
    task = sampler.batch(images, [episode], n, k, where).task(0)
    adapted = adapt_task(model, task)
    classes = [table.names[row] for row in indices.classes[0]]

    console.table(
        f"Adapting {model.name} to {n} ways, {k} shots of {images.dataset} "
        f"({model.normalization} normalization)",
        ["inner steps", "support loss", "query accuracy, %"],
        [
            [str(step), f"{loss:.4f}", f"{100 * accuracy:.1f}"]
            for step, (loss, accuracy) in enumerate(
                zip(adapted.support_losses, adapted.accuracies, strict=True)
            )
        ],
    )
    _check_finite(adapted)
    console.table(
        "Each class after adapting",
        ["class", "query accuracy, %"],
        [[c, f"{100 * a:.1f}"] for c, a in zip(classes, adapted.per_class, strict=True)],
    )
    home = run if run.is_dir() else run.parent
    of = "" if split == "test" else f"{split}-"
    name = f"{images.dataset}-{of}{n}w{k}s-seed{seed}-episode{episode}"
    path = common.made(out or home / "adapted" / name) / "classifier.safetensors"
    save_classifier(path, model, adapted.weights, task, classes)
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


def _check_finite(adapted: Adapted) -> None:
    """Refuse to save a classifier that says nothing."""
    import math

    from hidra_cli.errors import NotFiniteError

    for step, loss in enumerate(adapted.support_losses):
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"adapting went wrong: the support loss is {loss} after step {step}",
                why="the inner steps are too long for this task, or the model is not finite",
                fix="fewer --steps, or a model trained with a lower --inner-lr",
            )


def _check_positive(ways: int, shots: int) -> None:
    from hidra_cli.errors import UsageError

    if ways < 2 or shots < 1:
        raise UsageError(
            f"a task of {ways} ways and {shots} shots cannot be drawn",
            why="it needs at least 2 ways and 1 shot",
            fix="--ways 2 or more, --shots 1 or more",
        )
