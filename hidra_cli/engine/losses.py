"""The losses. The inner and the outer loop use the same one.

Shapes: n examples, N outputs. Targets are labels (n,) in 0..N−1, or values (n, N).
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from hidra_cli.api import one_hot

LossName = Literal["softmax", "sigmoid", "mse"]


def loss(name: LossName, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over examples of one loss, summed over the outputs: a scalar.

    Because of the sum, the gradient of an output does not depend on the number of other outputs.

    Args:
        name: "softmax": cross-entropy over classes that exclude each other. "sigmoid": one yes or
            no per output (one-vs-rest). "mse": squared error; labels become one-hot codes.
        outputs: (n, N), logits or values.
        targets: labels (n,) or values (n, N); softmax takes labels only.
        weights: (n,) with mean 1, for a weighted mean; None for the plain mean.
    """
    if weights is not None:
        return (weights.to(outputs.dtype) * _of_each(name, outputs, targets)).mean()
    if name == "softmax":
        return F.cross_entropy(outputs, targets)
    return _of_each(name, outputs, targets).mean()


def _of_each(name: LossName, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of every example: (n,)."""
    if name == "softmax":
        return F.cross_entropy(outputs, targets, reduction="none")
    wanted = values_of(targets, outputs)
    if name == "sigmoid":
        each = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    else:
        each = F.mse_loss(outputs, wanted, reduction="none")
    return each.sum(1)


def uninformed(name: LossName, ways: int) -> float:
    """The loss of an answer that knows only the number of classes: ln N under softmax.

    It gives every class the probability 1/N, and the output 1/N under sigmoid and squared error.
    """
    if name == "softmax":
        return math.log(ways)
    if name == "mse":
        return (ways - 1) / ways
    others = (ways - 1) * math.log1p(-1 / ways) if ways > 1 else 0.0
    return math.log(ways) - others


def values_of(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets as values (n, N): labels become one-hot codes."""
    if targets.is_floating_point():
        return targets
    return one_hot(targets, outputs.shape[1]).to(outputs.dtype)


def probabilities(name: LossName, outputs: Tensor) -> Tensor:
    """Outputs (n, N) → a score in 0..1 per class.

    Under softmax the scores sum to one. Under sigmoid they are independent. All may be small: the
    picture then shows none of the classes. Squared error has no probabilities. Its outputs are
    clipped.
    """
    if name == "softmax":
        return outputs.softmax(1)
    return outputs.sigmoid() if name == "sigmoid" else outputs.clamp(0, 1)
