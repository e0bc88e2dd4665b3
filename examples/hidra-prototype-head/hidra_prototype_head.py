"""A head whose neurons start at the class prototypes, those of small classes shrunk.

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

    A class of few examples has an uncertain mean, so its prototype leans on the mean of the whole
    support set, as if λ more examples of the class lay there:

        c_k = (sum of z over class k + λ · mean of all z) / (examples of class k + λ)

    The logit −s ‖z − c_k‖² is, but for a term that cancels under softmax, a linear layer:
    w_k = 2 s c_k, b_k = −s ‖c_k‖². The outer loop learns λ, and the scale s (Oreshkin et al. 2018,
    "TADAM", arXiv 1805.10123, section 3.1). With λ = 0 and s = 1 this is Proto-MAML, which is the
    built-in head `protomaml`.
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
        shrinkage: Annotated[
            float, "examples' worth of the overall mean in each prototype, at first"
        ] = 0.5,
    ) -> None:
        super().__init__(features, max_ways)
        # Their logarithms, so that no step can make them negative.
        self.log_scale = log_parameter("scale", scale)
        self.log_shrinkage = log_parameter("shrinkage", shrinkage)

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
        scale, shrinkage = self.log_scale.exp(), self.log_shrinkage.exp()
        member = F.one_hot(support_labels, ways).to(z)  # (n, N)
        sums, counts = member.T @ z, member.sum(0)[:, None]
        c = (sums + shrinkage * z.mean(0)) / (counts + shrinkage)
        return {"weight": 2 * scale * c, "bias": -scale * c.square().sum(1)}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        return F.linear(features, fast_weights["weight"], fast_weights["bias"])


def log_parameter(name: str, value: float) -> nn.Parameter:
    """The logarithm of a positive number, as a meta-parameter."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} is not a positive number")
    return nn.Parameter(torch.tensor(math.log(value)))
