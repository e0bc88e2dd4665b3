"""One task through a head: what initialize and logits give, and what they leave as it was.

Shapes: n examples, F features, N ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.api.contract import Subject
from hidra_cli.api.contract_tensors import check_result, check_rows, close, form, untouched
from hidra_cli.api.models import FastWeights, Head

CUT = "write no .item(), .detach(), .data, numpy or argmax on the way, and no torch.no_grad()"


@dataclass(frozen=True)
class HeadTask:
    """One task for a head: features (n, F), of which initialize and logits get their own.

    They have a history, as the engine's have, and `leaf` is where it begins.
    """

    ways: int
    labels: Tensor
    support_leaf: Tensor
    query_leaf: Tensor
    seed: int = 7

    def other(self) -> HeadTask:
        """Another task of the same ways."""
        return HeadTask(
            self.ways,
            self.labels,
            (self.support_leaf.detach() + 0.5).requires_grad_(),
            self.query_leaf,
            self.seed + 1,
        )


def check_head_task(head: Head, task: HeadTask) -> None:
    """Send one task through a head: shapes, types, values, gradients, and that no trace is left.

    Args:
        head: in the mode, train() or eval(), that it will be used in.
        task: on the head's device.

    Raises:
        ContractError: the first fault.
    """
    subject = Subject(type(head))
    training = head.training
    head.eval()
    weights = initialized(subject, head, task)
    again = initialized(subject, head, task)
    for name, value in weights.items():
        if not torch.equal(value, again[name]):
            raise subject.fault(
                "initialize",
                f"gives another '{name}' for the same task and generator",
                "draw from the generator it is given, and from nothing else",
            )
    logits = logits_of(subject, head, weights, task)
    _check_effect(subject, head, weights, logits, task)
    initialized(subject, head, task.other())
    if not torch.equal(logits_of(subject, head, weights, task), logits):
        raise subject.fault(
            "logits",
            "gives other logits after another task was initialized",
            "use the fast weights it is given, and keep nothing of a task in self",
        )
    query = task.query_leaf.detach()
    check_rows(subject, "logits", lambda rows: head.logits(weights, rows), query, logits.detach())
    head.train()
    logits_of(subject, head, weights, task, may_draw=True)
    head.train(training)


def initialized(subject: Subject, head: Head, task: HeadTask) -> FastWeights:
    """The fast weights of a task, checked one by one."""
    support = task.support_leaf * 1.0 if head.needs_support else None
    inputs = {"support_labels": task.labels.clone()}
    inputs |= {} if support is None else {"support_features": support}
    generator = torch.Generator().manual_seed(task.seed)
    with untouched(subject, "initialize", head, inputs):
        weights = head.initialize(task.ways, support, inputs["support_labels"], generator)
    if generator.initial_seed() != task.seed:
        raise subject.fault(
            "initialize",
            "seeds the generator it is given: every task would start alike",
            "draw from it as it is",
        )
    if not isinstance(weights, dict):
        raise subject.fault(
            "initialize",
            f"gives {form(weights)}, not a dict of named tensors",
            'return {"weight": weight}',
        )
    if not weights:
        raise subject.fault(
            "initialize",
            "gives no weights: nothing could adapt",
            'return at least one tensor, {"weight": weight}; `.requires_grad_()` makes one of a '
            "constant",
        )
    for name, value in weights.items():
        _check_weight(subject, name, value, task.support_leaf.dtype)
    return weights


def _check_weight(subject: Subject, name: str, value: object, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise subject.fault(
            "initialize",
            f"gives '{name}' as {form(value)}, not as a tensor",
            "compute with torch; what numpy computes has no gradient",
        )
    if value.dtype != dtype:
        raise subject.fault(
            "initialize",
            f"gives '{name}' as {value.dtype} in a module of {dtype}",
            "make it of the type of a parameter, of a buffer or of the features: "
            "noise.to(self.mean), torch.zeros(n, dtype=x.dtype)",
        )
    if not value.requires_grad:
        raise subject.fault(
            "initialize",
            f"gives '{name}' without a gradient: it cannot adapt",
            f"{CUT}; a constant is given as `value.requires_grad_()`",
        )
    if not value.isfinite().all():
        raise subject.fault(
            "initialize",
            f"gives '{name}' with values that are not finite before the first step",
            "keep divisors and logarithms away from zero",
        )


def logits_of(
    subject: Subject, head: Head, weights: FastWeights, task: HeadTask, *, may_draw: bool = False
) -> Tensor:
    features = task.query_leaf * 1.0
    names = set(weights)
    with untouched(subject, "logits", head, {**weights, "features": features}, may_draw=may_draw):
        logits = head.logits(weights, features)
    if set(weights) != names:
        raise subject.fault(
            "logits",
            "adds fast weights to those it is given, or takes some away",
            'read them: fast_weights["weight"], never pop or set',
        )
    wanted = (len(features), task.ways)
    return check_result(subject, "logits", logits, wanted, "logits (n, N)", features)


def _check_effect(
    subject: Subject, head: Head, weights: FastWeights, logits: Tensor, task: HeadTask
) -> None:
    """Every fast weight, parameter and feature has an effect that a gradient shows, twice."""
    if not logits.requires_grad:
        raise subject.fault("logits", "gives logits without a gradient: nothing can adapt", CUT)
    if bool((logits >= 0).all()) and close(logits.sum(1), torch.ones_like(logits[:, 0])):
        raise subject.fault(
            "logits", "gives probabilities, not logits", "leave the softmax out: the loss has it"
        )
    loss = F.cross_entropy(logits, task.labels)
    with subject.calling("logits", "a gradient through it"):
        gradients = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True
        )
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            raise subject.fault(
                "logits",
                f"does not depend on the fast weight '{name}': it has no effect on the logits",
                f"use fast_weights['{name}'], or leave it out of initialize. {CUT}",
            )
        if not gradient.isfinite().all():
            raise subject.fault(
                "logits",
                f"has a gradient by '{name}' that is not finite",
                "keep divisors, roots and logarithms away from zero",
            )
    for where, name, source in sources(subject, head, task):
        (gradient,) = torch.autograd.grad(loss, source, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise subject.fault(
                where,
                f"cuts the logits off from {name}: it could never be trained",
                f"{CUT}; what is not to be trained is a buffer",
            )
    _check_second_order(subject, head, weights, gradients, task)


def sources(subject: Subject, head: Head, task: HeadTask) -> Iterator[tuple[str, str, Tensor]]:
    """The method that uses it, the name and the tensor of all that the outer loop trains."""
    for name, parameter in head.named_parameters():
        if not parameter.requires_grad:
            raise subject.fault(
                "__init__",
                f"has the parameter '{name}' without a gradient: nothing trains it",
                f'self.register_buffer("{name}", value) for what is not trained',
            )
        yield "initialize", f"the parameter '{name}'", parameter
    if head.needs_support:
        yield "initialize", "the support features, and so from the backbone", task.support_leaf
    yield "logits", "the features, and so from the backbone", task.query_leaf


def _check_second_order(
    subject: Subject,
    head: Head,
    weights: FastWeights,
    gradients: tuple[Tensor, ...],
    task: HeadTask,
) -> None:
    """A gradient through one inner step, which `--order 2` takes."""
    with subject.calling("logits", "a gradient of its gradient (--order 2)"):
        adapted = {
            name: value - 0.01 * gradient
            for (name, value), gradient in zip(weights.items(), gradients, strict=True)
        }
        loss = F.cross_entropy(head.logits(adapted, task.query_leaf * 1.0), task.labels)
        trained = [task.query_leaf, *head.parameters()]
        seconds = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    if not all(second.isfinite().all() for second in seconds if second is not None):
        raise subject.fault(
            "logits",
            "has a gradient of its gradient that is not finite (--order 2 takes it)",
            "keep roots and norms away from zero: x / (x.norm() + 1e-6) has no second one at zero",
        )
