"""Whether contenders compute one and the same meta-gradient.

The meta-gradient jumps where a ReLU's input passes zero or two pixels of a pooling window are
equal, and several inner steps magnify a jump. In float32, rounding puts two right programs on
either side of one in about half of the tasks, and they differ by anything up to a tenth: the plain
loop differs as much from itself in float64. So

- in float64, where that does not happen, all must agree on the workload's own tasks;
- in float32, all must agree on one of several small draws. One that is wrong by more than the
  tolerance is so on all; to be called wrong it must differ on draws on which the plain loop agrees
  with itself in float64 and with its examples in reverse. Where there are too few of those, it
  stays undecided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from benchmarks.engine.contenders import CONTENDERS, REFERENCE, Contender
from benchmarks.engine.peers import Gradients, Run
from benchmarks.engine.workloads import Case
from hidra_cli.errors import RunError

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
# An uneven number, so that parts of a batch that is split are not of one size.
_TASKS = 3
# In float32: draws of two tasks, all of which count, for contenders with the same kernels round
# alike; then of one task, which meets fewer jumps. Of these, those without a jump count.
_PAIRS, _SINGLES = 4, 24
# Draws without a jump on which one that never agrees is wrong.
_STEADY = 6
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


def check(contenders: Mapping[str, Contender], case: Case) -> dict[str, dict[str, float | None]]:
    """Relative errors against the plain loop, by contender and by "float64" and "float32".

    None where float32 cannot tell.

    Contenders of another precision than float32 are left out: see `cosine`.

    Raises:
        RunError: one disagrees; it says which, and by how much.
    """
    exact = {n: c for n, c in contenders.items() if c.precision == "float32"}
    if not case.peers_channels_last:
        exact.pop(REFERENCE, None)  # it would be compared with itself
    if not exact:
        return {}
    errors: dict[str, dict[str, float | None]] = {}
    for dtype, compare in ((torch.float64, _float64), (torch.float32, _float32)):
        kind = str(dtype).removeprefix("torch.")
        errors[kind] = compare(exact, case)
        for name, error in errors[kind].items():
            if error is not None and not error <= TOLERANCES[dtype]:
                raise RunError(
                    f"{name} computes another meta-gradient than {REFERENCE}",
                    why=f"{case.workload.name} in {kind}: the relative error is {error:.2g}, "
                    f"and {TOLERANCES[dtype]:g} is allowed",
                    fix=f"leave out {name}: its speed means nothing until it agrees",
                )
    return {name: {kind: found[name] for kind, found in errors.items()} for name in exact}


def _float64(contenders: Mapping[str, Contender], case: Case) -> dict[str, float | None]:
    work = replace(case.workload, tasks=min(case.workload.tasks, _TASKS))
    case = replace(case, workload=work, dtype=torch.float64)
    reference = reference_run(case)()
    return {
        name: relative_error(contender.build(case)(), reference)
        for name, contender in contenders.items()
    }


def _float32(contenders: Mapping[str, Contender], case: Case) -> dict[str, float | None]:
    """The smallest error of several draws of few tasks with one query per class."""
    errors, allowed = dict.fromkeys(contenders, float("inf")), TOLERANCES[torch.float32]
    steady = 0
    for index, drawn in enumerate(_draws(case)):
        reference = reference_run(drawn)()
        if index >= _PAIRS and not _is_steady(drawn, reference):
            continue
        for name in [name for name, error in errors.items() if not error <= allowed]:
            run = contenders[name].build(drawn)
            run()  # what is left over from one meta-step must not come into the next
            errors[name] = min(errors[name], relative_error(run(), reference))
        if all(error <= allowed for error in errors.values()):
            break
        steady += index >= _PAIRS or _is_steady(drawn, reference)
        if steady == _STEADY:
            break
    decided = steady == _STEADY
    return {n: error if decided or error <= allowed else None for n, error in errors.items()}


def _draws(case: Case) -> Iterator[Case]:
    for index in range(_PAIRS + _SINGLES):
        work = replace(case.workload, tasks=min(case.workload.tasks, 2), queries=1)
        if index >= _PAIRS:
            work = replace(work, tasks=1)
        yield replace(case, workload=work, seed=case.seed + index)


def _is_steady(drawn: Case, reference: Gradients) -> bool:
    """Whether the plain loop's gradient is that of examples in reverse, and of float64."""
    allowed = TOLERANCES[torch.float32]
    if relative_error(reference_run(replace(drawn, reverse=True))(), reference) > allowed:
        return False  # float64 takes the most time
    return (
        relative_error(reference, reference_run(replace(drawn, dtype=torch.float64))()) <= allowed
    )
