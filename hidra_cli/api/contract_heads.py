"""The contract of heads, checked by building one and calling it.

Shapes: n examples, F features, N ways.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.api.contract import Subject, check_declarations
from hidra_cli.api.contract_head_task import (
    CUT,
    HeadTask,
    check_head_task,
    initialized,
    logits_of,
    sources,
)
from hidra_cli.api.contract_tensors import close
from hidra_cli.api.models import FastWeights, Head

_ARGUMENTS = ("features", "max_ways")
_FEATURES, _OTHER_FEATURES = 64, 48  # multiples of what an option may divide them by
_MAX_WAYS, _SHOTS = 4, 2
_NUDGE = 1e-6
_NONE = 1e-9  # a derivative that is zero but for rounding


def check_head_class(
    component: type[Head],
    options: Mapping[str, Any],
    *,
    features: int = _FEATURES,
    max_ways: int = _MAX_WAYS,
) -> None:
    """Check a head in both types, at the numbers of ways that it serves.

    Args:
        component: the class.
        options: as `__init__` takes them.
        features: F.
        max_ways: the largest number of ways among the training tasks.

    Raises:
        ContractError: the first fault.
        ValueError: the class refuses the options.
    """
    subject = Subject(component)
    check_declarations(subject, _ARGUMENTS)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        head = _built(subject, features, max_ways, options)
        _check_tasks(head, features, max_ways)
        head = head.double()
        task = _task(max_ways, torch.float64, features)
        _check_declared(subject, head, task)
        _check_gradients(subject, head, task)
        if head.needs_support:
            _check_order(subject, head, task)
        _check_hooks(subject, head, max_ways)
        try:
            other = _built(subject, _OTHER_FEATURES, max_ways, options)
        except ValueError:
            return  # an option of this head does not go with that number
        check_head_task(other, _task(max_ways, torch.float32, _OTHER_FEATURES))


def _check_tasks(built: Head, features: int, max_ways: int) -> None:
    for dtype in (torch.float32, torch.float64):
        head = copy.deepcopy(built).to(dtype)
        for ways in (2, max_ways, max_ways + 3) if head.any_ways else (max_ways,):
            check_head_task(head, _task(ways, dtype, features))


def _built(subject: Subject, features: int, max_ways: int, options: Mapping[str, Any]) -> Head:
    with subject.calling("__init__", f"{features} features and {max_ways} ways", ValueError):
        head: Head = subject.component(features, max_ways, **options)
    return head


def _task(ways: int, dtype: torch.dtype, features: int) -> HeadTask:
    labels = torch.arange(ways).repeat_interleave(_SHOTS)
    support, query = torch.randn(2, len(labels), features, dtype=dtype).unbind()
    return HeadTask(ways, labels, support.clone().requires_grad_(), query.clone().requires_grad_())


def _check_declared(subject: Subject, head: Head, task: HeadTask) -> None:
    """What the class says of itself is true: identical_neurons and common_parameters."""
    head.eval()
    parameters = dict(head.named_parameters())
    if head.identical_neurons:
        logits = logits_of(subject, head, initialized(subject, head, task), task)
        loss = F.cross_entropy(logits, task.labels)
        (by_features,) = torch.autograd.grad(loss, task.query_leaf, retain_graph=True)
        if not (close(logits, logits[:, :1].expand_as(logits)) and by_features.abs().max() < _NONE):
            raise subject.fault_of_class(
                "declares identical_neurons, but its starting logits differ between classes",
                "identical_neurons = False, or N equal neurons in initialize",
            )
    for name in head.common_parameters:
        if name not in parameters:
            raise subject.fault_of_class(
                f"names '{name}' in common_parameters, which is no parameter of it",
                f"names of {', '.join(parameters) or 'parameters (it has none)'}",
            )
        if _meta_gradient(subject, head, task, parameters[name]) > _NONE:
            raise subject.fault_of_class(
                f"names '{name}' in common_parameters, but it does not move all logits alike: "
                "the outer loop would never train it",
                f"take '{name}' out of common_parameters",
            )


def _meta_gradient(subject: Subject, head: Head, task: HeadTask, parameter: Tensor) -> float:
    """The largest derivative of the loss after one inner step, by a parameter."""
    weights = initialized(subject, head, task)
    loss = F.cross_entropy(logits_of(subject, head, weights, task), task.labels)
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    adapted = {
        name: value - 0.1 * gradient
        for (name, value), gradient in zip(weights.items(), gradients, strict=True)
    }
    after = F.cross_entropy(head.logits(adapted, task.query_leaf * 1.0), task.labels)
    (gradient,) = torch.autograd.grad(after, parameter, allow_unused=True)
    return 0.0 if gradient is None else float(gradient.abs().max())


def _check_gradients(subject: Subject, head: Head, task: HeadTask) -> None:
    """Derivatives are those of the values: a part that is cut off shows as a difference.

    Where the values do not change at all (a rounding, an argmax), the author's gradient stands.
    """
    head.eval()

    def value() -> Tensor:
        support = task.support_leaf * 1.0 if head.needs_support else None
        generator = torch.Generator().manual_seed(task.seed)
        weights = head.initialize(task.ways, support, task.labels, generator)
        logits = head.logits(weights, task.query_leaf * 1.0)
        factors = torch.arange(1.0, logits.numel() + 1, dtype=logits.dtype).view_as(logits).sin()
        return (logits * factors).sum()

    for where, name, source in sources(subject, head, task):
        direction = torch.randn_like(source)
        (gradient,) = torch.autograd.grad(value(), source)
        expected = float((gradient * direction).sum())
        with torch.no_grad():
            before = source.clone()
            ends = [_moved(source, before + sign * _NUDGE * direction, value) for sign in (1, -1)]
            source.copy_(before)
        slope = (ends[0] - ends[1]) / (2 * _NUDGE)
        if abs(slope) > 1e-3 and abs(slope - expected) > 1e-3 * max(abs(slope), abs(expected), 1.0):
            raise subject.fault(
                where,
                f"cuts a part of the gradient by {name}: the logits change by {slope:.4g}, "
                f"their gradient says {expected:.4g}",
                CUT,
            )


def _moved(source: Tensor, to: Tensor, value: Callable[[], Tensor]) -> float:
    source.copy_(to)
    return float(value())


def _check_order(subject: Subject, head: Head, task: HeadTask) -> None:
    """Support examples come in any order, and classes may have unequal numbers of them."""
    ways, features = task.ways, task.support_leaf.shape[1]
    labels = torch.arange(ways).repeat_interleave(torch.arange(ways) % 3 + 1)
    support = torch.randn(len(labels), features, dtype=task.support_leaf.dtype)
    order = torch.randperm(len(labels))

    def start(rows: Tensor, of: Tensor) -> tuple[FastWeights, bool]:
        generator = torch.Generator().manual_seed(task.seed)
        before = generator.get_state()
        weights = head.initialize(ways, rows, of, generator)
        return weights, not torch.equal(before, generator.get_state())

    with subject.calling("initialize", "classes of unequal numbers of examples"):
        sorted_, drew = start(support, labels)
        mixed, _ = start(support[order], labels[order])
    if drew:
        return
    for name, value in sorted_.items():
        if value.shape == mixed[name].shape and not close(mixed[name], value):
            raise subject.fault(
                "initialize",
                f"gives another '{name}' when the support examples come in another order",
                "go by support_labels: member = F.one_hot(support_labels, ways).to(z); "
                "means = member.T @ z / member.sum(0)[:, None]",
            )


def _check_hooks(subject: Subject, head: Head, max_ways: int) -> None:
    """The hooks around an outer step work, and leave parameters as they can be trained."""
    shapes = {name: p.shape for name, p in head.named_parameters()}
    for ways in (2, max_ways) if head.any_ways else (max_ways,):
        for method in ("before_outer_step", "after_outer_step"):
            with subject.calling(method, f"{ways} ways"):
                getattr(head, method)(ways)
            if {name: p.shape for name, p in head.named_parameters()} != shapes:
                raise subject.fault(
                    method, "adds, removes or reshapes parameters", "change their values alone"
                )
            if not all(p.requires_grad and p.isfinite().all() for p in head.parameters()):
                raise subject.fault(
                    method,
                    "leaves a parameter that is not finite or has no gradient",
                    "write to parameters under torch.no_grad(): parameter.copy_(value)",
                )
