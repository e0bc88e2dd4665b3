"""What makes each built-in head this head."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from hidra_cli.api import Head
from hidra_plugins.heads import Cosine, Hidra, Maml, ProtoMaml
from hidra_plugins.ridge import Ridge

UNEVEN = torch.tensor([0, 2, 1, 2, 0, 1, 1])  # classes of unequal sizes, in no order


def features(rows: int, seed: int, size: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("start", "spread"), [("small", 0.01), ("xavier", (2 / (800 + 50)) ** 0.5), ("normal", 1.0)]
)
def test_mamls_neurons_start_as_far_apart_as_asked(
    start: Literal["small", "xavier", "normal"], spread: float
) -> None:
    torch.manual_seed(0)
    head = Maml(800, 50, start=start)
    support, labels = torch.zeros(50, 800), torch.arange(50)
    weights = head.initialize(50, support, labels, torch.Generator())
    assert weights["weight"].std(dim=0).mean().item() == pytest.approx(spread, rel=0.03)
    assert weights["weight"].mean().item() == pytest.approx(0, abs=spread / 50)
    assert not weights["bias"].any()


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_protomaml_starts_as_a_prototypical_network(scale: float) -> None:
    support, queries = features(7, 0), features(4, 1)
    head = ProtoMaml(5, 3, scale=scale)
    weights = head.initialize(3, support, UNEVEN, torch.Generator())
    prototypes = torch.stack([support[label == UNEVEN].mean(0) for label in range(3)])
    expected = (-scale * torch.cdist(queries, prototypes).square()).softmax(1)
    torch.testing.assert_close(head.logits(weights, queries).softmax(1), expected)


def test_protomaml_has_the_weights_of_the_paper_and_learns_through_the_prototypes() -> None:
    support = features(7, 0).requires_grad_()
    head = ProtoMaml(5, 3)
    assert not list(head.parameters())
    weights = head.initialize(3, support, UNEVEN, torch.Generator())
    prototypes = torch.stack([support[label == UNEVEN].mean(0) for label in range(3)])
    torch.testing.assert_close(weights["weight"], 2 * prototypes)
    torch.testing.assert_close(weights["bias"], -(prototypes.norm(dim=1) ** 2))
    (gradient,) = torch.autograd.grad(weights["bias"].sum(), support)
    sizes = torch.bincount(UNEVEN)[UNEVEN]
    torch.testing.assert_close(gradient, -2 * prototypes[UNEVEN] / sizes[:, None])


def test_cosine_gives_scaled_cosines_whatever_the_lengths() -> None:
    weight, z = features(3, 0), features(4, 1)
    head = Cosine(5, 3, scale=7.0).double()
    found = head.logits({"weight": weight}, z)
    expected = 7 * torch.nn.functional.cosine_similarity(z[:, None], weight[None], dim=2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    longer = head.logits({"weight": 3 * weight}, 0.5 * z)
    torch.testing.assert_close(longer, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zeros", ["features", "weight", "both"])
def test_cosine_has_finite_derivatives_where_a_length_is_zero(zeros: str) -> None:
    head = Cosine(5, 3).double()
    z = features(4, 1) * (zeros == "weight")
    weight = features(3, 0) * (zeros == "features")
    inputs = [z.requires_grad_(), weight.requires_grad_(), head.log_scale]
    logits = head.logits({"weight": weight}, z)
    assert torch.equal(logits, torch.zeros(4, 3, dtype=torch.float64))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    squares = torch.cat([g.flatten() for g in first]).square()
    second = torch.autograd.grad(squares.sum(), inputs)
    assert all(g.isfinite().all() for g in (*first, *second))


def test_hidra_on_normalized_features_sees_directions_alone() -> None:
    head = Hidra(5, 3, normalize=True, scale=4.0).double()
    weights = {"weight": features(3, 0), "bias": features(1, 2, 3)[0]}
    z = features(4, 1)
    logits = head.logits(weights, z)
    directions = 4 * torch.nn.functional.normalize(z, dim=1)
    expected = directions @ weights["weight"].T + weights["bias"]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.logits(weights, 7 * z), logits, rtol=1e-5, atol=1e-5)
    assert {name for name, _ in Hidra(5, 3).named_parameters()} == {"master_weight", "master_bias"}


@pytest.mark.parametrize(
    ("head", "options"),
    [(Cosine, {}), (ProtoMaml, {}), (Hidra, {"normalize": True}), (Ridge, {})],
)
@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_not_positive_is_refused(
    head: type[Head], options: dict[str, bool], scale: float
) -> None:
    with pytest.raises(ValueError, match="is not a positive number"):
        head(5, 3, scale=scale, **options)  # type: ignore[call-arg]
