"""Normalization layers against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hidra_cli.engine.normalization import EpisodeNorm, norm_factory


def test_without_a_reference_it_is_batch_normalization() -> None:
    factory, _ = norm_factory("transductive")
    ours, theirs = factory(5).double(), nn.BatchNorm2d(5).double().train()
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)


def test_with_all_rows_as_reference_it_is_the_same() -> None:
    factory, episode = norm_factory("support")
    layer, x = factory(5).double(), torch.randn(4, 5, 6, 6, dtype=torch.float64)
    whole = layer(x)
    with episode.reference(4):
        assert torch.allclose(layer(x), whole, atol=1e-12)


def test_the_reference_rows_alone_decide_the_statistics() -> None:
    factory, episode = norm_factory("support")
    layer, x = factory(2).double(), torch.randn(6, 2, 3, 3, dtype=torch.float64)
    changed = x.clone()
    changed[4:] += 10
    with episode.reference(4):
        assert torch.equal(layer(x)[:4], layer(changed)[:4])
        assert torch.allclose(layer(x)[:4].mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64))


def test_the_reference_is_forgotten_after_an_error() -> None:
    _, episode = norm_factory("support")
    with pytest.raises(ZeroDivisionError), episode.reference(3):
        raise ZeroDivisionError
    assert episode.reference_rows is None


def test_none_is_a_learned_affine_without_statistics() -> None:
    factory, _ = norm_factory("none")
    layer, x = factory(3), torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), x)
    assert not torch.equal(layer(x + 5), layer(x))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_recorded_statistics_are_used_from_then_on() -> None:
    factory, episode = norm_factory("support")
    layer = factory(3).double()
    assert isinstance(layer, EpisodeNorm)
    support = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    query = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with episode.reference(5):
        expected = layer(torch.cat([support, query]))[5:]
    with episode.record():
        layer(support)
    assert torch.allclose(layer(query), expected, atol=1e-12)
