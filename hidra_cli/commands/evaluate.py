"""`hidra evaluate`: meta-trained models on fixed test episodes, at any ways."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


@flags.with_console
def evaluate(
    console: Console,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help=flags.with_default("Run directories or checkpoints.", "the latest run"),
            show_default=False,
            autocompletion=completion.run_paths,
        ),
    ] = None,
    ways: Annotated[
        str | None,
        typer.Option(help=flags.with_default("Classes per task: 5, 2-20 or 2,5.", "2,5,10,20")),
    ] = None,
    shots: Annotated[
        str | None, typer.Option(help=flags.with_default("Support images per class.", "as trained"))
    ] = None,
    queries: Annotated[int, typer.Option(help="Query images per class.", min=1)] = 15,
    episodes: Annotated[int, typer.Option(help="Episodes per number of ways.", min=2)] = 600,
    steps: Annotated[
        int | None, typer.Option(help=flags.with_default("Inner steps.", "as trained"), min=0)
    ] = None,
    every_step: Annotated[
        bool,
        typer.Option(
            "--every-step/--last-step",
            help="Test after every inner step, or after the last alone in less time.",
        ),
    ] = True,
    normalization: Annotated[
        Literal["support", "tasknorm", "transductive", "none"] | None,
        typer.Option(
            help=flags.with_default("Where statistics come from.", "as trained"), show_default=False
        ),
    ] = None,
    split: flags.Split = "test",
    within_groups: Annotated[
        bool,
        typer.Option(
            "--within-groups",
            help="Take a task's classes from one group, such as an Omniglot alphabet.",
        ),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Another dataset than the first run's.", autocompletion=completion.datasets
        ),
    ] = None,
    source: flags.Source = None,
    data_opt: flags.DataOpt = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Also the nearest neighbour on raw pixels.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the episodes.", min=0, max=2**63 - 1)] = 0,
    device: flags.Device = None,
    out: flags.Out = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Evaluate one model, or compare several on the same episodes.

    Writes result.json, episodes.csv and accuracy.png, by default into RUN/evaluations/. Of
    functions (--loss mse), ways are outputs, shots and queries count points in all, and the mean
    squared error per output takes the place of accuracy.

    Examples:

      hidra evaluate runs/my-run --ways 2,5,10,20 --shots 1,5

      hidra evaluate runs/hidra runs/maml --ways 5 --pixels

      hidra evaluate runs/my-run --dataset omniglot --ways 5
    """
    from hidra_cli.jobs.device import join
    from hidra_cli.jobs.evaluate import (
        NearestPixels,
        _check_pixels,
        _check_same,
        _default_ways,
        _describe,
        _distinct,
        _evaluate_all,
    )
    from hidra_cli.reports.evaluation import _show, _write
    from hidra_cli.runs.environment import environment
    from hidra_cli.runs.locate import latest_run, runs_dir_of
    from hidra_cli.runs.model import load_model
    from hidra_cli.runs.records import EvaluationResult
    from hidra_cli.runs.scores import compare
    from hidra_cli.tasks.sources import open_tasks

    console = flags.of_first_process(console)
    with contextlib.ExitStack() as stack:
        where, group = join(device or "auto", console, stack)
        chosen = runs or [latest_run(runs_dir_of(runs_dir))]
        models = _distinct(
            [load_model(path, where, steps=steps, normalization=normalization) for path in chosen]
        )
        settings = flags.another_dataset(models[0].settings.dataset, dataset, source, data_opt)
        data = open_tasks(settings, cache_dir, console, where)
        if pixels:
            _check_pixels(data)
        _check_same(models, data, group)
        for model in models:
            if dataset is None and model.meta.dataset_hash != data.content_hash:
                console.warn(f"{model.name} was trained on other data than {data.place}")
        trained_shots = min(min(m.settings.tasks.shots) for m in models)
        cells = _evaluate_all(
            [*models, *([NearestPixels()] if pixels else [])],
            data,
            split,
            _numbers("--ways", ways) or _default_ways(models, data, split),
            _numbers("--shots", shots) or (trained_shots,),
            queries=queries,
            episodes=episodes,
            seed=seed,
            within_groups=within_groups,
            every_step=every_step,
            device=where,
            console=console,
            group=group,
        )
    if not group.main:
        return
    result = EvaluationResult(
        dataset=data.dataset,
        dataset_hash=data.content_hash,
        split=split,
        within_groups=within_groups,
        seed=seed,
        queries=queries,
        models=tuple(_describe(model) for model in models),
        results=tuple(cell.record() for cell in cells),
        comparisons=tuple(compare(cells)),
        environment=environment(where, models[0].meta.plugins, group.size),
    )
    folder, picture = _write(out, chosen[0], models[0], cells, result)
    _show(cells, result, console)
    console.print(f"written: {folder / 'result.json'}, {folder / picture}")
    console.result(result.to_json() | {"folder": str(folder)})


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    from hidra_cli.errors import UsageError
    from hidra_cli.settings.numbers import parse_numbers

    try:
        return None if text is None else parse_numbers(text)
    except ValueError as exc:
        raise UsageError(
            f"{flag} {text} cannot be used",
            why=str(exc),
            fix=f"{flag} 5, {flag} 2-20 or {flag} 2,5",
        ) from exc
