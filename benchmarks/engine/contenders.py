"""Who takes part in the engine benchmark. A contender more is an entry more in `CONTENDERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.engine.peers import Gradients, Run, plain, with_higher, with_torchopt
from benchmarks.engine.workloads import Case
from hidra_cli.engine.learner import Precision
from hidra_cli.engine.strategies.base import Loop, Strategy
from hidra_cli.engine.strategies.capture import Captured
from hidra_cli.engine.strategies.cores import Processes, Threads
from hidra_cli.engine.strategies.stacked import Batched
from hidra_cli.errors import UsageError


@dataclass(frozen=True)
class Contender:
    """A way to compute a meta-gradient.

    Attributes:
        build: prepares a case; what it returns computes one meta-gradient when it is called, by
            the names of the learner's parameters.
        about: what it is.
        precision: of its matrix products.
        package: what must be installed for it; None for nothing more.
        on_request: it takes part only if it is named.
    """

    build: Callable[[Case], Run]
    about: str
    precision: Precision = "float32"
    package: str | None = None
    on_request: bool = False

    @property
    def installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None


def ours(
    strategy: type[Strategy], precision: Precision = "float32", **options: Any
) -> Callable[[Case], Run]:
    """One of hidra's strategies, which adds to the meta-parameters' `.grad`."""

    def build(case: Case) -> Run:
        learner, batch, inner = case.learner(precision), case.batch(), case.inner()
        engine = strategy(learner, **options)

        def run() -> Gradients:
            learner.zero_grad(set_to_none=True)
            engine.meta_gradient(batch, inner)
            return {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for name, parameter in learner.named_parameters()
            }

        return run

    return build


# All others are compared with it, and its work is the reference for achieved FLOP/s.
REFERENCE = "plain"
# hidra is measured against the fastest of those that are installed.
LIBRARIES = ("higher", "torchopt")

CONTENDERS: dict[str, Contender] = {
    "plain": Contender(plain, "a plain autograd loop"),
    "plain-bfloat16": Contender(
        partial(plain, bfloat16=True), "the plain loop under autocast", "bfloat16"
    ),
    "higher": Contender(with_higher, "higher's innerloop_ctx", package="higher"),
    "torchopt": Contender(with_torchopt, "torchopt's MetaSGD", package="torchopt"),
    "hidra-loop": Contender(ours(Loop), "one task after another"),
    "hidra-threads": Contender(ours(Threads), "a task per core, on threads"),
    "hidra-threads-recompute": Contender(
        ours(Threads, recompute=True), "a task per core, on threads, inner steps recomputed"
    ),
    "hidra-processes": Contender(ours(Processes), "a task per core, in processes"),
    "hidra-processes-bfloat16": Contender(
        ours(Processes, "bfloat16"), "a task per core, in processes, in bfloat16", "bfloat16"
    ),
    "hidra-batched": Contender(ours(Batched), "all tasks at once"),
    "hidra-captured": Contender(
        ours(Captured), "all tasks at once, traced; on CUDA as one graph", on_request=True
    ),
}


def find_contenders(names: list[str]) -> tuple[dict[str, Contender], dict[str, Contender]]:
    """Those of the names (all, without names) that are installed, and those that are not.

    Raises:
        UsageError: there is none of a name, or none is installed.
    """
    for name in names:
        if name not in CONTENDERS:
            raise UsageError(
                f"there is no contender {name!r}", why="they are " + ", ".join(CONTENDERS)
            )
    chosen = {
        name: contender
        for name, contender in CONTENDERS.items()
        if name in names or not (names or contender.on_request)
    }
    present = {name: contender for name, contender in chosen.items() if contender.installed}
    if not present:
        raise UsageError("none of the contenders is installed", fix=install_hint(chosen))
    missing = {name: contender for name, contender in chosen.items() if name not in present}
    return present, missing


def install_hint(missing: Mapping[str, Contender]) -> str:
    return f"pip install '.[benchmarks]' for {', '.join(missing)}"
