"""The contract of the plugins that a run uses, checked before its first step."""

from __future__ import annotations

import torch

from hidra_cli.api.building import plugin_errors
from hidra_cli.api.contract import Subject
from hidra_cli.api.contract_backbones import check_backbone_class, check_features, features_of
from hidra_cli.api.contract_head_task import HeadTask, check_head_task
from hidra_cli.api.contract_heads import check_head_class
from hidra_cli.engine.learner import Learner
from hidra_cli.runs.components import ModelComponents

_SHOTS = 2


def check_learner(
    learner: Learner,
    components: ModelComponents,
    image_shape: tuple[int, int, int],
    ways: int,
) -> None:
    """The cheap part: a random task of N ways through backbone and head as the run has them.

    Args:
        learner: on the CPU.
        components: its plugins.
        image_shape: (C, H, W).
        ways: N.

    Raises:
        PluginError: one of them breaks the contract; says which, how, and in which line.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        labels = torch.arange(ways).repeat_interleave(_SHOTS)
        images = torch.rand(len(labels), *image_shape)
        with plugin_errors(components.backbone.plugin):
            subject = Subject(components.backbone.type)
            check_features(subject, learner.backbone)
            features = features_of(subject, learner.backbone, images).detach()
            learner.backbone.train()
            features_of(subject, learner.backbone, images, may_draw=True)
            learner.backbone.eval()
        with plugin_errors(components.head.plugin):
            support, query = (features.clone().requires_grad_() for _ in range(2))
            check_head_task(learner.head, HeadTask(ways, labels, support, query))


def check_plugins(
    components: ModelComponents, image_shape: tuple[int, int, int], learner: Learner, ways: int
) -> None:
    """The whole check of a run's backbone and head, with the run's options.

    The backbone of a frozen network is not checked: nothing of it learns.

    Args:
        components: backbone and head.
        image_shape: (C, H, W).
        learner: made of them.
        ways: the largest number of ways among the training tasks.

    Raises:
        PluginError: one of them breaks the contract; says which, how, and in which line.
    """
    backbone, head = components.backbone, components.head
    if learner.normalization != "frozen":
        with plugin_errors(backbone.plugin):
            check_backbone_class(backbone.type, image_shape, backbone.options, pretrained=False)
    with plugin_errors(head.plugin):
        features = learner.backbone.features
        check_head_class(head.type, head.options, features=features, max_ways=ways)
