"""Collect the contents of a page. A note says what had to be left out, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hidra_cli.errors import HidraError
from hidra_cli.images.features import open_features
from hidra_cli.images.open import open_images
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.evaluate import distinct_names
from hidra_cli.jobs.scoring import able_ways
from hidra_cli.reports.run_facts import Measurement, RunFacts, protocol
from hidra_cli.reports.solved_tasks import SEED, SolvedTask, measure, shown_ways, solve
from hidra_cli.runs.model import TrainedModel, load_model, shared_network
from hidra_cli.runs.records import DifferenceRecord
from hidra_cli.runs.scores import compare
from hidra_cli.settings.schema import DatasetSettings

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

USUAL_WAYS = (2, 5, 10)
COMPARED_WAYS = (5,)  # of every run, so fewer
TASK_WAYS = (5, 10)
PICTURE_BYTES = 1_200_000  # of about 2 MB that a page may have


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
        names: of the runs, each another.
        tasks: of each run.
        differences: rows of `compare`, in −1..1.
    """

    names: Sequence[str]
    runs: Sequence[RunFacts]
    tasks: Sequence[Sequence[SolvedTask]]
    measured: Measurement | None
    differences: Sequence[DifferenceRecord]
    notes: Sequence[str]

    @property
    def all_notes(self) -> list[str]:
        """Why some things are left out of the page."""
        pairs = zip(self.names, self.runs, strict=True)
        of_runs = [(name, note) for name, facts in pairs for note in facts.notes]
        several = len(self.runs) > 1
        return [*(f"{n}: {note}" if several else note for n, note in of_runs), *self.notes]


LoadedRun = tuple[TrainedModel, PreparedImages]


def collect(
    runs: Sequence[RunFacts],
    ways: tuple[int, ...] | None,
    episodes: int,
    device: torch.device,
    cache_dir: Path | None,
    console: Console,
) -> Report:
    """Solve a task with every run's model, and measure and compare them where that is wanted.

    Args:
        ways: to measure at, instead of the usual ones.
        episodes: to measure on; 0: none.
    """
    names = distinct_names([facts.name for facts in runs])
    notes: list[str] = []
    opened: dict[str, PreparedImages] = {}

    def images_of(settings: DatasetSettings) -> PreparedImages:
        key = repr(settings)
        if key not in opened:
            opened[key] = open_images(settings, cache_dir, console)
        return opened[key]

    loaded = [
        _load(facts, name, device, images_of, notes)
        for facts, name in zip(runs, names, strict=True)
    ]
    tasks = [_solved(run, len(runs), device, notes) if run else [] for run in loaded]
    measured: Measurement | None = None
    differences: list[DifferenceRecord] = []
    usable = [run for run in loaded if run is not None]
    if usable and episodes:
        measured, differences = _measured(usable, ways, episodes, device, cache_dir, console, notes)
    return Report(names, runs, tasks, measured, differences, notes)


def _load(
    facts: RunFacts,
    name: str,
    device: torch.device,
    images_of: Callable[[DatasetSettings], PreparedImages],
    notes: list[str],
) -> LoadedRun | None:
    """A run's model with its images."""
    try:
        model = replace(load_model(facts.run.path, device), name=name)
        images = images_of(model.settings.dataset)
    except HidraError as exc:
        notes.append(f"{name}: no task was solved with its model: {_reason(exc)}")
        return None
    if model.meta.dataset_hash != images.content_hash:
        notes.append(f"{name}: the prepared images are not those that it was trained on.")
    return model, images


def _reason(error: HidraError) -> str:
    return f"{error.what}: {error.why}." if error.why else f"{error.what}."


def _solved(
    loaded: LoadedRun, runs: int, device: torch.device, notes: list[str]
) -> list[SolvedTask]:
    """One run is shown at few and at more ways, several at the first of them."""
    model, images = loaded
    ways = shown_ways(model, TASK_WAYS if runs == 1 else TASK_WAYS[:1], images)
    budget = PICTURE_BYTES // (runs * len(ways))
    try:
        return [solve(model, images, n, device, budget) for n in ways]
    except HidraError as exc:
        notes.append(f"{model.name}: no task was solved with its model: {_reason(exc)}")
        return []


def _measured(
    runs: Sequence[LoadedRun],
    ways: tuple[int, ...] | None,
    episodes: int,
    device: torch.device,
    cache_dir: Path | None,
    console: Console,
    notes: list[str],
) -> tuple[Measurement | None, list[DifferenceRecord]]:
    """Accuracy on the first run's images, of every model that was trained on the same."""
    images = runs[0][1]
    models = [model for model, own in runs if own.content_hash == images.content_hash]
    notes += [
        f"{model.name}: not compared, as it was trained on other images."
        for model, own in runs
        if own.content_hash != images.content_hash
    ]
    try:
        usual = USUAL_WAYS if len(runs) == 1 else COMPARED_WAYS
        numbers = ways or sorted({n for m in models for n in shown_ways(m, usual, images)})
        plan = [pair for model in models for pair in _plan(model, numbers, images, notes)]
        if not plan:
            return None, []
        if (network := shared_network(models)) is not None:
            images = open_features(models[0].settings.dataset, network, cache_dir, console)
        cells, queries = measure(plan, images, episodes, device, console)
    except HidraError as exc:
        notes.append(f"Accuracy was not measured: {_reason(exc)}")
        return None, []
    rows = [cell.record() for cell in cells]
    about = protocol(rows, split="test", dataset=images.dataset, queries=queries, seed=SEED)
    return Measurement(about, rows), compare(cells)


def _plan(
    model: TrainedModel, ways: Sequence[int], images: PreparedImages, notes: list[str]
) -> list[tuple[TrainedModel, int]]:
    """A model at each number of ways that it can do; a note says where it cannot."""
    able, refusal = able_ways(model, ways, images.image_shape)
    if refusal is not None:
        done = ", ".join(map(str, able)) or "no number of"
        notes.append(f"{model.name}: measured at {done} ways. {_reason(refusal)}")
    return [(model, n) for n in able]
