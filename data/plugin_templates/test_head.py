"""The contract, and what makes this head this head."""

from __future__ import annotations

import pytest
import torch
from hidra_cli.api import check_head

from PluginModule import PluginClass


def test_contract() -> None:
    check_head(PluginClass)


def test_two_tasks_start_from_different_neurons() -> None:
    head = PluginClass(features=5, max_ways=3)
    labels = torch.arange(3)
    first, second = (
        head.initialize(3, None, labels, torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert not torch.equal(first["weight"], second["weight"])


def test_a_negative_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="is negative"):
        PluginClass(features=5, max_ways=3, spread=-1.0)
