"""One small task through a learner before its first step: a plugin's fault is told as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.api import Head, registry
from hidra_cli.engine.learner import Learner
from hidra_cli.errors import HidraError, PluginError
from hidra_cli.settings.schema import ModelSettings

_SHOTS = 2


def check_learner(
    learner: Learner, model: ModelSettings, image_shape: tuple[int, int, int], ways: int
) -> None:
    """Send a random task of N ways through backbone and head, and its gradient back.

    Raises:
        PluginError: what one of them gives breaks the contract; says which, and how.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        labels = torch.arange(ways).repeat_interleave(_SHOTS)
        images = torch.rand(len(labels), *image_shape)
        with _contract_of(registry.find("backbone", model.backbone)):
            features = learner.features(dict(learner.backbone.named_parameters()), images)
            _check_features(features, (len(labels), learner.backbone.features))
        with _contract_of(registry.find("head", model.head)):
            full = features.to(torch.get_default_dtype())  # less, under autocast
            _check_head(learner.head, full, labels, ways)


class _BrokenError(Exception):
    """What is wrong, in the words of the contract."""


@contextlib.contextmanager
def _contract_of(plugin: registry.Plugin) -> Iterator[None]:
    try:
        yield
    except HidraError:
        raise
    except Exception as exc:
        told = str(exc) if isinstance(exc, _BrokenError) else f"{type(exc).__name__}: {exc}"
        raise PluginError(
            f"{plugin.label} breaks its contract",
            why=told,
            fix=f"hidra_cli.api.check_{plugin.kind} shows its author where; "
            + registry.blame(plugin),
        ) from exc


def _check_features(features: object, wanted: tuple[int, int]) -> None:
    if not isinstance(features, Tensor) or features.shape != wanted:
        raise _BrokenError(f"forward gives {_form(features)}, not features (n, F) = {wanted}")
    if not features.isfinite().all():
        raise _BrokenError("features of random images are not finite")


def _check_head(head: Head, features: Tensor, labels: Tensor, ways: int) -> None:
    given = features if head.needs_support else None
    weights = head.initialize(ways, given, labels, torch.Generator().manual_seed(0))
    if not isinstance(weights, dict):
        raise _BrokenError(f"initialize gives {_form(weights)}, not a dict of named tensors")
    if not weights:
        raise _BrokenError("initialize gives no weights: nothing could adapt")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise _BrokenError(f"the fast weight '{name}' is {_form(value)}, not a tensor")
        if not value.requires_grad:
            raise _BrokenError(f"the fast weight '{name}' cannot be differentiated by")
        if not value.isfinite().all():
            raise _BrokenError(f"the fast weight '{name}' is not finite before the first step")
    logits = head.logits(weights, features)
    wanted = len(labels), ways
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        raise _BrokenError(f"logits gives {_form(logits)}, not logits (n, N) = {wanted}")
    loss = F.cross_entropy(logits.float(), labels)
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, found, strict=True):
        if gradient is None:
            raise _BrokenError(f"the fast weight '{name}' has no effect on the logits")


def _form(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"
