"""A head that solves a task in closed form: ridge regression on the support features."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from hidra_cli.api import FastWeights, one_hot

from .heads import Linear, positive, unit


class Ridge(Linear):
    """Neurons start at the solution of ridge regression from features to classes, and may adapt.

    R2D2, Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers", arXiv
    1805.08136. With support features X (n, F) and targets Y (n, N), 1 − 1/N for an example's own
    class and −1/N for the others,

        W = argmin Σ_i w_i ‖x_i W − y_i‖² + λ ‖W‖² = Xᵀ (X Xᵀ + λ D)⁻¹ Y        D = diag(1 / w_i)

    by the Woodbury identity. The system has n unknowns for each class, for any number of features.
    The weights w_i = n / (N n_c) give classes of unequal size n_c the same weight; with equal
    classes they are 1. The logits are s · z W + b. The outer loop learns λ, s and b and
    differentiates through the solution. Under softmax b cancels.
    """

    needs_support = True
    common_parameters = ("bias",)

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        penalty: Annotated[float, "λ at the start; the outer loop learns it"] = 0.3,
        scale: Annotated[float, "s at the start; the outer loop learns it"] = 15.0,
        normalize: Annotated[bool, "give every example's features length 1"] = True,
    ) -> None:
        super().__init__(features, max_ways)
        self.normalize = normalize
        # Logarithms, so that no step can make them negative.
        self.log_penalty = nn.Parameter(torch.tensor(math.log(positive("penalty", penalty))))
        self.log_scale = nn.Parameter(torch.tensor(math.log(positive("scale", scale))))
        self.bias = nn.Parameter(torch.zeros(()))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        assert support_features is not None  # needs_support
        x = unit(support_features) if self.normalize else support_features
        member = one_hot(support_labels, ways).to(x)  # (n, N)
        sizes = member.sum(0)[support_labels]
        spread = torch.diag(sizes * (ways / len(x)))  # D
        gram = x @ x.T + self.log_penalty.exp() * spread
        weight = torch.linalg.solve(gram, member - 1 / ways).T @ x
        return {"weight": self.log_scale.exp() * weight, "bias": self.bias.expand(ways)}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        if self.normalize:
            features = unit(features.to(fast_weights["weight"].dtype))
        return super().logits(fast_weights, features)
