"""`hidra evaluate`: meta-trained models on fixed test episodes, at any ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hidra_cli.commands import completion, flags
from hidra_cli.system.torchrun import this_rank

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        help=flags.with_default("Run directories or checkpoints.", "the latest run"),
        show_default=False,
        autocompletion=completion.run_paths,
    ),
]
Ways = Annotated[
    str | None,
    typer.Option(help=flags.with_default("Classes per task: 5, 2-20 or 2,5.", "2,5,10,20")),
]
Shots = Annotated[
    str | None, typer.Option(help=flags.with_default("Support images per class.", "as trained"))
]
Queries = Annotated[int, typer.Option(help="Query images per class.", min=1)]
Episodes = Annotated[int, typer.Option(help="Episodes per number of ways.", min=2)]
Steps = Annotated[
    int | None, typer.Option(help=flags.with_default("Inner steps.", "as trained"), min=0)
]
EveryStep = Annotated[
    bool,
    typer.Option(
        "--every-step/--last-step",
        help="Test after every inner step, or after the last alone in less time.",
    ),
]
Normalization = Annotated[
    Literal["support", "tasknorm", "transductive", "none"] | None,
    typer.Option(
        help=flags.with_default("Where statistics come from.", "as trained"), show_default=False
    ),
]
WithinGroups = Annotated[
    bool,
    typer.Option(
        "--within-groups",
        help="Take a task's classes from one group, such as an Omniglot alphabet.",
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(help="Another dataset than the first run's.", autocompletion=completion.datasets),
]
Pixels = Annotated[bool, typer.Option("--pixels", help="Also the nearest neighbour on raw pixels.")]
Seed = Annotated[int, typer.Option(help="Of the episodes.", min=0, max=2**63 - 1)]


@flags.with_console
def evaluate(
    console: Console,
    runs: Runs = None,
    ways: Ways = None,
    shots: Shots = None,
    queries: Queries = 15,
    episodes: Episodes = 600,
    steps: Steps = None,
    every_step: EveryStep = True,
    normalization: Normalization = None,
    split: flags.Split = "test",
    within_groups: WithinGroups = False,
    dataset: Dataset = None,
    source: flags.Source = None,
    data_opt: flags.DataOpt = None,
    pixels: Pixels = False,
    seed: Seed = 0,
    device: flags.Device = None,
    out: flags.Out = None,
    runs_dir: flags.RunsDir = None,
    cache_dir: flags.CacheDir = None,
) -> None:
    """Evaluate one model, or compare several on the same episodes.

    Writes result.json, episodes.csv and accuracy.png, by default into RUN/evaluations/. For a run
    with --loss mse, ways are outputs, shots and queries are points, and the score is the error.

    Examples:

      hidra evaluate runs/my-run --ways 2,5,10,20 --shots 1,5

      hidra evaluate runs/hidra runs/maml --ways 5 --pixels

      hidra evaluate runs/my-run --dataset omniglot --ways 5
    """
    from hidra_cli.jobs import evaluate as job
    from hidra_cli.reports.evaluation import report_evaluation
    from hidra_cli.system.files import check_folder

    if out is not None:
        check_folder(out, "--out")
    request = job.EvaluationRequest(
        models=flags.models_or_latest(runs, runs_dir),
        ways=flags.numbers("--ways", ways),
        shots=flags.numbers("--shots", shots),
        queries=queries,
        episodes=episodes,
        steps=steps,
        every_step=every_step,
        normalization=normalization,
        split=split,
        within_groups=within_groups,
        dataset=dataset,
        source=source,
        dataset_options=flags.assignments("--data-opt", data_opt),
        pixels=pixels,
        seed=seed,
        device=device or "auto",
        cache_dir=cache_dir,
    )
    evaluation = job.evaluate_models(request, flags.of_first_process(console))
    if this_rank().main:
        report_evaluation(evaluation, request.models[0], out, console)
