"""Inner rates that are meta-learned: one per layer and step (LSLR, Antoniou et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Rates(NamedTuple):
    """α of one inner step, for each weight of the body by name and for the head."""

    body: Mapping[str, float | Tensor]
    head: float | Tensor


class LearnedRates(nn.Module):
    """α > 0 for each of S steps and each weight tensor of the body, and for the head.

    They are meta-parameters and are stored as logarithms, so an outer step multiplies a rate.

    Args:
        steps: S in training; later steps use the rates of the last step.
        names: the names of the body's weights.
        start: the value of every α before training.
    """

    def __init__(self, steps: int, names: Sequence[str], start: float) -> None:
        super().__init__()
        self.names = tuple(names)
        rows = max(steps, 1)
        self.log_body = nn.Parameter(torch.full((rows, len(self.names)), math.log(start)))
        self.log_head = nn.Parameter(torch.full((rows,), math.log(start)))

    def at(self, step: int) -> Rates:
        """The rates of step 0, 1, …, differentiable in the logarithms."""
        row = min(step, len(self.log_head) - 1)
        body = self.log_body[row].exp()
        return Rates(dict(zip(self.names, body.unbind(), strict=True)), self.log_head[row].exp())
