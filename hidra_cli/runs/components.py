"""The plugins of a run, each found once, and whether they can do what the run asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hidra_cli.api import registry
from hidra_cli.api.building import Component, resolve
from hidra_cli.errors import PluginError, UsageError
from hidra_cli.runs.records import PluginRecord
from hidra_cli.settings.schema import ModelSettings, Settings
from hidra_cli.tasks.objective import CLASSIFICATION

if TYPE_CHECKING:
    from hidra_cli.tasks.sources import TaskSource


@dataclass(frozen=True)
class ModelComponents:
    """The backbone and the head of a model."""

    backbone: Component
    head: Component


@dataclass(frozen=True)
class Components(ModelComponents):
    """The backbone, the head and the dataset of a run."""

    dataset: Component

    @property
    def records(self) -> dict[registry.Kind, PluginRecord]:
        """Name, distribution and version of each plugin, as a run's files hold them."""
        return {
            "backbone": _record(self.backbone.plugin),
            "head": _record(self.head.plugin),
            "dataset": _record(self.dataset.plugin),
        }


def resolve_components(settings: Settings, model: ModelComponents | None = None) -> Components:
    """Find the plugins of a run.

    Args:
        settings: of the run.
        model: backbone and head, where they were found before.

    Raises:
        UsageError: unknown plugin, option or value, a fixed-way head for several numbers of ways,
            or a setting with which nothing can learn.
        PluginError: a plugin cannot be imported.
    """
    model = model or model_components(settings.model)
    check_head(settings, model.head, settings.tasks.ways)
    dataset = settings.dataset
    return Components(model.backbone, model.head, resolve("dataset", dataset.name, dataset.options))


def model_components(model: ModelSettings) -> ModelComponents:
    """Find the plugins of a model; raises as `resolve`."""
    return ModelComponents(
        backbone=resolve("backbone", model.backbone, model.backbone_options),
        head=resolve("head", model.head, model.head_options),
    )


def check_head(settings: Settings, head: Component, ways: Sequence[int]) -> None:
    """Refuse a fixed-way head for several numbers of ways, and a setting that cannot learn.

    Raises:
        UsageError: says which heads can.
    """
    if not head.type.any_ways and len(ways) > 1:
        raise fixed_ways_error(settings.model.head, ways, None)
    if settings.inner.adapt == "body" and settings.model.normalization == "frozen":
        raise UsageError(
            "a frozen network does not adapt",
            why="with --adapt body and --normalization frozen nothing would learn a task",
            fix="--adapt head, or another --normalization",
        )
    if settings.inner.adapt == "body" and head.type.identical_neurons:
        raise UsageError(
            f"the head '{head.plugin.name}' cannot learn a task when only the body adapts",
            why="its neurons are identical, and stay so: every class keeps the same logit",
            fix="--adapt all or --adapt head",
        )


def check_objective(model: ModelSettings, components: ModelComponents, source: TaskSource) -> None:
    """Refuse a loss, backbone or head that cannot do what the tasks ask for.

    Raises:
        UsageError: says what can.
    """
    from hidra_cli.tasks.sources import objective_of

    if objective_of(source) is CLASSIFICATION:
        return
    if model.loss != "mse":
        raise UsageError(
            f"--loss {model.loss} cannot be fitted to {source.dataset}",
            why="its targets are values of functions, not classes",
            fix="--loss mse",
        )
    if not components.backbone.type.vectors:
        raise UsageError(
            f"the backbone '{model.backbone}' is for images",
            why=f"the inputs of {source.dataset} are numbers, {source.image_shape[2]} of them each",
            fix="--backbone mlp, or another whose class says vectors = True",
        )
    if components.head.type.needs_support:
        raise UsageError(
            f"the head '{model.head}' starts from the classes of the support set",
            why=f"{source.dataset} has values of functions, not classes",
            fix="--head hidra, zero, maml or random",
        )


def fixed_ways_error(head: str, ways: Sequence[int], trained: int | None) -> UsageError:
    """The head serves one number of ways only; names those that serve any."""
    at = f" ({trained})" if trained else ""
    return UsageError(
        f"the head '{head}' serves only the number of ways it was trained for{at}",
        why="asked for " + ", ".join(map(str, ways)) + " ways",
        fix=f"--ways {trained or ways[-1]}, or a head that serves any number of ways: "
        + ", ".join(plugins_with("head", "any_ways")),
    )


def plugins_with(kind: registry.Kind, ability: str) -> list[str]:
    """The names of the plugins whose class has an attribute that is true."""
    names = []
    for plugin in registry.plugins(kind):
        try:
            able = getattr(registry.load(plugin), ability)
        except PluginError:  # it cannot be imported
            continue
        if able:
            names.append(plugin.name)
    return names


def _record(plugin: registry.Plugin) -> PluginRecord:
    return PluginRecord(name=plugin.name, distribution=plugin.distribution, version=plugin.version)
