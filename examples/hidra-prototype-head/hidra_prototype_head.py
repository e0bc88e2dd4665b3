"""A head whose neurons start at the class prototypes, as in Proto-MAML.

Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot Learning", arXiv 1703.05175;
Triantafillou et al. 2020, "Meta-Dataset", arXiv 1903.03096, section 3.

Shapes: n support examples, F features, N ways.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from hidra_cli.api import FastWeights, Head
from torch import Tensor, nn


class PrototypeHead(Head):
    """Neurons that start as a prototypical network and then adapt.

    A prototype is the mean of a class's support features: c_k = mean of z over class k. The
    prototypical network's logit is the negative squared distance,

        −‖z − c_k‖² = 2 c_k·z − ‖c_k‖² − ‖z‖²,

    whose last term is the same for every class and cancels under softmax. What is left is a
    linear layer: w_k = 2 c_k, b_k = −‖c_k‖². Both are multiplied by a scale that the outer loop
    learns (Oreshkin et al. 2018, "TADAM", arXiv 1805.10123, section 3.1).
    """

    api_version = 1
    any_ways = True
    needs_support = True

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        scale: Annotated[
            float, "multiplies the squared distances at first; the outer loop learns it on"
        ] = 0.1,
    ) -> None:
        super().__init__(features, max_ways)
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale={scale} is not a positive number")
        # Its logarithm, so that no step can make it negative.
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        """Weight (N, F) and bias (N,); the meta-gradient flows on into the support features."""
        assert support_features is not None  # needs_support
        # Weights that adapt are of the head's own type, whatever the features come in.
        z = support_features.to(self.log_scale.dtype)
        c = prototypes(z, support_labels, ways)
        scale = self.log_scale.exp()
        return {"weight": 2 * scale * c, "bias": -scale * c.square().sum(1)}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        return F.linear(features, fast_weights["weight"], fast_weights["bias"])


def prototypes(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """The mean feature of each class: features (n, F), labels (n,) in 0..N−1 → (N, F)."""
    member = F.one_hot(labels, ways).to(features)  # (n, N)
    return member.T @ features / member.sum(0)[:, None]
