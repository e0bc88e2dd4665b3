"""Wrong heads: each is a right one with one mistake that authors make.

Name → (source, what is written in place of what, what is said of it).
"""

from __future__ import annotations

Wrong = tuple[str, dict[str, str], str]

LINEAR = """
import random
import sys
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from hidra_cli.api import Head


class Plugin(Head):
    api_version = 1

    def __init__(self, features, max_ways, *, scale: float = 1.0):
        super().__init__(features, max_ways)
        self.scale = scale
        self.start = nn.Parameter(torch.randn(features))
        self.register_buffer("mean", torch.zeros(features))

    def initialize(self, ways, support_features, support_labels, generator):
        noise = torch.randn(ways, 1, generator=generator).to(self.start)
        return {"weight": self.start * (1 + noise)}

    def logits(self, fast_weights, features):
        return features @ fast_weights["weight"].T
"""

PROTOTYPES = """
import torch
import torch.nn.functional as F
from torch import nn
from hidra_cli.api import Head


class Plugin(Head):
    api_version = 1
    needs_support = True

    def __init__(self, features, max_ways):
        super().__init__(features, max_ways)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def initialize(self, ways, support_features, support_labels, generator):
        member = F.one_hot(support_labels, ways).to(support_features)
        means = member.T @ support_features / member.sum(0)[:, None]
        return {"weight": self.log_scale.exp() * means, "bias": -means.square().sum(1) / 2}

    def logits(self, fast_weights, features):
        return F.linear(features, fast_weights["weight"], fast_weights["bias"])
"""

_VERSION = "    api_version = 1\n"
_INIT = "def __init__(self, features, max_ways, *, scale: float = 1.0):"
_SUPER = "super().__init__(features, max_ways)"
_START = "self.start = nn.Parameter(torch.randn(features))"
_INITIALIZE = "def initialize(self, ways, support_features, support_labels, generator):"
_NOISE = "noise = torch.randn(ways, 1, generator=generator).to(self.start)"
_WEIGHT = 'return {"weight": self.start * (1 + noise)}'
_LOGITS = 'return features @ fast_weights["weight"].T'
_PRODUCT = _LOGITS.removeprefix("return ")
_MEANS = "means = member.T @ support_features / member.sum(0)[:, None]"


def _linear(told: str, **changes: str) -> Wrong:
    old = {
        "version": _VERSION,
        "init": _INIT,
        "call": _SUPER,
        "start": _START,
        "initialize": _INITIALIZE,
        "noise": _NOISE,
        "weight": _WEIGHT,
        "logits": _LOGITS,
    }
    return LINEAR, {old[key]: new for key, new in changes.items()}, told


def _prototypes(told: str, old: str, new: str) -> Wrong:
    return PROTOTYPES, {old: new}, told


HEADS: dict[str, Wrong] = {
    # What the class declares.
    "no-version": _linear("declares no api_version", version="    pass\n"),
    "old-version": _linear("api_version = 0", version="    api_version = 0\n"),
    "no-logits-method": _linear("logits", logits=f"{_LOGITS}\n\n    logits = Head.logits"),
    "positional-option": _linear("takes 'scale' by position", init=_INIT.replace("*, ", "")),
    "options-in-kwargs": _linear(
        "hides its options in **options",
        init="def __init__(self, features, max_ways, *, scale=1.0, **options):",
    ),
    "option-without-type": _linear("with the default 1.0", init=_INIT.replace(": float", "")),
    "option-of-tensors": _linear(
        "which no command line can give", init=_INIT.replace("float = 1.0", "torch.Tensor = None")
    ),
    "option-of-any": _linear(
        "which no command line can give", init=_INIT.replace("float = 1.0", "Any = None")
    ),
    "option-of-a-list": _linear(
        "which no command line can give", init=_INIT.replace("float = 1.0", "list[int] = ()")
    ),
    "default-of-another-type": _linear(
        "with the default 'big'", init=_INIT.replace("1.0", "'big'")
    ),
    "unknown-type": _linear("Missing", init=_INIT.replace("float", "'Missing'")),
    "no-arguments": _linear("does not take features and max_ways", init="def __init__(self):"),
    "no-super": _linear("cannot assign", call="pass"),
    "another-super": _linear("TypeError", call="super().__init__(features)"),
    "exits": _linear("SystemExit", call=f"{_SUPER}\n        sys.exit(0)"),
    "says-identical": _linear(
        "declares identical_neurons", version=f"{_VERSION}    identical_neurons = True\n"
    ),
    "not-common": _linear(
        "does not move all logits alike", version=f"{_VERSION}    common_parameters = ('start',)\n"
    ),
    "no-such-parameter": _linear(
        "which is no parameter of it", version=f"{_VERSION}    common_parameters = ('bias',)\n"
    ),
    "fixed-but-says-any": _linear(
        "not logits (n, N)",
        start=f"{_START}\n        self.rows = nn.Parameter(torch.randn(max_ways, features))",
        weight='return {"weight": self.rows * self.start}',
    ),
    # What initialize gives.
    "no-dict": _linear("not a dict of named tensors", weight="return self.start * (1 + noise)"),
    "no-weights": _linear("gives no weights", weight="return {}"),
    "numpy-weights": _linear(
        "type ndarray", weight='return {"weight": (self.start * noise).detach().numpy()}'
    ),
    "detached": _linear(
        "without a gradient", weight='return {"weight": (self.start * noise).detach()}'
    ),
    "cut-from-the-parameter": _linear(
        "cuts the logits off from the parameter 'start'",
        weight='return {"weight": (self.start * noise).detach().requires_grad_()}',
    ),
    "item": _linear(
        "cuts a part of the gradient",
        weight='return {"weight": self.start * (1 + noise) * self.start.norm().item()}',
    ),
    "no-gradient-at-all": _linear(
        "without a gradient", initialize=f"@torch.no_grad()\n    {_INITIALIZE}"
    ),
    "infinite-weights": _linear("not finite", weight='return {"weight": self.start * noise / 0}'),
    "always-single": _linear(
        "torch.float32 in a module of torch.float64",
        weight='return {"weight": (self.start * (1 + noise)).float()}',
    ),
    "always-double": _linear(
        "torch.float64 in a module of torch.float32",
        weight='return {"weight": (self.start * (1 + noise)).double()}',
    ),
    "global-generator": _linear(
        "draws from the global generator of torch",
        noise="noise = torch.randn(ways, 1).to(self.start)",
    ),
    "numpy-generator": _linear(
        "draws from the global generator of numpy",
        noise="noise = torch.from_numpy(np.random.randn(ways, 1)).to(self.start)",
    ),
    "python-generator": _linear(
        "draws from the global generator of random",
        noise="noise = torch.full((ways, 1), random.random()).to(self.start)",
    ),
    "seeds-the-generator": _linear(
        "seeds the generator", noise=f"generator.manual_seed(0)\n        {_NOISE}"
    ),
    "undeclared-support": _linear(
        "needs_support = True", noise="noise = support_features.mean(1)[:ways, None]"
    ),
    # What is kept from call to call.
    "counts-calls": _linear(
        "changes the attribute 'calls'",
        start=f"{_START}\n        self.calls = 0",
        noise=f"self.calls += 1\n        {_NOISE}",
    ),
    "keeps-its-weights": _linear(
        "changes the attribute 'kept'",
        weight='self.kept = self.start * (1 + noise)\n        return {"weight": self.kept}',
    ),
    "running-mean": _linear(
        "changes its own 'mean'",
        logits=f"self.mean.mul_(0.9).add_(features.detach().mean(0))\n        {_LOGITS}",
    ),
    "batch-norm": _linear(
        "changes its own 'norm.running_mean'",
        start=f"{_START}\n        self.norm = nn.BatchNorm1d(features)",
        logits='return self.norm(features) @ fast_weights["weight"].T',
    ),
    "changes-the-labels": _linear(
        "changes 'support_labels'", noise=f"support_labels += 1\n        {_NOISE}"
    ),
    # What logits gives.
    "transposed": _linear("not logits (n, N)", logits=f"return ({_PRODUCT}).T"),
    "nothing": _linear("gives None", logits="pass"),
    "probabilities": _linear("gives probabilities", logits=f"return ({_PRODUCT}).softmax(1)"),
    "softmax-over-images": _linear(
        "depends on the other rows", logits=f"return ({_PRODUCT}).log_softmax(0)"
    ),
    "centred": _linear(
        "depends on the other rows",
        logits='return (features - features.mean(0)) @ fast_weights["weight"].T',
    ),
    "squeezed": _linear("for one row", logits=f"return ({_PRODUCT}).squeeze()"),
    "argmax": _linear(
        "gives logits without a gradient",
        logits=f"z = {_PRODUCT}\n        return F.one_hot(z.argmax(1), z.shape[1]).to(features)",
    ),
    "dropout-in-evaluation": _linear(
        "in evaluation too", logits='return F.dropout(features, 0.5) @ fast_weights["weight"].T'
    ),
    "unused-weight": _linear(
        "does not depend on the fast weight 'spare'",
        weight='return {"weight": self.start * (1 + noise), "spare": self.start * 2}',
    ),
    "cut-features": _linear(
        "cuts the logits off from the features",
        logits='return features.detach() @ fast_weights["weight"].T',
    ),
    "changes-features": _linear("changes 'features'", logits=f"features /= 2\n        {_LOGITS}"),
    "pops-a-weight": _linear(
        "takes some away", logits='return features @ fast_weights.pop("weight").T'
    ),
    "frozen-parameter": _linear(
        "has the parameter 'start' without a gradient",
        start=f"{_START}.requires_grad_(False)",
        weight='return {"weight": (self.start * (1 + noise)).requires_grad_()}',
    ),
    "hidden-parameters": _linear(
        "in a module of torch.float64",
        start=f"{_START}\n        self.more = [nn.Parameter(torch.randn(features))]",
        weight='return {"weight": self.more[0] * (1 + noise).float() + 0 * self.start.float()}',
    ),
    "one-size-of-features": _linear("fails for", start=_START.replace("features", "64")),
    "raises-in-the-hook": _linear(
        "OSError: in the hook",
        logits=f"{_LOGITS}\n\n    def after_outer_step(self, ways):\n        "
        "raise OSError('in the hook')",
    ),
    # With the support set.
    "detached-support": _prototypes(
        "gives 'bias' without a gradient",
        _MEANS,
        _MEANS.replace("support_features /", "support_features.detach() /"),
    ),
    "half-detached-support": _prototypes(
        "cuts a part of the gradient by the support features",
        "-means.square().sum(1) / 2",
        "(-means.detach().square().sum(1) / 2).requires_grad_()",
    ),
    "changes-support": _prototypes(
        "changes 'support_features'", _MEANS, f"support_features /= 2\n        {_MEANS}"
    ),
    "sorted-classes-of-one-size": _prototypes(
        "unequal numbers of examples",
        _MEANS,
        "means = support_features.reshape(ways, -1, support_features.shape[1]).mean(1)",
    ),
    "order-of-examples": _prototypes(
        "come in another order",
        _MEANS,
        f"{_MEANS}\n        means = means + support_features[0]",
    ),
}
