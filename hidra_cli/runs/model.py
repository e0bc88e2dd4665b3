"""Meta-trained models, restored from their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hidra_cli.engine.devices import choose_float32
from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.normalization import Mode
from hidra_cli.engine.strategies.base import Strategy
from hidra_cli.engine.strategies.choose import choose
from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.errors import UsageError
from hidra_cli.runs.build import build_learner
from hidra_cli.runs.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    restore_error,
)
from hidra_cli.runs.compatibility import (
    MemoryLimit,
    differing_models,
    first_unlike,
    other_versions,
    require_plugins,
)
from hidra_cli.runs.components import ModelComponents, fixed_ways_error
from hidra_cli.runs.locate import find_checkpoint
from hidra_cli.runs.model_records import ModelMeta
from hidra_cli.runs.network import check_network, needing_network
from hidra_cli.runs.records import StartRecord
from hidra_cli.settings.schema import Settings
from hidra_cli.system.console import Console
from hidra_cli.system.memory import available_memory, keep_freed_memory
from hidra_cli.tasks.objective import Objective

if TYPE_CHECKING:
    from hidra_cli.images.features import NetworkChoice

# What building a model may take beside its weights: other buffers, and copies while it starts.
_SPARE_BYTES = 64 * 2**20
_COPIES = 4


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint, or what a classifier was adapted from, restored.

    Attributes:
        settings: those of the training, but for the normalization where another was asked for.
        meta: what the file says of it.
        steps: inner steps it adapts with.
    """

    name: str
    path: Path
    settings: Settings
    learner: Learner
    meta: ModelMeta
    sha256: str
    steps: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.meta.image_shape

    @property
    def max_ways(self) -> int:
        """The most classes of a training task: the only number of a fixed-way head."""
        return self.meta.max_ways

    @property
    def normalization(self) -> str:
        return self.settings.model.normalization

    @property
    def objective(self) -> Objective:
        """What it was trained for."""
        return self.meta.objective

    @property
    def inner(self) -> InnerLoop:
        return inner_loop(self.settings)

    def check(self, ways: Sequence[int], image_shape: tuple[int, int, int]) -> None:
        if not self.learner.head.any_ways and set(ways) != {self.max_ways}:
            raise fixed_ways_error(self.settings.model.head, ways, self.max_ways)
        if image_shape != self.image_shape:
            c, h, w = self.image_shape
            oc, oh, ow = image_shape
            raise UsageError(
                f"{self.name} was trained on {h}×{w} images with {c} channel(s)",
                why=f"these are {oh}×{ow} with {oc}",
                fix="prepare the dataset with the same size (--data-opt size=…) and channels",
            )

    def scores(self, batch: TaskBatch, *, every_step: bool) -> list[list[float]]:
        choose_float32(self.learner.precision, self.learner.device)  # others may differ
        return self._strategy.scores(batch, self.inner, self.steps, every_step=every_step)

    @cached_property
    def _strategy(self) -> Strategy:
        keep_freed_memory()
        return choose("auto", self.learner, self.image_shape).strategy


def shared_network(models: Sequence[TrainedModel]) -> NetworkChoice | None:
    """The frozen network that all models share; None where they share none."""
    from hidra_cli.images.features import NetworkChoice

    networks = [model.learner.backbone for model in models]
    first, model = networks[0], models[0].settings.model
    if not isinstance(first, FrozenNetwork):
        return None
    hashes = {n.sha256 if isinstance(n, FrozenNetwork) else "" for n in networks}
    same = len(hashes) == 1
    return NetworkChoice(first, model.backbone, model.backbone_options) if same else None


def inner_loop(settings: Settings) -> InnerLoop:
    """The engine's inner loop as the settings describe it."""
    inner = settings.inner
    return InnerLoop(
        steps=inner.steps,
        inner_lr=inner.inner_lr,
        head_lr=inner.head_lr,
        adapt=inner.adapt,
        order=inner.order,
    )


def load_model(
    source: Path,
    device: torch.device,
    *,
    steps: int | None = None,
    normalization: Mode | None = None,
    components: ModelComponents | None = None,
) -> TrainedModel:
    """Restore the model of a run directory (its best checkpoint) or of a checkpoint file.

    Args:
        source: the run directory or file.
        device: where its weights go.
        steps: inner steps, instead of the run's own.
        normalization: where statistics come from, instead of the run's own mode.
        components: its plugins, where they were found before.

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
        UsageError: the mode's layers have other weights than the checkpoint holds.
        PluginError: a plugin it needs is missing; names the package.
        RunError: the weights do not fit.
    """
    path = find_checkpoint(source)
    checkpoint = load_checkpoint(path)
    meta = checkpoint.model_meta
    settings = meta.settings
    if normalization is not None:
        model = replace(settings.model, normalization=normalization)
        settings = settings.model_copy(update={"model": model})
    learner = restore_learner(checkpoint, meta, settings, components)
    choose_float32(settings.run.precision, device)
    of_run = path.parent.name == "checkpoints"
    name = f"{path.parents[1].name}/{path.stem}" if of_run else path.stem
    return TrainedModel(
        name=source.name if source.is_dir() else name,
        path=path,
        settings=settings,
        learner=learner.to(device),
        meta=meta,
        sha256=checkpoint.sha256,
        steps=settings.inner.steps_at_test if steps is None else steps,
    )


def restore_learner(
    checkpoint: Checkpoint,
    meta: ModelMeta,
    settings: Settings,
    components: ModelComponents | None = None,
) -> Learner:
    """Build a learner and give it a checkpoint's weights, on the CPU.

    It is built only as long as it takes no more memory than the weights in the file suggest, and
    those of a frozen network that the file names.

    Args:
        checkpoint: the file.
        meta: what it says.
        settings: the file's, or those with another normalization.
        components: its plugins, where they were found before.

    Raises:
        UsageError: the mode's layers have other weights than the checkpoint holds.
        DataError: the weights of a frozen network cannot be had, or are others.
        PluginError: a plugin it needs is missing; names the package.
        RunError: the weights do not fit.
    """
    if components is None:
        components = require_plugins(checkpoint.path, meta)
        for line in other_versions(meta, components):
            Console().warn(line)
    held = checkpoint.part("model")
    size = sum(tensor.nbytes for tensor in held.values())
    if meta.network is not None:
        size = min(size + meta.network.size, available_memory() // _COPIES)
    too_large = f"that model takes more memory than weights of {size:,} bytes do"
    limit = MemoryLimit(_SPARE_BYTES + _COPIES * size, restore_error(checkpoint, meta, too_large))
    with limit, needing_network(checkpoint.path, meta):
        learner = build_learner(
            settings, components, meta.image_shape, meta.max_ways, restoring=True
        )
    check_network(checkpoint.path, meta, learner)
    expected = learner.state_dict()
    trained, asked = meta.settings.model.normalization, settings.model.normalization
    if held.keys() != expected.keys() and asked != trained:
        raise UsageError(
            f"{checkpoint.path} cannot be used with {asked} normalization",
            why=f"it was trained with {trained}, whose layers have other weights",
            fix=f"--normalization {trained}, or train with --normalization {asked}",
        )
    if (unlike := first_unlike(held, expected)) is not None:
        name, there, here = unlike
        raise restore_error(checkpoint, meta, f"{name} should be {here}, but is {there}")
    load_weights(learner, checkpoint, meta)
    return learner


def begin_with(learner: Learner, settings: Settings, source: Path) -> StartRecord:
    """Give a new learner the weights of a trained model, learned rates among them.

    Args:
        learner: as `settings` build it, on the CPU.
        settings: of the run that begins.
        source: a run directory, a checkpoint, or the name of a model that ships with hidra.

    Returns:
        Which checkpoint it was.

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
        UsageError: it is another model; names each setting that differs.
    """
    checkpoint = load_checkpoint(find_checkpoint(source))
    meta = checkpoint.model_meta
    weights = checkpoint.part("model")
    if (unlike := first_unlike(weights, learner.state_dict())) is not None:
        name, *sizes = unlike
        there, here = ("absent" if size is None else size for size in sizes)
        reasons = [f"{name} is {there} there and {here} here"] + [
            f"{key} is {there} there and {here} here"
            for key, there, here in differing_models(meta.settings, settings, "tasks.ways")
        ]
        raise UsageError(
            f"the run cannot begin with the weights of {checkpoint.path}",
            why="\n     ".join(reasons),
            fix="give the settings that it was trained with (its run's config.toml as --config, or "
            "its --preset), or leave --start-from out",
        )
    check_network(checkpoint.path, meta, learner)
    learner.load_state_dict(weights)
    return StartRecord(checkpoint=str(checkpoint.path), sha256=checkpoint.sha256)
