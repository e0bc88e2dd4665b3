"""Settings and their plugins → the learner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hidra_cli.api.building import Component, plugin_errors, resolve
from hidra_cli.errors import UsageError
from hidra_cli.runs.components import ModelComponents, plugins_with
from hidra_cli.settings.schema import ModelSettings, Settings

if TYPE_CHECKING:
    from hidra_cli.api import Backbone
    from hidra_cli.engine.learner import Learner
    from hidra_cli.engine.normalization import Episode, Mode
    from hidra_cli.images.features import NetworkChoice


def build_learner(
    settings: Settings,
    components: ModelComponents,
    image_shape: tuple[int, int, int],
    max_ways: int,
    *,
    restoring: bool = False,
) -> Learner:
    """Build backbone and head on the CPU, each from its own stream of the seed.

    Two heads with one seed therefore start from the same backbone.

    Args:
        settings: of the run.
        components: their plugins.
        image_shape: (C, H, W).
        max_ways: the most classes of a training task.
        restoring: its weights will come from a checkpoint, so that pre-trained ones are not read,
            but for those of a frozen network, which no checkpoint holds.

    Raises:
        UsageError: a plugin refuses a value.
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
        backbone, episode = _build_backbone(
            components.backbone, model.normalization, image_shape, restoring
        )
        torch.manual_seed(stream_key(seed, "head"))
        head = components.head.build(backbone.features, max_ways)
        rates = None
        if inner.rates == "learned":
            rates = LearnedRates(inner.steps, list(adapting(backbone)), inner.inner_lr)
    learner = Learner(
        backbone, head, episode, model.normalization, settings.run.precision, model.loss, rates
    )
    return learner.eval()  # but for `meta_training`


def frozen_network(
    model: ModelSettings, image_shape: tuple[int, int, int], backbone: Component | None = None
) -> NetworkChoice:
    """Build the network of a frozen model on the CPU, with its weights.

    Args:
        model: its settings.
        image_shape: (C, H, W).
        backbone: its plugin, where it was found before.

    Raises:
        UsageError: unknown plugin, option or value, or one that cannot be frozen.
        DataError: its weights cannot be had.
        PluginError: the plugin fails or breaks its contract.
    """
    import torch

    from hidra_cli.engine.frozen import FrozenNetwork
    from hidra_cli.images.features import NetworkChoice

    backbone = backbone or resolve("backbone", model.backbone, model.backbone_options)
    with torch.random.fork_rng(devices=[]):
        network, _ = _build_backbone(backbone, "frozen", image_shape, restoring=False)
    assert isinstance(network, FrozenNetwork)
    return NetworkChoice(network, model.backbone, model.backbone_options)


def _build_backbone(
    component: Component,
    mode: Mode | Literal["frozen"],
    image_shape: tuple[int, int, int],
    restoring: bool,
) -> tuple[Backbone, Episode]:
    from hidra_cli.api.contract import Subject
    from hidra_cli.api.contract_backbones import check_features
    from hidra_cli.engine.frozen import FrozenNetwork
    from hidra_cli.engine.normalization import Episode, norm_factory

    factory, episode = (None, Episode()) if mode == "frozen" else norm_factory(mode)
    if mode == "frozen" and not component.type.freezable:
        raise UsageError(
            f"the backbone '{component.plugin.name}' cannot be frozen",
            why="it is no published network: before meta-training it knows nothing",
            fix=f"--backbone {' or '.join(plugins_with('backbone', 'freezable'))}, or another "
            "--normalization",
        )
    backbone: Backbone = component.build(image_shape, factory)
    with plugin_errors(component.plugin):
        check_features(Subject(component.type), backbone)
    if mode == "frozen" or not restoring:
        with plugin_errors(component.plugin):
            backbone.load_pretrained()
    return (FrozenNetwork(backbone) if mode == "frozen" else backbone), episode
