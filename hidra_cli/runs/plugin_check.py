"""The contract of the plugins that a run uses, checked before its first step."""

from __future__ import annotations

import torch

from hidra_cli.api import registry
from hidra_cli.api.building import plugin_errors
from hidra_cli.api.contract import Subject
from hidra_cli.api.contract_backbones import check_backbone_class, check_features, features_of
from hidra_cli.api.contract_head_task import HeadTask, check_head_task
from hidra_cli.api.contract_heads import check_head_class
from hidra_cli.api.options import options, plugin_options
from hidra_cli.engine.learner import Learner
from hidra_cli.settings.schema import ModelSettings

_SHOTS = 2


def check_learner(
    learner: Learner, model: ModelSettings, image_shape: tuple[int, int, int], ways: int
) -> None:
    """The cheap part: a random task of N ways through backbone and head as the run has them.

    Args:
        learner: on the CPU.
        model: names its plugins.
        image_shape: (C, H, W).
        ways: N.

    Raises:
        PluginError: one of them breaks the contract; says which, how, and in which line.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        labels = torch.arange(ways).repeat_interleave(_SHOTS)
        images = torch.rand(len(labels), *image_shape)
        plugin = registry.find("backbone", model.backbone)
        with plugin_errors(plugin):
            subject = Subject(registry.load(plugin))
            check_features(subject, learner.backbone)
            features = features_of(subject, learner.backbone, images).detach()
            learner.backbone.train()
            features_of(subject, learner.backbone, images, may_draw=True)
            learner.backbone.eval()
        with plugin_errors(registry.find("head", model.head)):
            support, query = (features.clone().requires_grad_() for _ in range(2))
            check_head_task(learner.head, HeadTask(ways, labels, support, query))


def check_plugins(
    model: ModelSettings, image_shape: tuple[int, int, int], features: int, ways: int
) -> None:
    """The whole check of a run's backbone and head, with the run's options.

    The backbone of a frozen network is not checked: nothing of it learns.

    Args:
        model: names the plugins and their options.
        image_shape: (C, H, W).
        features: F.
        ways: the largest number of ways among the training tasks.

    Raises:
        PluginError: one of them breaks the contract; says which, how, and in which line.
    """
    plugin = registry.find("backbone", model.backbone)
    component = registry.load(plugin)
    if model.normalization != "frozen":
        chosen = plugin_options(plugin.label, options(component), model.backbone_options)
        with plugin_errors(plugin):
            check_backbone_class(component, image_shape, chosen, pretrained=False)
    plugin = registry.find("head", model.head)
    component = registry.load(plugin)
    chosen = plugin_options(plugin.label, options(component), model.head_options)
    with plugin_errors(plugin):
        check_head_class(component, chosen, features=features, max_ways=ways)
