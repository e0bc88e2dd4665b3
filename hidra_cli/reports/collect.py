"""Bring together what a page shows. What cannot be had is left out, and a note says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hidra_cli.errors import HidraError, UsageError
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.reports.run_facts import Measurement, Row, RunFacts, protocol
from hidra_cli.reports.solved_tasks import SEED, SolvedTask, measure, shown_ways, solve
from hidra_cli.runs.model import TrainedModel, load_model
from hidra_cli.runs.scores import compare
from hidra_cli.settings.schema import DatasetSettings

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

USUAL_WAYS = (2, 5, 10)
COMPARED_WAYS = (5,)  # of every run, so fewer
TASK_WAYS = (5, 10)
PICTURE_BYTES = 1_200_000  # of about 2 MB that a page may have


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracies on the same episodes, in −1..1."""

    model: str
    minus: str
    ways: int
    shots: int
    difference: float
    interval: float


@dataclass(frozen=True)
class Report:
    """All that a page shows. `names` tell the runs apart; `tasks` are of each run."""

    names: Sequence[str]
    runs: Sequence[RunFacts]
    tasks: Sequence[Sequence[SolvedTask]]
    measured: Measurement | None
    differences: Sequence[Difference]
    notes: Sequence[str]

    @property
    def all_notes(self) -> list[str]:
        """What is left out of the page, and why."""
        pairs = zip(self.names, self.runs, strict=True)
        of_runs = [(name, note) for name, facts in pairs for note in facts.notes]
        several = len(self.runs) > 1
        return [*(f"{n}: {note}" if several else note for n, note in of_runs), *self.notes]


Ready = tuple[TrainedModel, PreparedImages]
OpenImages = Callable[[DatasetSettings], PreparedImages]


def collect(
    runs: Sequence[RunFacts],
    ways: tuple[int, ...] | None,
    episodes: int,
    device: torch.device,
    open_images: OpenImages,
    console: Console,
) -> Report:
    """Solve a task with every run's model, and measure and compare them where that is wanted.

    Args:
        ways: to measure at, instead of the usual ones.
        episodes: to measure on; 0: none.
    """
    names = _distinct([facts.name for facts in runs])
    notes: list[str] = []
    opened: dict[str, PreparedImages] = {}
    ready = [
        _ready(facts, name, device, open_images, opened, notes)
        for facts, name in zip(runs, names, strict=True)
    ]
    tasks = [_solved(one, len(runs), device, notes) if one else [] for one in ready]
    measured: Measurement | None = None
    differences: list[Difference] = []
    there = [one for one in ready if one is not None]
    if there and episodes:
        measured, differences = _measured(there, ways, episodes, device, console, notes)
    return Report(names, runs, tasks, measured, differences, notes)


def _distinct(names: Sequence[str]) -> list[str]:
    return [
        f"{name} #{index + 1}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _ready(
    facts: RunFacts,
    name: str,
    device: torch.device,
    open_images: OpenImages,
    opened: dict[str, PreparedImages],
    notes: list[str],
) -> Ready | None:
    """A run's model with its images."""
    try:
        model = replace(load_model(facts.run.path, device), name=name)
        chosen = model.settings.dataset
        if repr(chosen) not in opened:
            opened[repr(chosen)] = open_images(chosen)
    except HidraError as exc:
        notes.append(f"{name}: no task was solved with its model: {_told(exc)}")
        return None
    images = opened[repr(chosen)]
    if model.meta["dataset_hash"] != images.content_hash:
        notes.append(f"{name}: the prepared images are not those that it was trained on.")
    return model, images


def _told(error: HidraError) -> str:
    return f"{error.what}: {error.why}." if error.why else f"{error.what}."


def _solved(ready: Ready, runs: int, device: torch.device, notes: list[str]) -> list[SolvedTask]:
    """One run is shown at few and at more ways, several at the first of them."""
    model, images = ready
    ways = shown_ways(model, TASK_WAYS if runs == 1 else TASK_WAYS[:1], images)
    budget = PICTURE_BYTES // (runs * len(ways))
    try:
        return [solve(model, images, n, device, budget) for n in ways]
    except HidraError as exc:
        notes.append(f"{model.name}: no task was solved with its model: {_told(exc)}")
        return []


def _measured(
    ready: Sequence[Ready],
    ways: tuple[int, ...] | None,
    episodes: int,
    device: torch.device,
    console: Console,
    notes: list[str],
) -> tuple[Measurement | None, list[Difference]]:
    """Accuracy on the first run's images, of every model that was trained on the same."""
    images = ready[0][1]
    models = [model for model, own in ready if own.content_hash == images.content_hash]
    notes += [
        f"{model.name}: not compared, as it was trained on other images."
        for model, own in ready
        if own.content_hash != images.content_hash
    ]
    try:
        usual = USUAL_WAYS if len(ready) == 1 else COMPARED_WAYS
        chosen = ways or sorted({n for m in models for n in shown_ways(m, usual, images)})
        plan = [pair for model in models for pair in _plan(model, chosen, images, notes)]
        if not plan:
            return None, []
        cells, queries = measure(plan, images, episodes, device, console)
    except HidraError as exc:
        notes.append(f"Accuracy was not measured: {_told(exc)}")
        return None, []
    known = set(Row.__annotations__)
    rows = [Row(**_only(cell.to_json(), known)) for cell in cells]
    told = protocol(rows, split="test", dataset=images.dataset, queries=queries, seed=SEED)
    return Measurement(told, rows), [Difference(**row) for row in compare(cells)]


def _plan(
    model: TrainedModel, ways: Sequence[int], images: PreparedImages, notes: list[str]
) -> list[tuple[TrainedModel, int]]:
    """The numbers of ways that a model can do."""
    able, refusal = [], ""
    for n in ways:
        try:
            model.check((n,), images.image_shape)
            able.append((model, n))
        except UsageError as exc:
            refusal = _told(exc)
    if refusal:
        done = ", ".join(str(n) for _, n in able) or "no number of"
        notes.append(f"{model.name}: measured at {done} ways. {refusal}")
    return able


def _only(found: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key in keys}
