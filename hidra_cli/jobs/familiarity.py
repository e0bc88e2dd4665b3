"""How likely a picture is of one of the classes that were learned, and not of another thing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# By a picture's place between held-out pictures of the classes and pictures of a class that was
# left out; fitted by logistic regression on tasks of miniImageNet's training classes.
INTERCEPT, SLOPE = -0.127, 1.551


def familiarity(support: Tensor, features: Tensor, logits: Tensor, logit_share: float) -> Tensor:
    """How near pictures are to what was learned: (n,).

    The largest cosine to a support picture, and a share of the largest logit.

    Args:
        support: (m, F), of length 1.
        features: (n, F).
        logits: (n, N).
        logit_share: 0 where logits say nothing by their size.
    """
    nearest = (F.normalize(features, dim=1) @ support.T).amax(1)
    return nearest + logit_share * logits.amax(1)


def known_probability(score: Tensor, middle: float, spread: float) -> Tensor:
    """How likely pictures are of one of the classes, where as many are of none: (n,) in 0..1."""
    return (INTERCEPT + SLOPE * (score - middle) / spread).sigmoid()
