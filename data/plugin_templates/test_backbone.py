"""The contract, and what makes this backbone this backbone."""

from __future__ import annotations

import pytest
from hidra_cli.api import check_backbone
from torch import nn

from PluginModule import PluginClass


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 20)])
def test_contract(image_shape: tuple[int, int, int]) -> None:
    check_backbone(PluginClass, image_shape, filters=4)


def test_every_filter_is_a_feature() -> None:
    assert PluginClass((1, 28, 28), nn.BatchNorm2d, filters=5).features == 5
