"""HIDRA with a learned share of prototypes: between identical neurons and Proto-MAML's.

Shapes: n examples, F features, N ways.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidra_cli.api import FastWeights, Head

from .heads import class_means, positive, unit

# Adam moves a parameter by about its rate in each step, so this one is stored in small units.
_SHARE_UNIT = 0.1


class HidraPrototypes(Head):
    """Neurons start as the master neuron plus a share α of their class's centred prototype.

    With the prototype c_k, the mean of the support features of class k, and means over classes,

        w_k = w + 2α (c_k − mean c),   b_k = b − α (‖c_k‖² − mean ‖c‖²).

    α is a meta-parameter. With α = 0 this is HIDRA (Drumond et al., arXiv 1910.12749). Under
    softmax, α = 1 gives the predictions of Proto-MAML (Triantafillou et al., arXiv 1903.03096):
    the two differ by what all classes share, and softmax cancels it. With `normalize=both` the
    logits are cosines times a learned scale, and α = 0 is the head `cosine`; the bias is then left
    out, because equal lengths leave nothing for it to correct.
    """

    api_version = 1
    needs_support = True

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        share: Annotated[float, "α at the start; the outer loop learns it"] = 0.3,
        normalize: Annotated[
            Literal["none", "features", "both"],
            "what gets length 1: nothing, the features, or features and neurons",
        ] = "none",
        scale: Annotated[
            float,
            "factor of the logits at the start; the outer loop learns it; not with normalize=none",
        ] = 10.0,
    ) -> None:
        super().__init__(features, max_ways)
        if not math.isfinite(share):
            raise ValueError(f"share={share} is not a finite number")
        log_scale = math.log(positive("scale", scale))
        self.normalize = normalize
        self.master_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, features)))
        self.share = nn.Parameter(torch.tensor(share / _SHARE_UNIT))
        if normalize != "both":
            self.master_bias = nn.Parameter(torch.zeros(1))
            self.common_parameters = ("master_weight", "master_bias")
        if normalize != "none":
            # Its logarithm, so that no step can make it negative.
            self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        assert support_features is not None  # needs_support
        z = support_features if self.normalize == "none" else unit(support_features)
        prototypes = class_means(z, support_labels, ways)
        share = _SHARE_UNIT * self.share
        weight = self.master_weight + 2 * share * (prototypes - prototypes.mean(0))
        if self.normalize == "both":
            return {"weight": weight}
        lengths = prototypes.square().sum(1)
        return {"weight": weight, "bias": self.master_bias - share * (lengths - lengths.mean())}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        weight = fast_weights["weight"]
        if self.normalize == "none":
            return F.linear(features, weight, fast_weights["bias"])
        z = unit(features.to(weight.dtype))
        if self.normalize == "both":
            return self.log_scale.exp() * F.linear(z, unit(weight))
        return self.log_scale.exp() * F.linear(z, weight, fast_weights["bias"])
