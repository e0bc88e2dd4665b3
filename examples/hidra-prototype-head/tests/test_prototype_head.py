"""The contract, and what makes this head this head."""

from __future__ import annotations

import pytest
import torch
from hidra_cli.api import check_head

from hidra_prototype_head import PrototypeHead, prototypes


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_contract(scale: float) -> None:
    check_head(PrototypeHead, scale=scale)


def test_before_the_first_step_it_is_a_prototypical_network() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 2, 1, 2, 0, 1, 1])  # of unequal numbers, in no order
    support, queries = torch.randn(7, 5), torch.randn(4, 5)
    head = PrototypeHead(features=5, max_ways=3, scale=0.7)
    weights = head.initialize(3, support, labels, torch.Generator())
    distances = torch.cdist(queries, prototypes(support, labels, 3)).square()
    expected = (-0.7 * distances).softmax(1)
    torch.testing.assert_close(head.logits(weights, queries).softmax(1), expected)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="is not a positive number"):
        PrototypeHead(features=5, max_ways=3, scale=scale)
