"""The contract, and what makes this head this head."""

from __future__ import annotations

import pytest
import torch
from hidra_cli.api import check_head
from torch import Tensor

from hidra_prototype_head import PrototypeHead

LABELS = torch.tensor([0, 2, 1, 2, 0, 1, 1])  # of unequal numbers, in no order


def logits(support: Tensor, queries: Tensor, **options: float) -> Tensor:
    head = PrototypeHead(features=5, max_ways=3, **options)
    weights = head.initialize(3, support, LABELS, torch.Generator())
    return head.logits(weights, queries).detach()


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_contract(scale: float) -> None:
    check_head(PrototypeHead, scale=scale)


def test_with_little_shrinkage_it_starts_as_a_prototypical_network() -> None:
    support, queries = torch.randn(7, 5), torch.randn(4, 5)
    means = torch.stack([support[LABELS == label].mean(0) for label in range(3)])
    expected = (-0.7 * torch.cdist(queries, means).square()).softmax(1)
    found = logits(support, queries, scale=0.7, shrinkage=1e-9).softmax(1)
    torch.testing.assert_close(found, expected)


def test_with_much_shrinkage_all_classes_are_alike() -> None:
    found = logits(torch.randn(7, 5), torch.randn(4, 5), shrinkage=1e9).softmax(1)
    torch.testing.assert_close(found, torch.full((4, 3), 1 / 3))


@pytest.mark.parametrize("option", ["scale", "shrinkage"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_value_that_is_not_positive_is_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}=.* is not a positive number"):
        PrototypeHead(features=5, max_ways=3, **{option: value})
