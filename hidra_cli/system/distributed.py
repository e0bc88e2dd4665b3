"""The processes that share a run: what each takes, and what they put together.

One process alone is the trivial case of everything here. All methods but `share` are collective:
every process calls them, in the same order.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hidra_cli.errors import NotFiniteError, RunError, StoppedError, UsageError
from hidra_cli.system.signals import STOPPING
from hidra_cli.system.torchrun import Launch, share

Float64 = npt.NDArray[np.float64]


@dataclass
class World:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: 0 for the one that speaks and writes.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that speaks and writes."""
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

        A gradient that no process has stays None; one that only some have counts as zero in others.

        Args:
            parameters: whose `.grad` is of this process's share of the work.
            numbers: means over this share too.
            weight: how much of the work this share is; those of all processes add up to 1.

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
        """Rows of k numbers, n of them in this process → those of all (sum of n, k), by rank."""
        if self.size == 1:
            return np.array(rows, np.float64)
        shapes = self._all(torch.tensor([len(rows), len(rows[0]) if rows else 0]))
        longest, width = torch.stack(shapes).amax(0).tolist()
        padded = torch.zeros(longest, width, dtype=torch.float64)
        if rows:
            padded[: len(rows)] = torch.tensor(rows, dtype=torch.float64)
        parts = zip(self._all(padded), shapes, strict=True)
        return torch.cat([part[: int(shape[0])] for part, shape in parts]).numpy()

    def _all(self, tensor: Tensor) -> list[Tensor]:
        """This tensor of each process."""
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with _lost_process():
            dist.all_gather(found, tensor)
        return found

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        with _lost_process():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.largest(int(flag)))

    def first_says(self, text: str) -> str:
        """The text of the first process, in all of them."""
        if self.size == 1:
            return text
        content = text.encode() if self.main else b""
        letters = torch.zeros(self.largest(len(content)), dtype=torch.uint8)
        letters[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        with _lost_process():
            dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()

    def check_same(self, what: str, text: str) -> None:
        """Check that all processes have the same of something, and so is a check in all of them.

        Raises:
            UsageError: some have another.
        """
        digest = hashlib.sha256(text.encode()).hexdigest()
        if self.any(self.first_says(digest) != digest):
            raise UsageError(
                f"the processes do not see the same {what}",
                why="each machine reads files and variables of its own",
                fix="give all the same command and environment, and folders that all can read",
            )

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.largest(0)


ALONE = World()


@contextlib.contextmanager
def joined(launched: Launch, device: torch.device) -> Iterator[World]:
    """Join the processes that were started together, until the end of this one.

    Raises:
        RunError: they cannot be reached.
    """
    if launched.size == 1:
        yield ALONE
        return
    # Imported later, it would hold the group beyond its end, and gloo's threads with it, which
    # abort a process that ends before them.
    import torch.distributed.nn

    # What is decided together travels over gloo, gradients of a GPU over NCCL.
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with _lost_process():
        dist.init_process_group(backend, rank=launched.rank, world_size=launched.size)
    try:
        yield World(launched.rank, launched.size)
    except (StoppedError, NotFiniteError) as error:  # decided together, at the same step
        atexit.register(_part, together=True)
        if launched.rank:
            raise SystemExit(error.code) from None  # the first process tells of it
        raise
    except BaseException:
        atexit.register(_part, together=False)
        raise
    else:
        atexit.register(_part, together=True)


def _part(together: bool) -> None:
    """Leave the others, as the last thing a process does.

    A launcher ends all processes when one has ended with an exit code. So, where the end was
    decided together, none is gone before the first one has written and told everything.
    """
    for number in STOPPING:  # no use any more; and raised in here, they would be told of
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(RuntimeError):  # another one is gone: nothing to wait for
        if together:
            dist.all_reduce(torch.zeros(1))
    dist.destroy_process_group()


@contextlib.contextmanager
def _lost_process() -> Iterator[None]:
    """Tell what torch says when a process cannot be reached any more."""
    try:
        yield
    except RuntimeError as exc:
        raise RunError(
            "another process of this run is gone",
            why=str(exc).split("\n")[0],
            fix="see what it said itself",
        ) from exc
