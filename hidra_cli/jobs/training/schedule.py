"""What follows the iteration: the rates, and the inner loop of a step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hidra_cli.engine.inner_loop import InnerLoop
from hidra_cli.engine.learner import Learner
from hidra_cli.settings.schema import OuterSettings, Settings


def outer_scale(outer: OuterSettings, iteration: int) -> float:
    """The factor of Adam's rates in the step after `iteration` steps."""
    if outer.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * iteration / outer.iterations))


def inner_at(inner: InnerLoop, settings: Settings, iteration: int) -> InnerLoop:
    """The inner loop of the step after `iteration` steps.

    The order is 1 at first where the settings say so. The shares of the multi-step loss (MAML++,
    Antoniou et al. 2019) move linearly to the last inner step.
    """
    steps, until = inner.steps, settings.outer.multi_step
    if iteration < settings.inner.second_order_from:
        inner = replace(inner, order=1)
    if iteration < until and steps > 1:
        earlier = (1 - iteration / until) / steps
        inner = replace(inner, shares=(0.0, *[earlier] * (steps - 1), 1 - earlier * (steps - 1)))
    return inner


def heaviest_inner(inner: InnerLoop, outer: OuterSettings) -> InnerLoop:
    """The inner loop of the steps that take the most memory."""
    steps = inner.steps
    if not outer.multi_step or steps < 2:
        return inner
    return replace(inner, shares=(0.0, *[1 / steps] * steps))


def parameter_groups(learner: Learner, outer: OuterSettings) -> list[dict[str, Any]]:
    """The meta-parameters and their rates, in the order of `named_parameters`.

    Learned inner rates are last, and move at a rate of their own.
    """
    rates = [] if learner.rates is None else list(learner.rates.parameters())
    others = list(learner.parameters())[: -len(rates) or None]
    groups = [(others, outer.outer_lr), (rates, outer.rates_lr)]
    return [{"params": group, "lr": lr, "initial_lr": lr} for group, lr in groups if group]
