"""`hidra evaluate`: meta-trained models on fixed test episodes, at any ways."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hidra_cli.commands import common, completing

if TYPE_CHECKING:
    import torch

    from hidra_cli.console import Console
    from hidra_cli.evaluation import Cell, Contender
    from hidra_cli.models import TrainedModel
    from hidra_cli.problems import Problem
    from hidra_cli.task_sources import TaskSource
    from hidra_cli.world import World


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run directories or checkpoints. [the latest run]",
            show_default=False,
            autocompletion=completing.run_paths,
        ),
    ] = None,
    ways: Annotated[
        str | None, typer.Option(help="Classes per task: 5, 2-20 or 2,5. [2,5,10,20]")
    ] = None,
    shots: Annotated[
        str | None, typer.Option(help="Support images per class. [as trained]")
    ] = None,
    queries: Annotated[int, typer.Option(help="Query images per class.", min=1)] = 15,
    episodes: Annotated[int, typer.Option(help="Episodes per number of ways.", min=2)] = 600,
    steps: Annotated[int | None, typer.Option(help="Inner steps. [as trained]", min=0)] = None,
    every_step: Annotated[
        bool,
        typer.Option(
            "--every-step/--last-step",
            help="Test after every inner step, or after the last alone in less time.",
        ),
    ] = True,
    normalization: Annotated[
        Literal["support", "tasknorm", "transductive", "none"] | None,
        typer.Option(help="Where statistics come from. [as trained]", show_default=False),
    ] = None,
    split: common.Split = "test",
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
            help="Another dataset than the first run's.", autocompletion=completing.datasets
        ),
    ] = None,
    source: common.Source = None,
    data_opt: common.DataOpt = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Also the nearest neighbour on raw pixels.")
    ] = False,
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
    """Evaluate one model, or compare several on the same episodes.

    Writes result.json, episodes.csv and accuracy.png, by default into RUN/evaluations/. Of
    functions (--loss mse), ways are outputs, shots and queries count points in all, and the mean
    squared error per output takes the place of accuracy.

    Examples:

      hidra evaluate runs/my-run --ways 2,5,10,20 --shots 1,5

      hidra evaluate runs/hidra runs/maml --ways 5 --pixels

      hidra evaluate runs/my-run --dataset omniglot --ways 5
    """
    from hidra_cli.evaluation import NearestPixels, compare
    from hidra_cli.launch import launch
    from hidra_cli.models import load_model
    from hidra_cli.runs import environment, latest_run

    console = common.make_console(json_output, quiet, verbose, main=launch().main)
    with contextlib.ExitStack() as stack:
        where, world = common.join(device or "auto", console, stack)
        chosen = runs or [latest_run(common.runs_dir_of(runs_dir))]
        models = _distinct(
            [load_model(path, where, steps=steps, normalization=normalization) for path in chosen]
        )
        settings = common.another_dataset(models[0].settings.dataset, dataset, source, data_opt)
        data = common.open_tasks(settings, cache_dir, console, where)
        if pixels:
            _check_pixels(data)
        _check_same(models, data, world)
        for model in models:
            if dataset is None and model.meta["dataset_hash"] != data.content_hash:
                console.warn(f"{model.name} was trained on other data than {data.place}")
        trained_shots = min(min(m.settings.tasks.shots) for m in models)
        cells = _evaluate_all(
            [*models, *([NearestPixels()] if pixels else [])],
            data,
            split,
            _numbers("--ways", ways) or _usual_ways(models, data, split),
            _numbers("--shots", shots) or (trained_shots,),
            queries=queries,
            episodes=episodes,
            seed=seed,
            within_groups=within_groups,
            every_step=every_step,
            device=where,
            console=console,
            world=world,
        )
    if not world.main:
        return
    result = {
        "format_version": 1,
        "dataset": data.dataset,
        "dataset_hash": data.content_hash,
        "split": split,
        "within_groups": within_groups,
        "seed": seed,
        "queries": queries,
        "models": [_describe(model) for model in models],
        "results": [cell.to_json() for cell in cells],
        "comparisons": compare(cells),
        "environment": environment(where, models[0].meta["plugins"], world.size),
    }
    folder, picture = _write(out, chosen[0], models[0], cells, result)
    _show(cells, result, console)
    console.print(f"written: {folder / 'result.json'}, {folder / picture}")
    console.result(result | {"folder": str(folder)})


def _check_same(models: list[TrainedModel], data: TaskSource, world: World) -> None:
    """A run that is being trained may get another checkpoint between two processes' reading."""
    import json

    seen = [[model.name, model.meta] for model in models]
    world.check_same("models and data", json.dumps([seen, data.content_hash], sort_keys=True))


def _evaluate_all(
    contenders: list[Contender],
    data: TaskSource,
    split: common.Split,
    ways: tuple[int, ...],
    shots: tuple[int, ...],
    *,
    queries: int,
    episodes: int,
    seed: int,
    within_groups: bool,
    every_step: bool,
    device: torch.device,
    console: Console,
    world: World,
) -> list[Cell]:
    """Every contender at every number of ways and shots it can do, on the same episodes."""
    from hidra_cli.evaluation import evaluate_plan
    from hidra_cli.task_sources import sampler_of

    return evaluate_plan(
        _plan(contenders, ways, data.image_shape, console),
        data,
        sampler_of(data, split, ways, shots, queries, seed, within_groups=within_groups),
        episodes=episodes,
        device=device,
        console=console,
        every_step=every_step,
        world=world,
    )


def _describe(model: TrainedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "checkpoint": str(model.path),
        "iteration": model.meta["iteration"],
        "steps": model.steps,
        "normalization": model.normalization,
        "settings": model.meta["settings"],
    }


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    from hidra_cli.errors import UsageError
    from hidra_cli.settings import parse_numbers

    try:
        return None if text is None else parse_numbers(text)
    except ValueError as exc:
        raise UsageError(
            f"{flag} {text} cannot be used",
            why=str(exc),
            fix=f"{flag} 5, {flag} 2-20 or {flag} 2,5",
        ) from exc


def _check_pixels(data: TaskSource) -> None:
    from hidra_cli.errors import UsageError
    from hidra_cli.problems import CLASSIFICATION

    if data.problem is not CLASSIFICATION:
        raise UsageError(
            "--pixels needs images", why=f"{data.dataset} has none", fix="leave --pixels out"
        )


def _usual_ways(
    models: list[TrainedModel], data: TaskSource, split: common.Split
) -> tuple[int, ...]:
    """The usual ones as far as the split goes, and every fixed model's own."""
    from hidra_cli.task_sources import usual_ways

    own = {m.max_ways for m in models if not m.learner.head.any_ways}
    usual = usual_ways(data, split) if any(m.learner.head.any_ways for m in models) else ()
    return tuple(sorted({*usual, *own}))


def _distinct(models: list[TrainedModel]) -> list[TrainedModel]:
    """The models, with names that tell them apart."""
    from dataclasses import replace

    names = [model.name for model in models]
    return [
        replace(model, name=f"{model.name} #{index + 1}") if names.count(model.name) > 1 else model
        for index, model in enumerate(models)
    ]


def _plan(
    contenders: list[Contender],
    ways: tuple[int, ...],
    image_shape: tuple[int, int, int],
    console: Console,
) -> list[tuple[Contender, int]]:
    """Who is evaluated at which ways. In company, a fixed-way model does just what it can."""
    from hidra_cli.errors import UsageError

    plan: list[tuple[Contender, int]] = []
    for contender in contenders:
        refusal: UsageError | None = None
        able = []
        for n in ways:
            try:
                contender.check((n,), image_shape)
                able.append((contender, n))
            except UsageError as exc:
                refusal = exc
        if refusal is not None and (len(contenders) == 1 or not able):
            raise refusal
        if refusal is not None:
            console.note(f"{contender.name}: only at {', '.join(str(n) for _, n in able)} ways")
        plan += able
    return plan


def _write(
    out: Path | None, chosen: Path, model: TrainedModel, cells: list[Cell], result: dict[str, Any]
) -> tuple[Path, str]:
    """The folder of the results, and the name of the picture in it."""
    from datetime import datetime

    from hidra_cli.files import write_atomically, write_json
    from hidra_cli.picture import scores_over_ways
    from hidra_cli.runs import results_home

    home = results_home(chosen if chosen.is_dir() else model.path)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{result['dataset']}-{result['split']}"
    folder = common.made(out or home / "evaluations" / name, own=out is None)
    title = f"{_where(result)}, {cells[0].to_json()['episodes']} episodes"
    picture = f"{cells[0].problem.key}.png"
    write_atomically(folder / picture, scores_over_ways(cells, title))
    write_atomically(folder / "episodes.csv", _episodes(cells).encode())
    write_json(folder / "result.json", result)
    return folder, picture


def _where(result: dict[str, Any]) -> str:
    groups = ", classes of one group" if result["within_groups"] else ""
    return f"{result['dataset']}, {result['split']} split{groups}"


def _episodes(cells: list[Cell]) -> str:
    """The score of every single episode, for whoever compares models in pairs."""
    import csv
    import io

    from hidra_cli.evaluation import EPISODES_HEADER

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EPISODES_HEADER)
    for cell in cells:
        of_cell = cell.contender, cell.normalization, cell.ways, cell.shots, cell.problem.key
        writer.writerows((*of_cell, i, f"{a:.6g}") for i, a in enumerate(cell.final))
    return text.getvalue()


def _show(cells: list[Cell], result: dict[str, Any], console: Console) -> None:
    problem = cells[0].problem
    rows = [cell.to_json() for cell in cells]
    most_steps = max(len(row.get("per_step", [0])) for row in rows)
    console.table(
        f"{_titled(problem)} on {_where(result)}, "
        f"{rows[0]['episodes']} episodes, {result['queries']} queries {problem.per}",
        [
            "model",
            "normalization",
            "ways",
            "shots",
            *(f"after {s}" for s in range(most_steps - 1)),
            problem.metric,
        ],
        [
            [
                row["model"],
                row["normalization"],
                str(row["ways"]),
                str(row["shots"]),
                *_earlier_steps(row, most_steps, problem),
                problem.interval(row[problem.key], row["interval"]),
            ]
            for row in rows
        ],
        left=2,
    )
    if result["comparisons"]:
        console.table(
            f"Paired differences of {problem.metric} on the same episodes"
            + (" (percentage points)" if problem.unit else " (less is better)"),
            ["model", "minus", "ways", "shots", "difference"],
            [
                [
                    c["model"],
                    c["minus"],
                    str(c["ways"]),
                    str(c["shots"]),
                    problem.interval(c["difference"], c["interval"]),
                ]
                for c in result["comparisons"]
            ],
            left=2,
        )


def _titled(problem: Problem) -> str:
    metric = problem.metric.capitalize()
    return f"{metric} ({problem.unit})" if problem.unit else f"{metric} per output"


def _earlier_steps(row: dict[str, Any], most: int, problem: Problem) -> list[str]:
    earlier = [problem.shown(step[problem.key]) for step in row.get("per_step", [])[:-1]]
    return earlier + ["–"] * (most - 1 - len(earlier))
