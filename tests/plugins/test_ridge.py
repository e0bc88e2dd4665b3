"""The ridge head in float64: its solution, its symmetry, its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hidra_cli.api import FastWeights
from hidra_plugins.ridge import Ridge

UNEVEN = torch.tensor([0, 2, 1, 2, 0, 1, 1, 1])  # classes of unequal sizes, in no order
EVEN = torch.arange(4).repeat_interleave(2)


def features(rows: int, seed: int, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


def solved(head: Ridge, support: Tensor, labels: Tensor) -> FastWeights:
    ways = int(labels.max()) + 1
    weights: FastWeights = head.initialize(ways, support, labels, torch.Generator())
    return weights


def primal(x: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """(Xᵀ Ω X + λ I)⁻¹ Xᵀ Ω Y, as many equations as features: (N, F)."""
    ways = int(labels.max()) + 1
    targets = F.one_hot(labels, ways).double() - 1 / ways
    weights = torch.diag(len(labels) / (ways * labels.bincount()[labels].double()))
    left = x.T @ weights @ x + penalty * torch.eye(x.shape[1], dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(left, x.T @ weights @ targets)
    return solution.T


@pytest.mark.parametrize("labels", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("size", [3, 6, 50])
@pytest.mark.parametrize("penalty", [0.03, 2.0])
def test_it_is_the_solution_with_as_many_equations_as_features(
    labels: Tensor, size: int, penalty: float
) -> None:
    support = features(len(labels), 0, size)
    head = Ridge(size, 5, penalty=penalty, scale=4.0, normalize=False).double()
    torch.nn.init.constant_(head.bias, 0.25)
    weights = solved(head, support, labels)
    torch.testing.assert_close(
        weights["weight"], 4 * primal(support, labels, penalty), rtol=1e-6, atol=1e-6
    )
    queries = features(5, 1, size)
    expected = queries @ weights["weight"].T + 0.25
    torch.testing.assert_close(head.logits(weights, queries), expected)


def test_normalized_features_are_directions() -> None:
    support, queries = features(8, 0), features(5, 1)
    head, plain = (Ridge(6, 5, normalize=n).double() for n in (True, False))
    unit = [F.normalize(x, dim=1) for x in (support, queries)]
    found = head.logits(solved(head, support, UNEVEN), queries)
    expected = plain.logits(solved(plain, unit[0], UNEVEN), unit[1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    again = head.logits(solved(head, 5 * support, UNEVEN), 3 * queries)
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(3)), seed=st.integers(0, 99))
def test_classes_in_another_order_get_the_same_logits(order: list[int], seed: int) -> None:
    support, queries, head = features(8, seed), features(5, seed + 1), Ridge(6, 5).double()
    before = head.logits(solved(head, support, UNEVEN), queries)
    renamed = torch.tensor(order)[UNEVEN]
    after = head.logits(solved(head, support, renamed), queries)
    torch.testing.assert_close(after[:, order], before, rtol=1e-10, atol=1e-10)


def test_a_class_counts_the_same_however_many_copies_its_examples_have() -> None:
    support, queries, head = features(8, 0), features(5, 1), Ridge(6, 5, penalty=1e-9).double()
    rows = torch.tensor([*range(8), *torch.nonzero(EVEN == 2).flatten().tolist() * 3])
    once = head.logits(solved(head, support, EVEN), queries)
    often = head.logits(solved(head, support[rows], EVEN[rows]), queries)
    torch.testing.assert_close(often, once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_equal_finite_differences_of_any_order(normalize: bool) -> None:
    head = Ridge(6, 5, normalize=normalize, scale=2.0).double()
    queries = features(5, 1)
    inputs = (features(8, 0).requires_grad_(), head.log_penalty, head.log_scale, head.bias)

    def loss(support: Tensor, *_: Tensor) -> Tensor:
        logits = head.logits(solved(head, support, UNEVEN), queries)
        return F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]))

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_it_learns_a_task_of_separable_classes_at_any_number_of_ways() -> None:
    head = Ridge(40, 5)
    for ways in (2, 5, 20):
        centres = 3 * features(ways, 7, 40).float()
        labels = torch.arange(ways).repeat_interleave(3)
        support, queries = (centres[labels] + features(len(labels), s, 40) for s in (1, 2))
        logits = head.logits(solved(head, support.float(), labels), queries.float())
        assert (logits.argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_not_positive_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match=r"penalty=.* is not a positive number"):
        Ridge(6, 5, penalty=penalty)
