"""What training and evaluation draw tasks from: prepared images, or a family of functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hidra_cli.api import registry
from hidra_cli.api.building import build
from hidra_cli.api.data import FunctionFamily, Split
from hidra_cli.api.options import options, plugin_options
from hidra_cli.engine.devices import free_memory
from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.errors import UsageError
from hidra_cli.images.open import open_images
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.settings.schema import Augment, DatasetSettings
from hidra_cli.tasks.episodes import EpisodeSampler
from hidra_cli.tasks.functions import FunctionSampler, FunctionTasks
from hidra_cli.tasks.objective import Problem

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


class TaskSource(Protocol):
    """Data of one dataset. `PreparedImages` and `FunctionTasks` are."""

    @property
    def problem(self) -> Problem:
        """What its tasks ask for."""

    @property
    def dataset(self) -> str:
        """Its name."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an input; (1, 1, D) where inputs are D numbers."""

    @property
    def content_hash(self) -> str:
        """The same where the tasks are."""

    @property
    def attributes(self) -> dict[str, str]:
        """What a run records of it."""

    @property
    def place(self) -> str:
        """Where it comes from, for messages."""

    def most_ways(self, split: Split) -> int | None:
        """The largest number of ways of a split's tasks; None where there is no end."""


class Sampler(Protocol):
    """The tasks of one split, each a function of (seed, split, episode index)."""

    @property
    def ways(self) -> tuple[int, ...]: ...

    @property
    def shots(self) -> tuple[int, ...]: ...

    @property
    def queries(self) -> int: ...

    def shape(self, meta_batch: int) -> tuple[int, int]:
        """(ways, shots) of a meta-batch."""

    def batch(
        self, source: Any, episodes: Sequence[int], ways: int, shots: int, device: torch.device
    ) -> TaskBatch:
        """Some tasks of the source it was made for, as tensors on `device`."""


def sampler_of(
    source: TaskSource,
    split: Split,
    ways: Sequence[int],
    shots: Sequence[int],
    queries: int,
    seed: int,
    *,
    within_groups: bool = False,
    augment: Augment = "none",
) -> Sampler:
    """The tasks of one split.

    Args:
        ways: the numbers of classes, or of outputs, that occur.
        shots: the numbers of support examples that occur: per class, of functions in all.
        queries: query examples: per class, of functions in all.
        seed: of the run.
        within_groups: the classes of a task are of one group, such as an alphabet.
        augment: random changes to images.

    Raises:
        UsageError, DataError: a task that can be asked for cannot be drawn.
    """
    if isinstance(source, FunctionTasks):
        if within_groups:
            raise UsageError(
                f"{source.dataset} has no groups of classes",
                why="its tasks are functions",
                fix="leave --within-groups out",
            )
        if augment != "none":
            raise UsageError(
                f"{source.dataset} has no images to augment",
                why="its tasks are functions",
                fix="--augment none",
            )
        return FunctionSampler(split, tuple(ways), tuple(shots), queries, seed)
    assert isinstance(source, PreparedImages)
    table = source.table(split)
    return EpisodeSampler(
        table, ways, shots, queries, seed, within_groups=within_groups, augment=augment
    )


def brought_near(source: TaskSource, device: torch.device) -> TaskSource:
    """The same tasks, drawn on the device where their images fit on it beside all else."""
    if isinstance(source, PreparedImages):
        return source.on(device, free_memory(device))
    return source


def usual_ways(source: TaskSource, split: Split) -> tuple[int, ...]:
    """The numbers of ways of a table, as far as the split goes."""
    most = source.most_ways(split)
    return tuple(n for n in source.problem.usual_ways if most is None or n <= most)


def choose_functions(settings: DatasetSettings) -> FunctionTasks | None:
    """Resolve and build the plugin of a family of functions; None where it is one of images.

    Raises:
        UsageError: unknown plugin, option or value, or a source.
        PluginError: the plugin fails.
    """
    from hidra_cli.tasks.functions import FunctionTasks

    plugin = registry.find("dataset", settings.name)
    component = registry.load(plugin)
    if not issubclass(component, FunctionFamily):
        return None
    if settings.source is not None:
        raise UsageError(
            f"{plugin.name} has no source",
            why="it is a family of functions, which hidra draws",
            fix="leave --source out; its options are --data-opt NAME=VALUE",
        )
    known = options(component)
    values = plugin_options(plugin.label, known, settings.options)
    family: FunctionFamily = build(plugin, component, **values)
    return FunctionTasks(plugin, family, {o.name: values.get(o.name, o.default) for o in known})


def open_tasks(
    settings: DatasetSettings, cache_dir: Path | None, console: Console, device: torch.device
) -> TaskSource:
    """What tasks are drawn from: a family of functions, or prepared images; near the device."""
    from hidra_cli.tasks.sources import brought_near, choose_functions

    found = choose_functions(settings) or open_images(settings, cache_dir, console)
    return brought_near(found, device)
