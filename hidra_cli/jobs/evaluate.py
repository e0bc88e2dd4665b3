"""An evaluation: models, ways and episodes in, scores and their protocol out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hidra_cli.api.data import Split
from hidra_cli.engine.normalization import Mode
from hidra_cli.errors import UsageError
from hidra_cli.jobs.device import join
from hidra_cli.jobs.scoring import Contender, NearestPixels, able_ways, evaluate_plan
from hidra_cli.runs.environment import environment
from hidra_cli.runs.model import TrainedModel, load_model, shared_network
from hidra_cli.runs.records import (
    EvaluatedModel,
    EvaluationProtocol,
    EvaluationResult,
    ProtocolModel,
)
from hidra_cli.runs.scores import Cell, compare
from hidra_cli.settings.layers import another_dataset
from hidra_cli.system.console import Console, Silence
from hidra_cli.system.distributed import ProcessGroup
from hidra_cli.tasks.objective import CLASSIFICATION
from hidra_cli.tasks.sources import (
    TaskSource,
    feasible_ways,
    objective_of,
    open_tasks,
    sampler_of,
)


@dataclass(frozen=True)
class EvaluationRequest:
    """An evaluation that someone asks for.

    Attributes:
        models: run directories or checkpoints.
        ways: the numbers of classes; None: those of a table that the split has classes for, and
            those that fixed-way models were trained for.
        shots: support images per class; None: the fewest of any model's training.
        queries: query images per class.
        episodes: per number of ways and shots.
        steps: inner steps; None: each model's own.
        every_step: whether to score after each inner step, or after the last alone.
        normalization: where statistics come from; None: as each model was trained.
        within_groups: the classes of a task are of one group, such as an alphabet.
        dataset: name of a dataset; None: the one that the first model was trained on.
        source, dataset_options: of `dataset`.
        pixels: whether the nearest neighbour on pixels is evaluated too.
        seed: of the episodes.
        device: "auto" or a device of torch.
        cache_dir: where prepared images are kept; None: the usual place.
    """

    models: Sequence[Path]
    ways: tuple[int, ...] | None = None
    shots: tuple[int, ...] | None = None
    queries: int = 15
    episodes: int = 600
    steps: int | None = None
    every_step: bool = True
    normalization: Mode | None = None
    split: Split = "test"
    within_groups: bool = False
    dataset: str | None = None
    source: str | None = None
    dataset_options: Mapping[str, str] = field(default_factory=dict)
    pixels: bool = False
    seed: int = 0
    device: str = "auto"
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        cells: the score of every episode.
        result: their means, and all that they depend on.
    """

    cells: Sequence[Cell]
    result: EvaluationResult


def evaluate_models(request: EvaluationRequest, console: Console | None = None) -> Evaluation:
    """Evaluate models on the same fixed episodes, each at the numbers of ways that it can do.

    The processes that torchrun started share the episodes.

    Raises:
        UsageError: a model or the data cannot do what is asked for.
        DataError: a model or the data is missing or damaged.
    """
    console = console or Silence()
    with contextlib.ExitStack() as stack:
        device, group = join(request.device, console, stack)
        models = _load(request, device)
        data = _open(request, models, device, console)
        _check_same(models, data, group)
        ways = request.ways or _default_ways(models, data, request.split)
        shots = request.shots or (min(min(m.settings.tasks.shots) for m in models),)
        contenders: list[Contender] = [*models, *([NearestPixels()] if request.pixels else [])]
        plan = _plan(contenders, ways, data.image_shape, console)
        sampler = sampler_of(
            data,
            request.split,
            ways,
            shots,
            request.queries,
            request.seed,
            device=device,
            within_groups=request.within_groups,
        )
        cells = evaluate_plan(
            plan,
            sampler,
            episodes=request.episodes,
            console=console,
            every_step=request.every_step,
            group=group,
        )
    result = EvaluationResult(
        dataset=data.dataset,
        dataset_hash=data.content_hash,
        split=request.split,
        within_groups=request.within_groups,
        seed=request.seed,
        queries=request.queries,
        protocol=_protocol(request, models, data, ways, shots),
        models=tuple(_describe(model) for model in models),
        results=tuple(cell.record() for cell in cells),
        comparisons=tuple(compare(cells)),
        environment=environment(device, models[0].meta.plugins, group.size),
    )
    return Evaluation(cells, result)


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, numbered where some are the same."""
    return [
        f"{name} #{index + 1}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _load(request: EvaluationRequest, device: torch.device) -> list[TrainedModel]:
    models = [
        load_model(path, device, steps=request.steps, normalization=request.normalization)
        for path in request.models
    ]
    names = distinct_names([model.name for model in models])
    return [replace(model, name=name) for model, name in zip(models, names, strict=True)]


def _open(
    request: EvaluationRequest, models: list[TrainedModel], device: torch.device, console: Console
) -> TaskSource:
    """The data that tasks are drawn from."""
    own, options = models[0].settings.dataset, request.dataset_options
    settings = another_dataset(own, request.dataset, request.source, options)
    network = shared_network(models)
    data = open_tasks(settings, request.cache_dir, console, device, network)
    if request.pixels and network is not None:
        raise UsageError(
            "--pixels needs images",
            why="tasks are drawn from the features of a frozen network",
            fix="leave --pixels out",
        )
    if request.pixels and objective_of(data) is not CLASSIFICATION:
        raise UsageError(
            "--pixels needs images", why=f"{data.dataset} has none", fix="leave --pixels out"
        )
    for model in models:
        if request.dataset is None and model.meta.dataset_hash != data.content_hash:
            console.warn(f"{model.name} was trained on other data than {data.place}")
    return data


def _check_same(models: list[TrainedModel], data: TaskSource, group: ProcessGroup) -> None:
    """A run that is being trained may get another checkpoint between two processes' reading."""
    seen = [[model.name, model.sha256] for model in models]
    group.check_equal("models and data", json.dumps([seen, data.content_hash], sort_keys=True))


def _default_ways(models: list[TrainedModel], data: TaskSource, split: Split) -> tuple[int, ...]:
    """Those of a table as far as the split goes, and every fixed model's own."""
    own = {m.max_ways for m in models if not m.learner.head.any_ways}
    usual: tuple[int, ...] = ()
    if any(m.learner.head.any_ways for m in models):
        usual = feasible_ways(data, split, objective_of(data).default_ways)
    return tuple(sorted({*usual, *own}))


def _plan(
    contenders: Sequence[Contender],
    ways: Sequence[int],
    image_shape: tuple[int, int, int],
    console: Console,
) -> list[tuple[Contender, int]]:
    """Pairs of a contender and a number of ways that it is evaluated at.

    Beside others, a fixed-way model is evaluated at its own number alone.

    Raises:
        UsageError: a model can do none of them, or the only model cannot do one.
    """
    plan: list[tuple[Contender, int]] = []
    for contender in contenders:
        able, refusal = able_ways(contender, ways, image_shape)
        if refusal is not None:
            if len(contenders) == 1 or not able:
                raise refusal
            console.note(f"{contender.name}: only at {', '.join(map(str, able))} ways")
        plan += [(contender, n) for n in able]
    return plan


def _protocol(
    request: EvaluationRequest,
    models: list[TrainedModel],
    data: TaskSource,
    ways: tuple[int, ...],
    shots: tuple[int, ...],
) -> EvaluationProtocol:
    return EvaluationProtocol(
        models=tuple(
            ProtocolModel(sha256=m.sha256, steps=m.steps, normalization=m.normalization)
            for m in models
        ),
        dataset_hash=data.content_hash,
        split=request.split,
        within_groups=request.within_groups,
        ways=ways,
        shots=shots,
        queries=request.queries,
        episodes=request.episodes,
        seed=request.seed,
        pixels=request.pixels,
    )


def _describe(model: TrainedModel) -> EvaluatedModel:
    return EvaluatedModel(
        name=model.name,
        checkpoint=str(model.path),
        iteration=model.meta.iteration,
        steps=model.steps,
        normalization=model.normalization,
        settings=model.meta.settings,
    )
