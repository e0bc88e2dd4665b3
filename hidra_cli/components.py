"""Settings → the dataset plugin and the learner they name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hidra_cli import registry
from hidra_cli.api.data import Dataset, FunctionFamily
from hidra_cli.errors import DataError, HidraError, PluginError, UsageError
from hidra_cli.problems import CLASSIFICATION
from hidra_cli.settings import DatasetSettings, Settings, plugin_options
from hidra_cli.store.paths import StoreKey

if TYPE_CHECKING:
    from hidra_cli.engine.learner import Learner
    from hidra_cli.functions import FunctionTasks
    from hidra_cli.task_sources import TaskSource


@dataclass(frozen=True)
class DatasetChoice:
    """A dataset plugin, built with its options, and the key of its prepared file."""

    plugin: registry.Plugin
    dataset: Dataset
    key: StoreKey
    source: Path | None


def choose_dataset(settings: DatasetSettings) -> DatasetChoice:
    """Resolve and build the plugin of a dataset of images. Imports no torch.

    Raises:
        UsageError: unknown plugin, option or value, or a family of functions.
        DataError: the source does not exist.
        PluginError: the plugin fails.
    """
    plugin = registry.find("dataset", settings.name)
    component = registry.load(plugin)
    if issubclass(component, FunctionFamily):
        raise UsageError(
            f"{plugin.name} is a family of functions, and this needs images",
            why="its tasks are drawn as they are needed: there is nothing to prepare or to show",
            fix=f"hidra meta-train --dataset {plugin.name} --backbone mlp --loss mse, then "
            "hidra evaluate RUN",
        )
    values = plugin_options(plugin.label, registry.options(component), settings.options)
    source = _existing(settings.source)
    dataset: Dataset = build(plugin, component, source, **values)
    all_values = {o.name: values.get(o.name, o.default) for o in registry.options(component)}
    identity = str(source.resolve()) if source and component.source_is_identity else None
    key = StoreKey(
        plugin.name,
        plugin.distribution,
        all_values,
        dataset.image_shape,
        dataset.invert,
        identity,
    )
    return DatasetChoice(plugin, dataset, key, source)


def choose_functions(settings: DatasetSettings) -> FunctionTasks | None:
    """Resolve and build the plugin of a family of functions; None where it is one of images.

    Raises:
        UsageError: unknown plugin, option or value, or a source.
        PluginError: the plugin fails.
    """
    from hidra_cli.functions import FunctionTasks

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
    known = registry.options(component)
    values = plugin_options(plugin.label, known, settings.options)
    family: FunctionFamily = build(plugin, component, **values)
    return FunctionTasks(plugin, family, {o.name: values.get(o.name, o.default) for o in known})


def check_problem(settings: Settings, source: TaskSource) -> None:
    """Refuse a loss, backbone or head that cannot do what the tasks ask for.

    Raises:
        UsageError: says what can.
    """
    model = settings.model
    if source.problem is CLASSIFICATION:
        return
    if model.loss != "mse":
        raise UsageError(
            f"--loss {model.loss} cannot be fitted to {source.dataset}",
            why="its targets are values of functions, not classes",
            fix="--loss mse",
        )
    if not registry.load(registry.find("backbone", model.backbone)).vectors:
        raise UsageError(
            f"the backbone '{model.backbone}' is for images",
            why=f"the inputs of {source.dataset} are numbers, {source.image_shape[2]} of them each",
            fix="--backbone mlp, or another whose class says vectors = True",
        )
    if registry.load(registry.find("head", model.head)).needs_support:
        raise UsageError(
            f"the head '{model.head}' starts from the classes of the support set",
            why=f"{source.dataset} has values of functions, not classes",
            fix="--head hidra, zero, maml or random",
        )


def build_learner(
    settings: Settings,
    image_shape: tuple[int, int, int],
    max_ways: int,
    *,
    restoring: bool = False,
) -> Learner:
    """Resolve and build backbone and head on the CPU, each from its own stream of the seed.

    Two heads with one seed therefore start from the same backbone.

    Args:
        restoring: its weights will come from a checkpoint, so that pre-trained ones are not read.

    Raises:
        UsageError: unknown plugin, option or value.
        DataError: pre-trained weights cannot be had.
        PluginError: a plugin fails or breaks its contract.
    """
    import torch

    from hidra_cli.engine.learner import Learner
    from hidra_cli.engine.normalization import adapting, norm_factory
    from hidra_cli.engine.rates import LearnedRates
    from hidra_cli.streams import stream_key

    model, inner, seed = settings.model, settings.inner, settings.run.seed
    factory, episode = norm_factory(model.normalization)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "backbone"))
        plugin, component, options = _chosen("backbone", model.backbone, model.backbone_options)
        backbone = build(plugin, component, image_shape, factory, **options)
        if not isinstance(getattr(backbone, "features", None), int):
            raise PluginError(
                f"{plugin.label} breaks its contract",
                why="it sets no number of features",
                fix=registry.blame(plugin),
            )
        if not restoring:
            with _told(plugin):
                backbone.load_pretrained()
        torch.manual_seed(stream_key(seed, "head"))
        plugin, component, options = _chosen("head", model.head, model.head_options)
        head = build(plugin, component, backbone.features, max_ways, **options)
        rates = None
        if inner.rates == "learned":
            rates = LearnedRates(inner.steps, list(adapting(backbone)), inner.inner_lr)
    return Learner(
        backbone, head, episode, model.normalization, settings.run.precision, model.loss, rates
    )


def build(plugin: registry.Plugin, component: type[Any], *args: Any, **options: Any) -> Any:
    """Construct a plugin's class, telling a refused value from a fault of the plugin.

    Raises:
        UsageError: the plugin refused a value (it raised ValueError).
        PluginError: it raised anything else.
    """
    with _told(plugin):
        return component(*args, **options)


@contextlib.contextmanager
def _told(plugin: registry.Plugin) -> Iterator[None]:
    try:
        yield
    except HidraError:
        raise
    except ValueError as exc:
        raise UsageError(
            f"{plugin.label} refuses its options",
            why=str(exc),
            fix=f"hidra plugins show {plugin.kind}:{plugin.name}",
        ) from exc
    except Exception as exc:
        raise PluginError(
            f"{plugin.label} could not be built",
            why=f"{type(exc).__name__}: {exc}".split("\n")[0],
            fix=registry.blame(plugin),
        ) from exc


def check_head_can(settings: Settings, ways: tuple[int, ...]) -> None:
    """Refuse a fixed-way head for several numbers of ways, and a setting that cannot learn.

    Raises:
        UsageError: says which heads can.
    """
    plugin = registry.find("head", settings.model.head)
    head = registry.load(plugin)
    if not head.any_ways and len(ways) > 1:
        raise fixed_ways_error(settings.model.head, ways, None)
    if settings.inner.adapt == "body" and head.identical_neurons:
        raise UsageError(
            f"the head '{plugin.name}' cannot learn a task when only the body adapts",
            why="its neurons are identical, and stay so: every class keeps the same logit",
            fix="--adapt all or --adapt head",
        )


def fixed_ways_error(head: str, ways: tuple[int, ...], trained: int | None) -> UsageError:
    """The head serves one number of ways only; names those that serve any."""
    able = [p.name for p in registry.plugins("head") if _loads(p) and registry.load(p).any_ways]
    at = f" ({trained})" if trained else ""
    return UsageError(
        f"the head '{head}' serves only the number of ways it was trained for{at}",
        why="asked for " + ", ".join(map(str, ways)) + " ways",
        fix=f"--ways {trained or ways[-1]}, or a head that serves any number of ways: "
        + ", ".join(able),
    )


def used_plugins(settings: Settings) -> dict[str, dict[str, str]]:
    """Distribution and version behind each plugin of a run, as recorded in its files."""
    chosen: Mapping[registry.Kind, str] = {
        "backbone": settings.model.backbone,
        "head": settings.model.head,
        "dataset": settings.dataset.name,
    }
    found: dict[str, dict[str, str]] = {}
    for kind, name in chosen.items():
        plugin = registry.find(kind, name)
        found[kind] = {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
        }
    return found


def _loads(plugin: registry.Plugin) -> bool:
    try:
        registry.load(plugin)
    except PluginError:
        return False
    return True


def _chosen(
    kind: registry.Kind, name: str, given: Mapping[str, Any]
) -> tuple[registry.Plugin, type[Any], dict[str, Any]]:
    plugin = registry.find(kind, name)
    component = registry.load(plugin)
    return plugin, component, plugin_options(plugin.label, registry.options(component), given)


def _existing(source: str | None) -> Path | None:
    if source is None:
        return None
    path = Path(source)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, RuntimeError):  # a name too long, or the home of an unknown user
        exists = False
    if not exists:
        raise DataError(
            f"the source {source} does not exist",
            why="it is neither a folder nor a file",
            fix="give --source the folder or archive that holds the images",
        )
    return path
