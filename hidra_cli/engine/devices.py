"""The choice of a device, its memory, and errors when it is full."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hidra_cli.errors import DeviceError
from hidra_cli.system.memory import peak_resident_memory, resident_memory


def resolve_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """ "auto" (CUDA where there is one, else the CPU) or a torch device name.

    Args:
        name: the name of the device.
        local_rank: the number of this process on this machine, if there are several. "auto" and
            "cuda" then mean its own GPU.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" or local_rank is None:
            return torch.device(name)
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as exc:
        raise DeviceError(
            f"the device '{name}' cannot be used",
            why=str(exc).split("\n")[0],
            fix="--device cpu, or --device auto, which takes a GPU if there is one",
        ) from exc
    return device


def has_tf32(device: torch.device) -> bool:
    """Whether the device can compute float32 matrix products in TF32 (10 bits of mantissa)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_float32(precision: str, device: torch.device) -> None:
    """Choose TF32 or full float32 for float32 products and convolutions on CUDA, in this process.

    PyTorch's default is TF32 for convolutions only. `torch.compile` can read these two switches
    after they were set, and no others.
    """
    if device.type != "cuda":
        return
    tf32 = precision == "tf32"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions warn that the second switch has a successor
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32


def free_memory(device: torch.device) -> int:
    """Free bytes on a GPU. 0 for the CPU, because its memory holds the data already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def peak_memory(device: torch.device, others: Sequence[int] = ()) -> int:
    """The most bytes that this process has held: on the device; for the CPU in main memory.

    Args:
        others: process numbers whose main memory is added.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_memory() + sum(map(peak_resident_memory, others))


def held_memory(device: torch.device) -> int:
    """The bytes that this process holds now: on the device; for the CPU in main memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_memory()


def reset_peak_memory(device: torch.device) -> None:
    """Start `peak_memory` again from here, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


# How meta-training can use less memory.
_LESS_MEMORY = (
    "--graphs recompute (memory grows with steps only at order 2), --order 1 or fewer --steps; "
    "--micro-batch 1 or --strategy loop (fewer tasks at once); or lower --ways, --queries or "
    "--bb-opt filters=…"
)


@contextmanager
def memory_errors(fix: str = _LESS_MEMORY) -> Iterator[None]:
    """Turn exhausted memory of the device or the machine into an error that names helpful settings.

    Raises:
        DeviceError: instead of torch's out-of-memory error.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise _out_of_memory(exc, fix) from exc
    except RuntimeError as exc:
        if "can't allocate memory" not in str(exc):
            raise
        raise _out_of_memory(exc, fix) from exc


def _out_of_memory(exc: BaseException, fix: str) -> DeviceError:
    return DeviceError(
        "out of memory",
        why=str(exc).split("\n")[0] or "the machine has no memory left",
        fix=fix,
    )
