"""What a call of a head or a backbone must leave as it was, and what its tensors must be."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hidra_cli.api.contract import Subject

# Attributes of torch's own modules that are no state of the author's.
_OF_TORCH = frozenset(vars(nn.Module()))
_DEEPEST = 3
# Sums of other batch sizes come in another order.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


def form(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those left out of the state dictionary too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextlib.contextmanager
def untouched(
    subject: Subject,
    method: str,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    may_draw: bool = False,
) -> Iterator[None]:
    """Check that a call changes nothing of the module, of its inputs and of the random streams.

    Args:
        subject: the class of the module.
        method: that is called.
        module: whose parameters, buffers and attributes must stay.
        inputs: what the call is given, by name.
        may_draw: it may take numbers from torch's generator, as dropout in train() does.

    Raises:
        ContractError: what was changed, or what the call raised.
    """
    held = {name: value.detach().clone() for name, value in state(module).items()}
    attributes = _attributes(module, subject.package)
    copies = {name: value.detach().clone() for name, value in inputs.items()}
    streams = _streams()
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
    with subject.calling(method, f"{shapes or 'these arguments'}"):
        yield
    for name, value in inputs.items():
        if not _same(value, copies[name]):
            raise subject.fault(
                method,
                f"changes '{name}', which it was given",
                f"compute a new tensor: x = x / 2, not x /= 2 (or {name}.clone() first)",
            )
    for name, value in state(module).items():
        if name not in held or not _same(value, held[name]):
            raise subject.fault(
                method,
                f"changes its own '{name}'",
                "give back what was computed, and change no parameter or buffer; "
                "`norm(channels)` stands in for nn.BatchNorm2d",
            )
    after = _attributes(module, subject.package)
    for name in after.keys() | attributes.keys():
        if after.get(name) != attributes.get(name):
            raise subject.fault(
                method,
                f"changes the attribute '{name}': a call would depend on those before it",
                "hand values on in what it gives back (a head: in the fast weights)",
            )
    for name, stream in _streams().items():
        if stream != streams[name] and not (may_draw and name == "torch"):
            raise _stream_fault(subject, method, name)


def _stream_fault(subject: Subject, method: str, name: str) -> Exception:
    if method == "initialize":
        return subject.fault(
            method,
            f"draws from the global generator of {name}",
            "use the generator it is given: torch.randn(n, generator=generator)",
        )
    return subject.fault(
        method,
        f"draws from the global generator of {name}, in evaluation too"
        if name == "torch"
        else f"draws from the global generator of {name}",
        "use dropout that follows the module's mode: nn.Dropout, or F.dropout(x, p, self.training)",
    )


def _streams() -> dict[str, Any]:
    """The states of the generators that a whole process shares."""
    numpy = np.random.get_state(legacy=False)["state"]
    return {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy": (numpy["key"].tobytes(), numpy["pos"]),
        "random": random.getstate(),
    }


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, where a NaN equals itself."""
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _attributes(module: nn.Module, package: str) -> dict[str, Any]:
    """The plain attributes of the author's own modules, in a form that can be compared."""
    state = {}
    for place, part in module.named_modules():
        own = type(part).__module__.partition(".")[0] == package or part is module
        for name, value in vars(part).items() if own else ():
            if name not in _OF_TORCH:
                state[f"{place}.{name}".lstrip(".")] = _comparable(value, _DEEPEST)
    for name, value in vars(type(module)).items():
        if not callable(value) and not name.startswith("__"):
            state[f"{type(module).__name__}.{name}"] = _comparable(value, _DEEPEST)
    return state


def _comparable(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        return (id(value), value.detach().double().nan_to_num().sum().item(), value.shape)
    if isinstance(value, dict) and depth:
        return tuple((repr(key), _comparable(each, depth - 1)) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return (len(value), *(_comparable(each, depth - 1) for each in list(value)[:100]))
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    return id(value)


def close(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding in other orders of sums."""
    scale = max(1.0, float(other.detach().abs().max())) if other.numel() else 1.0
    return torch.allclose(one, other, rtol=0.0, atol=TOLERANCE[other.dtype] * scale)


def check_rows(subject: Subject, method: str, compute: Any, rows: Tensor, results: Tensor) -> None:
    """Check that each row of the results follows from the same row of the input alone.

    Args:
        compute: rows (n, …) → results (n, …).
        rows: n of them, at least 2.
        results: of all of them.

    Raises:
        ContractError: one row alone fails, or a result depends on other rows.
    """
    instead = (
        "compute each row from that row alone: no mean, softmax or normalization over dim 0, "
        "and no squeeze()"
    )
    with subject.calling(method, "one row alone"):
        alone = compute(rows[:1])
    wanted = (1, *results.shape[1:])
    if not isinstance(alone, Tensor) or alone.shape != wanted:
        raise subject.fault(
            method, f"gives {form(alone)} for one row, not a tensor of shape {wanted}", instead
        )
    others = torch.cat([rows[:1], rows[1:].flip(0) * 0.5 + 0.25])
    for what, result in (("alone", alone), ("among other rows", compute(others))):
        if not close(result[0], results[0]):
            raise subject.fault(
                method,
                f"gives another result for a row {what}: it depends on the other rows, so that "
                "images are told apart by their neighbours",
                instead,
            )


def check_result(
    subject: Subject,
    method: str,
    value: object,
    wanted: tuple[int, ...],
    letters: str,
    like: Tensor,
) -> Tensor:
    """A tensor of a shape, of the type of the input, and finite.

    Raises:
        ContractError: it is not.
    """
    if not isinstance(value, Tensor) or value.shape != wanted:
        raise subject.fault(
            method,
            f"gives {form(value)}, not {letters} = {wanted}",
            f"give back one tensor, {letters}",
        )
    if value.dtype != like.dtype:
        raise subject.fault(
            method,
            f"gives {value.dtype} for inputs of {like.dtype}",
            "leave the type as it comes: no .float(), .double() or numpy; new tensors with "
            "dtype=x.dtype, and constants as buffers",
        )
    if not value.isfinite().all():
        raise subject.fault(
            method,
            "gives values that are not finite (infinite or not a number)",
            "keep divisors and logarithms away from zero",
        )
    return value
