"""What a run's model does: fixed tasks with their pictures, and accuracy measured now."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from hidra_cli.api.preprocessing import UInt8
from hidra_cli.errors import DataError
from hidra_cli.images.file_format import Int64
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.one_task import adapt_task
from hidra_cli.jobs.scoring import evaluate_plan
from hidra_cli.reports.run_facts import clipped
from hidra_cli.runs.model import TrainedModel
from hidra_cli.runs.scores import Cell
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.shape import TaskShape

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

SEED = 0
QUERIES = 15
MOST_CLASSES_SHOWN = 10
MOST_SUPPORT_SHOWN = 5
NO_LABEL = -1


@dataclass(frozen=True)
class SolvedTask:
    """A task of the test split after adapting.

    Attributes:
        classes: N names.
        accuracies: of all queries before and after each inner step, in 0..1.
        per_class: N accuracies after the last step.
        confusion: N rows of the true class × N columns of the label given, and a last column for
            queries that got none.
        predicted: for each class, the labels of its Q queries.
        support: for each class shown, its pictures as data URIs; likewise `queries`, the first few.
        side: of the pictures on the page, in pixels.
    """

    model: str
    shots: int
    queries_per_class: int
    normalization: str
    classes: Sequence[str]
    accuracies: Sequence[float]
    per_class: Sequence[float]
    confusion: Sequence[Sequence[int]]
    predicted: Sequence[Sequence[int]]
    support: Sequence[Sequence[str]]
    queries: Sequence[Sequence[str]]
    side: int

    @property
    def ways(self) -> int:
        return len(self.classes)

    @property
    def shown(self) -> list[int]:
        """The labels of the classes that have pictures."""
        return [label for label, pictures in enumerate(self.support) if pictures]


def solve(
    model: TrainedModel, images: PreparedImages, ways: int, device: torch.device, budget: int
) -> SolvedTask:
    """Adapt to episode 0 of the test split, and keep what it says of each query.

    Args:
        budget: bytes that the pictures may take.

    Raises:
        UsageError, DataError: the model or the split cannot do it.
    """
    shots = min(model.settings.tasks.shots)
    model.check((ways,), images.image_shape)
    shape = TaskShape(ways, shots)
    sampler = _sampler(images, (ways,), shots, device)
    task = sampler.batch([0], shape).task(0)
    adapted = adapt_task(model, task)
    with torch.no_grad():
        logits = model.learner.query_logits(adapted.weights, task)
    labels = logits.argmax(1).where(logits.isfinite().all(1), NO_LABEL)
    predicted = labels.reshape(ways, -1).tolist()
    drawn = sampler.indices([0], shape)
    support, queries = _pictures(images, drawn.support[0], drawn.query[0], ways, budget)
    return SolvedTask(
        model.name,
        shots,
        sampler.queries,
        model.normalization,
        [clipped(sampler.table.names[row]) for row in drawn.classes[0]],
        adapted.accuracies,
        adapted.per_class,
        [[row.count(label) for label in [*range(ways), NO_LABEL]] for row in predicted],
        predicted,
        support,
        queries,
        _side(max(images.image_shape[1:])),
    )


def shown_ways(model: TrainedModel, wanted: Iterable[int], images: PreparedImages) -> list[int]:
    """Those of the numbers that the model and the test split can do; else the model's own."""
    classes = len(images.table("test").names)
    if model.learner.head.any_ways:
        return sorted({min(n, classes) for n in wanted})
    return [model.max_ways]


def measure(
    plan: Sequence[tuple[TrainedModel, int]],
    images: PreparedImages,
    episodes: int,
    device: torch.device,
    console: Console,
) -> tuple[list[Cell], int]:
    """Each model at each number of ways, on the same episodes; and the queries per class.

    Raises:
        DataError: the test split is too small.
    """
    shots = min(min(model.settings.tasks.shots) for model, _ in plan)
    ways = sorted({n for _, n in plan})
    sampler = _sampler(images, ways, shots, device)
    cells = evaluate_plan(
        plan,
        sampler,
        episodes=episodes,
        console=console,
        every_step=False,
    )
    return cells, sampler.queries


def _sampler(
    images: PreparedImages, ways: Sequence[int], shots: int, device: torch.device
) -> ImageSampler:
    """The episodes of `hidra evaluate`, with fewer queries where classes are small."""
    table = images.table("test")
    smallest = int(table.counts.min()) if len(table.counts) else 0
    if smallest <= shots:
        raise DataError(
            f"the test split of {table.dataset} is too small for a task of {shots} shots",
            why=f"its smallest class has {smallest} images",
        )
    queries = min(QUERIES, smallest - shots)
    return ImageSampler(images, "test", ways, (shots,), queries, SEED, device=device)


def _pictures(
    images: PreparedImages, support: Int64, query: Int64, ways: int, budget: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Data URIs of the first images of each class, one more of each while there is room."""
    inverted = images.attributes["invert"] == "True"
    parts: list[list[list[str]]] = []
    for indices, most in ((support, MOST_SUPPORT_SHOWN), (query, QUERIES)):
        pixels = images.gather(indices.reshape(ways, -1)[:MOST_CLASSES_SHOWN, :most]).numpy()
        shown: list[list[str]] = [[] for _ in pixels]
        for column in range(pixels.shape[1]):
            uris = [_data_uri(row[column], inverted) for row in pixels]
            budget -= sum(map(len, uris))
            if budget < 0:
                break
            for row, uri in zip(shown, uris, strict=True):
                row.append(uri)
        parts.append(shown)
    return parts[0], parts[1]


def _data_uri(pixels: UInt8, inverted: bool) -> str:
    """An image (C, H, W) as it was before it was stored."""
    if pixels.shape[0] != 3:  # of other than colour images, the first channel
        pixels = pixels[:1]
    upright = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    upright = 255 - upright if inverted else upright
    buffer = io.BytesIO()
    Image.fromarray(upright.squeeze(2) if upright.shape[2] == 1 else upright).save(
        buffer, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _side(pixels: int) -> int:
    """A whole multiple of small images, so that their pixels stay square."""
    return pixels * max(1, round(56 / pixels)) if pixels <= 96 else 96
