"""Built-in heads. All but `Cosine` are linear: logits = features · weightᵀ + bias, N neurons.

Shapes: n examples, F features, N ways.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidra_cli.api import FastWeights, Head, one_hot

Prior = Annotated[
    bool,
    "add log(1/(N−1)), the log-odds of one class among N, to the starting biases; "
    "useful with --loss sigmoid; without effect under softmax",
]
# Rows much shorter than this keep their direction, but not length 1.
_SHORTEST = 1e-3


class Linear(Head):
    """N neurons; fast weights are `weight` (N, F) and `bias` (N,)."""

    api_version = 1

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        return F.linear(features, fast_weights["weight"], fast_weights["bias"])


class Hidra(Linear):
    """One meta-learned master neuron. A task with any N starts from N copies of it.

    HIDRA, Drumond et al., arXiv 1910.12749. Under softmax cross-entropy the master's value cancels,
    because its copies change all logits equally. The benefit comes from identical neurons. Under
    sigmoid and squared error the value matters.

    Normalize the features of a frozen network: their lengths say little about classes. The scale
    then sets the size of a step in every task.
    """

    identical_neurons = True

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        master: Annotated[
            Literal["tied", "slots"],
            "update of the master: the gradient through all its copies, or the average of the "
            "outer steps of one slot per way (as in the authors' code)",
        ] = "tied",
        start: Annotated[
            Literal["xavier", "zero"], "start of the master; zero is better under sigmoid"
        ] = "xavier",
        prior: Prior = False,
        normalize: Annotated[bool, "give every example's features the length `scale`"] = False,
        scale: Annotated[
            float, "length of normalized features at the start; the outer loop learns it"
        ] = 10.0,
    ) -> None:
        super().__init__(features, max_ways)
        self.master_update = master
        self.prior = prior
        if normalize:
            # The logarithm, so that no step can make the scale negative.
            self.log_scale = nn.Parameter(torch.tensor(math.log(positive("scale", scale))))
        self.normalize = normalize
        weight = torch.zeros(1, features)
        if start == "xavier":
            nn.init.xavier_uniform_(weight)
        if master == "tied":
            self.master_weight = nn.Parameter(weight)
            self.master_bias = nn.Parameter(torch.zeros(1))
            self.common_parameters = ("master_weight", "master_bias")
        else:
            # Between outer steps every slot holds the master's value. Each row of the parameter
            # has separate Adam moments.
            self.slot_weights = nn.Parameter(weight.repeat(max_ways, 1))
            self.slot_biases = nn.Parameter(torch.zeros(max_ways))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        if self.master_update == "tied":
            weight, bias = self.master_weight.expand(ways, -1), self.master_bias.expand(ways)
        else:
            # More ways than slots (at test time) use more copies of the master.
            rows = torch.arange(ways, device=self.slot_weights.device) % self.max_ways
            weight, bias = self.slot_weights[rows], self.slot_biases[rows]
        return {"weight": weight, "bias": bias + _prior(ways) if self.prior else bias}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        if self.normalize:
            features = self.log_scale.exp() * unit(features.to(fast_weights["weight"].dtype))
        return super().logits(fast_weights, features)

    @torch.no_grad()
    def after_outer_step(self, ways: int) -> None:
        """Slot averaging: master += mean over the used slots of (slot − master).

        Only the slots of this meta-batch's ways count. Then every slot is reset to the master.
        """
        if self.master_update == "slots":
            for slots in (self.slot_weights, self.slot_biases):
                slots.copy_(slots[:ways].mean(0, keepdim=True).expand_as(slots))


class Maml(Linear):
    """One meta-learned neuron per way, for a fixed number of ways (Finn et al. 2017).

    The distance between the neurons at the start matters much. With `small` they are nearly
    identical, as in HIDRA. The three starts are those of the authors' code (github.com/cbfinn/maml,
    maml.py): for fully connected networks (`small`, standard deviation 0.01), for miniImageNet
    (`xavier`, uniform) and for Omniglot (`normal`, standard deviation 1).
    """

    any_ways = False

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        start: Annotated[
            Literal["small", "xavier", "normal"],
            "start of the neurons: nearly identical, or far apart as in the authors' networks for "
            "miniImageNet (xavier) and for Omniglot (normal)",
        ] = "small",
    ) -> None:
        super().__init__(features, max_ways)
        weight = torch.empty(max_ways, features)
        if start == "xavier":
            nn.init.xavier_uniform_(weight)
        else:
            nn.init.normal_(weight, std=0.01 if start == "small" else 1.0)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(max_ways))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        return {"weight": self.weight[:ways], "bias": self.bias[:ways]}


def _prior(ways: int) -> float:
    """The log-odds of one among N equally frequent classes; 0 with a single output."""
    return -math.log(ways - 1) if ways > 1 else 0.0


class ProtoMaml(Linear):
    """Neurons start at the class prototypes, the mean support features c_k, and then adapt.

    Proto-MAML, Triantafillou et al. 2020, "Meta-Dataset", arXiv 1903.03096, section 3: weights
    2 c_k, biases −‖c_k‖². Before the first step the logits are those of a prototypical network,
    −‖z − c_k‖², except for a term that all classes share. The meta-gradient flows into the support
    features. There are no meta-parameters.
    """

    needs_support = True

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        scale: Annotated[
            float, "factor of the squared distances; use less than 1 if features are large"
        ] = 1.0,
    ) -> None:
        super().__init__(features, max_ways)
        self.scale = positive("scale", scale)

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        assert support_features is not None  # needs_support
        means = class_means(support_features, support_labels, ways)
        return {
            "weight": 2 * self.scale * means,
            "bias": -self.scale * means.square().sum(1),
        }


class Cosine(Head):
    """Logits s · cos(w_c, z). The neurons of a task start as N copies of one master w.

    Cosine classifiers: Gidaris and Komodakis 2018, arXiv 1804.09458; Chen et al. 2019, arXiv
    1904.04232. There is no bias. As in the first paper, s is learned and starts at 10. It is a
    meta-parameter and does not adapt within a task. Weights (N, F) are normalized in every forward
    pass; the weights that adapt are not.

    Under softmax cross-entropy the first inner step has no gradient for the backbone, as with
    HIDRA. The neurons start equal, so Σ_c (p_c − y_c) = 0 multiplies the common ∂logit/∂z. Before
    this step the master has no effect. After it the master has an effect, unlike HIDRA's. The step
    is orthogonal to w and grows like s / ‖w‖. So the master's length sets how far the neurons turn,
    and its direction is the part of the features that the step does not use.
    """

    api_version = 1
    identical_neurons = True

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        scale: Annotated[float, "s at the start; the outer loop learns it"] = 10.0,
    ) -> None:
        super().__init__(features, max_ways)
        self.master = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, features)))
        # Its logarithm, so that no step can make it negative.
        self.log_scale = nn.Parameter(torch.tensor(math.log(positive("scale", scale))))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        return {"weight": self.master.expand(ways, -1)}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        weight = fast_weights["weight"]
        cosines = F.linear(unit(features.to(weight.dtype)), unit(weight))
        return self.log_scale.exp() * cosines


def unit(rows: Tensor) -> Tensor:
    """Rows (n, F) of length 1. A row of zeros stays, and has finite derivatives of any order.

    Features after a ReLU may all be zero.
    """
    return rows * torch.rsqrt(rows.square().sum(1, keepdim=True) + _SHORTEST**2)


def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Features (n, F) and labels (n,) → the mean features of each class (N, F)."""
    member = one_hot(labels, ways).to(features)  # (n, N)
    return member.T @ features / member.sum(0)[:, None]


class _Fresh(Linear):
    """New neurons for every task. The head has no meta-parameters."""

    like: Tensor

    def __init__(self, features: int, max_ways: int) -> None:
        super().__init__(features, max_ways)
        # New weights use its device and dtype, which are those of the module.
        self.register_buffer("like", torch.empty(0), persistent=False)


class Random(_Fresh):
    """New random neurons for every task, uniform in ±scale·sqrt(6 / (F + 1)). Biases are zero."""

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        scale: Annotated[float, "factor of the Xavier range of one neuron"] = 1.0,
    ) -> None:
        super().__init__(features, max_ways)
        if not scale > 0:
            raise ValueError(f"scale={scale} is not positive; for zero neurons use the head 'zero'")
        self.bound = scale * math.sqrt(6 / (features + 1))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        uniform = torch.rand(ways, self.features, generator=generator) * 2 - 1
        return {
            "weight": (self.bound * uniform).to(self.like).requires_grad_(),
            "bias": self.like.new_zeros(ways).requires_grad_(),
        }


class Zero(_Fresh):
    """All neurons start at zero. Under softmax this equals HIDRA. There are no meta-parameters."""

    identical_neurons = True

    def __init__(self, features: int, max_ways: int, *, prior: Prior = False) -> None:
        super().__init__(features, max_ways)
        self.prior = prior

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        bias = self.like.new_full((ways,), _prior(ways) if self.prior else 0.0)
        return {
            "weight": self.like.new_zeros(ways, self.features).requires_grad_(),
            "bias": bias.requires_grad_(),
        }


def positive(name: str, value: float) -> float:
    """The value of an option that must be a positive number.

    Raises:
        ValueError: it is not positive, or not finite.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} is not a positive number")
    return value
