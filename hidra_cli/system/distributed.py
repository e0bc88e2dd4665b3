"""The processes that share a run: the part of each process, and sums and means over them.

A single process is the simplest case of everything here. All methods except `share` are
collective: every process calls them, in the same order.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hidra_cli.errors import NotFiniteError, RunError, StoppedError, UsageError
from hidra_cli.system.signals import STOPPING
from hidra_cli.system.torchrun import Rank, share

Float64 = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass
class ProcessGroup:
    """The processes of a run, and the number of this one.

    Attributes:
        rank: 0 for the one that prints and writes files.
        size: the number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes files."""
        return self.rank == 0

    def share(self, whole: range) -> range:
        """This process's part: contiguous, in order of rank; sizes differ by one at most."""
        return share(whole, self.rank, self.size)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors of one device over the processes, in place and as one message.

        Sums are taken in float32 at least, and are the same bits in every process.
        """
        if self.size == 1:
            return
        kind = torch.float32
        for tensor in tensors:
            kind = torch.promote_types(kind, tensor.dtype)
        flat = torch.cat([tensor.detach().reshape(-1).to(kind) for tensor in tensors])
        with _lost_process():
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean_gradient_(
        self, parameters: Iterable[nn.Parameter], numbers: Sequence[float], weight: float
    ) -> list[float]:
        """Weighted means over the processes: of gradients, in place, and of some numbers.

        A gradient that no process has stays None. If only some processes have it, it is zero in the
        others.

        Args:
            parameters: their `.grad` belongs to this process's share of the work.
            numbers: means over the same share.
            weight: the size of this share; the weights of all processes add up to 1.

        Returns:
            The numbers' means.
        """
        if self.size == 1:
            return list(numbers)
        owners = list(parameters)
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach() * weight for p in owners
        ]
        means = owners[0].new_tensor([number * weight for number in numbers])
        holders = owners[0].new_tensor([float(p.grad is not None) for p in owners])
        self.sum_([means, holders, *gradients])
        for parameter, gradient, held in zip(owners, gradients, holders.tolist(), strict=True):
            parameter.grad = gradient if held else None
        return [float(mean) for mean in means.tolist()]

    def gather(self, rows: Sequence[Sequence[float]]) -> Float64:
        """n rows of k numbers in this process → the rows of all processes (sum n, k), by rank."""
        return np.array([row for part in self._gathered(rows) for row in part], np.float64)

    def _gathered(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _lost_process():
            dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with _lost_process():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.largest(int(flag)))

    def broadcast_text(self, text: str) -> str:
        """The text of the first process, returned in every process."""
        if self.size == 1:
            return text
        texts = [text]
        with _lost_process():
            dist.broadcast_object_list(texts, 0)
        return texts[0]

    def check_equal(self, what: str, text: str) -> None:
        """Check that all processes have the same text, so that they will do the same.

        Raises:
            UsageError: the texts differ; it is raised in every process.
        """
        digest = hashlib.sha256(text.encode()).hexdigest()
        if len(set(self._gathered(digest))) > 1:
            raise UsageError(
                f"the processes do not see the same {what}",
                why="each machine reads its own files and variables",
                fix="start all with the same command and environment, and with folders that all "
                "can read",
            )

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.largest(0)


SINGLE = ProcessGroup()


@contextlib.contextmanager
def joined(rank: Rank, device: torch.device) -> Iterator[ProcessGroup]:
    """The group of the processes that were started together. The process leaves it at its end.

    Raises:
        RunError: the processes cannot reach each other.
    """
    if rank.size == 1:
        yield SINGLE
        return
    # If it were imported after the group is made, it would keep the group and gloo's threads alive.
    # They abort a process that ends before them.
    import torch.distributed.nn

    # Decisions are exchanged over gloo, gradients of a GPU over NCCL.
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with _lost_process():
        dist.init_process_group(backend, rank=rank.rank, world_size=rank.size)
    try:
        yield ProcessGroup(rank.rank, rank.size)
    except (StoppedError, NotFiniteError) as error:  # decided together, at the same step
        atexit.register(_leave, together=True)
        if rank.rank:
            raise SystemExit(error.code) from None  # the first process reports it
        raise
    except BaseException:
        atexit.register(_leave, together=False)
        raise
    else:
        atexit.register(_leave, together=True)


def _leave(together: bool) -> None:
    """Leave the group, as the last thing a process does.

    torchrun ends all processes when one has ended with an error. So if all decided to end, each
    waits until the first process has written and printed everything.
    """
    for number in STOPPING:  # the process is stopping: another signal must not raise here
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(RuntimeError):  # another process is gone: do not wait for it
        if together:
            dist.all_reduce(torch.zeros(1))
    dist.destroy_process_group()


@contextlib.contextmanager
def _lost_process() -> Iterator[None]:
    """Turn torch's error about an unreachable process into an error of hidra."""
    try:
        yield
    except RuntimeError as exc:
        raise RunError(
            "another process of this run is gone",
            why=str(exc).split("\n")[0],
            fix="read the messages of that process",
        ) from exc
