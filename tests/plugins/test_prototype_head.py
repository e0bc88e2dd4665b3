"""HIDRA with a share of prototypes: what it equals at each end, and its symmetries, in float64."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.api import Head, check_head
from hidra_cli.engine.inner_loop import InnerLoop, meta_gradient
from hidra_plugins.heads import Cosine, Hidra, ProtoMaml
from hidra_plugins.prototype_head import HidraPrototypes

from ..engine.tools import HEADS, make_batch, make_learner

LABELS = torch.tensor([0, 2, 1, 2, 0, 1, 1])  # classes of unequal sizes, in no order
Normalize = Literal["none", "features", "both"]
NORMALIZE: tuple[Normalize, ...] = ("none", "features", "both")


def features(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator, dtype=torch.float64)


def predictions(head: Head, support: Tensor, labels: Tensor, queries: Tensor, steps: int) -> Tensor:
    """Probabilities (q, N) after inner steps of the head alone."""
    ways = int(labels.max()) + 1
    weights = head.initialize(ways, support, labels, torch.Generator())
    weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
    for _ in range(steps):
        loss = F.cross_entropy(head.logits(weights, support), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        weights = {
            name: (value - 0.3 * gradient).detach().requires_grad_()
            for (name, value), gradient in zip(weights.items(), gradients, strict=True)
        }
    return head.logits(weights, queries).softmax(1).detach()


def like(head: Head, other: Head) -> None:
    """Give both the same master, wherever it is called otherwise."""
    master = getattr(other, "master_weight", None)
    master = other.get_parameter("master") if master is None else master
    with torch.no_grad():
        head.get_parameter("master_weight").copy_(master)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_without_a_share_it_is_hidra(steps: int) -> None:
    other = Hidra(5, 3).double()
    head = HidraPrototypes(5, 3, share=0.0).double()
    like(head, other)
    given = features(7, 0), LABELS, features(4, 1), steps
    torch.testing.assert_close(predictions(head, *given), predictions(other, *given))


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_with_the_whole_share_it_predicts_as_protomaml(steps: int) -> None:
    head, other = HidraPrototypes(5, 3, share=1.0).double(), ProtoMaml(5, 3)
    given = features(7, 0), LABELS, features(4, 1), steps
    torch.testing.assert_close(predictions(head, *given), predictions(other, *given))


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_with_both_normalized_and_no_share_it_is_the_cosine_head(steps: int) -> None:
    other = Cosine(5, 3, scale=7.0).double()
    head = HidraPrototypes(5, 3, share=0.0, normalize="both", scale=7.0).double()
    like(head, other)
    given = features(7, 0), LABELS, features(4, 1), steps
    torch.testing.assert_close(predictions(head, *given), predictions(other, *given))


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_renumbering_the_classes_renumbers_the_predictions(normalize: Normalize) -> None:
    head = HidraPrototypes(5, 3, normalize=normalize).double()
    order = torch.tensor([2, 0, 1])
    support, queries = features(7, 0), features(4, 1)
    first = predictions(head, support, LABELS, queries, 3)
    renumbered = predictions(head, support, order[LABELS], queries, 3)
    torch.testing.assert_close(renumbered[:, order], first)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_repeating_a_class_does_not_move_any_neuron(normalize: Normalize) -> None:
    head = HidraPrototypes(5, 3, normalize=normalize).double()
    support = features(7, 0)
    more = torch.cat([support, support[LABELS == 1]]), torch.cat([LABELS, LABELS[LABELS == 1]])
    once = head.initialize(3, support, LABELS, torch.Generator())
    repeated = head.initialize(3, *more, torch.Generator())
    for name, value in once.items():
        torch.testing.assert_close(repeated[name], value)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_it_keeps_the_contract_and_learns_its_share(
    normalize: Normalize, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_head(HidraPrototypes, normalize=normalize)
    monkeypatch.setitem(HEADS, "prototypes", (HidraPrototypes, {"normalize": normalize}))
    learner, batch = make_learner("prototypes"), make_batch()
    inner = InnerLoop(steps=2, inner_lr=0.1)
    share = learner.head.get_parameter("share")
    meta_gradient(learner, batch, inner)
    assert share.grad is not None
    found, losses = share.grad.item(), []
    for change in (1e-5, -1e-5):
        with torch.no_grad():
            share.add_(change)
        losses.append(meta_gradient(learner, batch, inner).loss)
        with torch.no_grad():
            share.sub_(change)
    assert found == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4)
    assert found != 0


@pytest.mark.parametrize("options", [{"share": float("nan")}, {"scale": 0.0}, {"scale": -1.0}])
def test_values_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        HidraPrototypes(5, 3, **options)
