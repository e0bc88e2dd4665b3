"""The sources of tasks: prepared images, their features, or a family of functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from hidra_cli.api.building import Component, resolve
from hidra_cli.api.data import FunctionFamily, Split
from hidra_cli.engine.devices import free_memory
from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.errors import UsageError
from hidra_cli.images.features import NetworkChoice, open_features
from hidra_cli.images.open import open_images
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.settings.declarations import Augment
from hidra_cli.settings.schema import DatasetSettings
from hidra_cli.tasks.functions import FunctionSampler, FunctionTasks
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.objective import CLASSIFICATION, REGRESSION, Objective
from hidra_cli.tasks.shape import TaskShape

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


class TaskSource(Protocol):
    """Data of one dataset. `PreparedImages` and `FunctionTasks` are."""

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
        """The facts that a run records about it."""

    @property
    def place(self) -> str:
        """Its origin, for messages."""

    def most_ways(self, split: Split) -> int | None:
        """The largest number of ways of a split's tasks; None if any number is possible."""


class Sampler(Protocol):
    """The tasks of one split of a source, each a function of (seed, split, episode index)."""

    @property
    def source(self) -> TaskSource: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def ways(self) -> tuple[int, ...]: ...

    @property
    def shots(self) -> tuple[int, ...]: ...

    @property
    def queries(self) -> int: ...

    def shape(self, meta_batch: int) -> TaskShape:
        """The shape of a meta-batch."""

    def batch(self, episodes: Sequence[int], shape: TaskShape) -> TaskBatch:
        """Some tasks, as tensors on the sampler's device."""


def sampler_of(
    source: TaskSource,
    split: Split,
    ways: Sequence[int],
    shots: Sequence[int],
    queries: int,
    seed: int,
    *,
    device: torch.device,
    within_groups: bool = False,
    augment: Augment = "none",
) -> Sampler:
    """The tasks of one split.

    Args:
        ways: the possible numbers of classes or outputs.
        shots: the possible numbers of support examples per class (functions: of the whole task).
        queries: the number of query examples per class (functions: of the whole task).
        seed: the run's seed.
        device: where the tasks' tensors go.
        within_groups: the classes of a task are of one group, such as an alphabet.
        augment: random changes to images.

    Raises:
        UsageError, DataError: some possible task cannot be drawn.
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
        return FunctionSampler(source, split, tuple(ways), tuple(shots), queries, seed, device)
    assert isinstance(source, PreparedImages)
    return ImageSampler(
        source,
        split,
        ways,
        shots,
        queries,
        seed,
        device=device,
        within_groups=within_groups,
        augment=augment,
    )


def objective_of(source: TaskSource) -> Objective:
    """The objective of a source's tasks."""
    return REGRESSION if isinstance(source, FunctionTasks) else CLASSIFICATION


def feasible_ways(source: TaskSource, split: Split, wanted: Iterable[int]) -> tuple[int, ...]:
    """The numbers of ways for which the split has enough classes."""
    most = source.most_ways(split)
    return tuple(n for n in wanted if most is None or n <= most)


def functions_of(component: Component, source: str | None) -> FunctionTasks | None:
    """Build a plugin that is a family of functions; None where it is a dataset of images.

    Raises:
        UsageError: the plugin refuses a value, or there is a source.
        PluginError: the plugin fails.
    """
    if not issubclass(component.type, FunctionFamily):
        return None
    if source is not None:
        raise UsageError(
            f"{component.plugin.name} has no source",
            why="it is a family of functions, which hidra draws",
            fix="leave --source out; its options are --data-opt NAME=VALUE",
        )
    family: FunctionFamily = component.build()
    return FunctionTasks(component.plugin, family, component.all_options)


def open_tasks(
    settings: DatasetSettings,
    cache_dir: Path | None,
    console: Console,
    device: torch.device,
    network: NetworkChoice | None = None,
    component: Component | None = None,
) -> TaskSource:
    """What tasks are drawn from: a family of functions, prepared images, or their features.

    Images and features are kept on the device where they fit on it beside all else.

    Args:
        settings: of the dataset.
        cache_dir: where prepared images are kept; None: the usual place.
        console: of progress.
        device: where tasks go.
        network: a frozen one, whose features are wanted.
        component: the dataset's plugin, where it was found before.

    Raises:
        DataError: images or features are missing, damaged, or others than those wanted.
    """
    component = component or resolve("dataset", settings.name, settings.options)
    functions = functions_of(component, settings.source)
    if functions is not None:
        return functions
    if network is None:
        images = open_images(settings, cache_dir, console, component)
    else:
        images = open_features(settings, network, cache_dir, console, component)
    return images.on(device, free_memory(device))
