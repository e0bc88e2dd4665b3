"""Settings → the dataset plugin and the learner they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hidra_cli.api import registry
from hidra_cli.api.building import build, plugin_errors
from hidra_cli.api.options import options, plugin_options
from hidra_cli.errors import PluginError, UsageError
from hidra_cli.settings.schema import ModelSettings, Settings
from hidra_cli.tasks.objective import CLASSIFICATION

if TYPE_CHECKING:
    from hidra_cli.api import Backbone
    from hidra_cli.engine.learner import Learner
    from hidra_cli.engine.normalization import Episode
    from hidra_cli.images.features import NetworkChoice
    from hidra_cli.tasks.sources import TaskSource


def check_objective(settings: Settings, source: TaskSource) -> None:
    """Refuse a loss, backbone or head that cannot do what the tasks ask for.

    Raises:
        UsageError: says what can.
    """
    from hidra_cli.tasks.sources import objective_of

    model = settings.model
    if objective_of(source) is CLASSIFICATION:
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
        restoring: its weights will come from a checkpoint, so that pre-trained ones are not read,
            but for those of a frozen network, which no checkpoint holds.

    Raises:
        UsageError: unknown plugin, option or value.
        DataError: pre-trained weights cannot be had.
        PluginError: a plugin fails or breaks its contract.
    """
    import torch

    from hidra_cli.engine.learner import Learner
    from hidra_cli.engine.normalization import adapting
    from hidra_cli.engine.rates import LearnedRates
    from hidra_cli.system.random_streams import stream_key

    model, inner, seed = settings.model, settings.inner, settings.run.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "backbone"))
        backbone, episode = _build_backbone(model, image_shape, restoring)
        torch.manual_seed(stream_key(seed, "head"))
        plugin, component, options = _chosen("head", model.head, model.head_options)
        head = build(plugin, component, backbone.features, max_ways, **options)
        rates = None
        if inner.rates == "learned":
            rates = LearnedRates(inner.steps, list(adapting(backbone)), inner.inner_lr)
    learner = Learner(
        backbone, head, episode, model.normalization, settings.run.precision, model.loss, rates
    )
    return learner.eval()  # but for `meta_training`


def frozen_network(model: ModelSettings, image_shape: tuple[int, int, int]) -> NetworkChoice:
    """Build the network of a frozen model on the CPU, with its weights.

    Raises:
        UsageError: unknown plugin, option or value, or one that cannot be frozen.
        DataError: its weights cannot be had.
        PluginError: the plugin fails or breaks its contract.
    """
    import torch

    from hidra_cli.engine.frozen import FrozenNetwork
    from hidra_cli.images.features import NetworkChoice

    with torch.random.fork_rng(devices=[]):
        network, _ = _build_backbone(
            replace(model, normalization="frozen"), image_shape, restoring=False
        )
    assert isinstance(network, FrozenNetwork)
    return NetworkChoice(network, model.backbone, model.backbone_options)


def _build_backbone(
    model: ModelSettings, image_shape: tuple[int, int, int], restoring: bool
) -> tuple[Backbone, Episode]:
    from hidra_cli.api.contract import Subject
    from hidra_cli.api.contract_backbones import check_features
    from hidra_cli.engine.frozen import FrozenNetwork
    from hidra_cli.engine.normalization import Episode, norm_factory

    mode = model.normalization
    factory, episode = (None, Episode()) if mode == "frozen" else norm_factory(mode)
    plugin, component, options = _chosen("backbone", model.backbone, model.backbone_options)
    if mode == "frozen" and not component.freezable:
        raise _not_freezable(plugin)
    backbone: Backbone = build(plugin, component, image_shape, factory, **options)
    with plugin_errors(plugin):
        check_features(Subject(component), backbone)
    if mode == "frozen" or not restoring:
        with plugin_errors(plugin):
            backbone.load_pretrained()
    return (FrozenNetwork(backbone) if mode == "frozen" else backbone), episode


def _not_freezable(plugin: registry.Plugin) -> UsageError:
    known = registry.plugins("backbone")
    able = [p.name for p in known if _loads(p) and registry.load(p).freezable]
    return UsageError(
        f"the backbone '{plugin.name}' cannot be frozen",
        why="it is no published network: before meta-training it knows nothing",
        fix=f"--backbone {' or '.join(able)}, or another --normalization",
    )


def check_head_can(settings: Settings, ways: tuple[int, ...]) -> None:
    """Refuse a fixed-way head for several numbers of ways, and a setting that cannot learn.

    Raises:
        UsageError: says which heads can.
    """
    plugin = registry.find("head", settings.model.head)
    head = registry.load(plugin)
    if not head.any_ways and len(ways) > 1:
        raise fixed_ways_error(settings.model.head, ways, None)
    if settings.inner.adapt == "body" and settings.model.normalization == "frozen":
        raise UsageError(
            "a frozen network does not adapt",
            why="with --adapt body and --normalization frozen nothing would learn a task",
            fix="--adapt head, or another --normalization",
        )
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
    return plugin, component, plugin_options(plugin.label, options(component), given)
