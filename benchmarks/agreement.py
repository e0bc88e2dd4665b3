"""Whether contenders compute one and the same meta-gradient.

The meta-gradient jumps where a ReLU's input passes zero or two pixels of a pooling window are
equal, and several inner steps magnify a jump. In float32, rounding puts two right programs on
either side of one in about half of the tasks, and they differ by anything up to a tenth: the plain
loop differs as much from itself in float64. So

- in float64, where that does not happen, all must agree on the workload's own tasks;
- in float32, all must agree on one of several small draws: a right program meets no jump on some of
  them, and one that is wrong by more than the tolerance is so on all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from benchmarks.contenders import CONTENDERS, REFERENCE, Contender
from benchmarks.peers import Gradients, Run
from benchmarks.workloads import Case
from hidra_cli.errors import RunError

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
# An uneven number, so that parts of a batch that is split are not of one size.
_TASKS = 3
_DRAWS = 24
# Of the whole gradient's length; a parameter with a smaller share is measured by this share of it.
_SMALL_SHARE = 0.01


def relative_error(gradients: Gradients, reference: Gradients) -> float:
    """The largest over meta-parameters, and over all of them together, of ‖g − r‖ / ‖r‖.

    Raises:
        RunError: other parameters, other shapes, or a gradient that is not finite.
    """
    if {n: g.shape for n, g in gradients.items()} != {n: r.shape for n, r in reference.items()}:
        raise RunError(
            "the meta-gradients are of other parameters",
            why=f"{', '.join(gradients)} beside {', '.join(reference)}",
        )
    differences, lengths = [], []
    for name, value in reference.items():
        differences.append((gradients[name].double() - value.double()).norm())
        lengths.append(value.double().norm())
    apart, length = torch.stack(differences), torch.stack(lengths)
    whole = length.norm()
    worst = (apart / length.clamp_min(_SMALL_SHARE * whole)).max()
    error = torch.maximum(worst, apart.norm() / whole).item()
    if not torch.isfinite(apart.norm()):
        raise RunError("a meta-gradient is infinite or not a number")
    return error


def cosine(gradients: Gradients, reference: Gradients) -> float:
    """Of the angle between two gradients, all parameters together."""
    one, other = (
        torch.cat([g[n].double().flatten() for n in reference]) for g in (gradients, reference)
    )
    return torch.cosine_similarity(one, other, dim=0).item()


def reference_run(case: Case) -> Run:
    """The plain loop, in the default memory layout whatever the peers are measured in."""
    return CONTENDERS[REFERENCE].build(replace(case, peers_channels_last=False))


def check(contenders: Mapping[str, Contender], case: Case) -> dict[str, dict[str, float]]:
    """Relative errors against the plain loop, by contender and by "float64" and "float32".

    Contenders of another precision than float32 are left out: see `cosine`.

    Raises:
        RunError: one disagrees; it says which, and by how much.
    """
    exact = {n: c for n, c in contenders.items() if c.precision == "float32"}
    if not case.peers_channels_last:
        exact.pop(REFERENCE, None)  # it would be compared with itself
    errors = {"float64": _float64(exact, case), "float32": _float32(exact, case)}
    for kind, found in errors.items():
        for name, error in found.items():
            allowed = TOLERANCES[getattr(torch, kind)]
            if not error <= allowed:
                raise RunError(
                    f"{name} computes another meta-gradient than {REFERENCE}",
                    why=f"{case.workload.name} in {kind}: the relative error is {error:.2g}, "
                    f"and {allowed:g} is allowed",
                    fix=f"--contender: leave out {name}, whose speed means nothing until it agrees",
                )
    return {name: {kind: found[name] for kind, found in errors.items()} for name in exact}


def _float64(contenders: Mapping[str, Contender], case: Case) -> dict[str, float]:
    work = replace(case.workload, tasks=min(case.workload.tasks, _TASKS))
    case = replace(case, workload=work, dtype=torch.float64)
    reference = reference_run(case)()
    return {
        name: relative_error(contender.build(case)(), reference)
        for name, contender in contenders.items()
    }


def _float32(contenders: Mapping[str, Contender], case: Case) -> dict[str, float]:
    """The smallest error of several draws of few tasks with one query per class."""
    work = replace(case.workload, tasks=min(case.workload.tasks, _TASKS), queries=1)
    errors = dict.fromkeys(contenders, float("inf"))
    for seed in range(_DRAWS):
        apart = [n for n, error in errors.items() if not error <= TOLERANCES[torch.float32]]
        if not apart:
            break
        drawn = replace(case, workload=work, seed=seed)
        reference = reference_run(drawn)()
        for name in apart:
            run = contenders[name].build(drawn)
            run()  # what is left over from one meta-step must not come into the next
            errors[name] = min(errors[name], relative_error(run(), reference))
    return errors
