"""The number of this process among several, from the variables that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hidra_cli.errors import UsageError

S = TypeVar("S", bound=Sequence[Any])

_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """One of `size` processes that were started together.

    Attributes:
        rank: its number among all, 0 for the one that prints and writes files.
        size: the number of processes on all machines.
        local_rank: its number among the processes of its machine; it selects the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0


def share(whole: S, index: int, number: int) -> S:
    """Part `index` of `number` contiguous parts of a sequence; sizes differ by one at most."""
    each, more = divmod(len(whole), number)
    first = index * each + min(index, more)
    return whole[first : first + each + (index < more)]  # type: ignore[return-value]


def this_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """The rank from RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*. Without them, a single process.

    Raises:
        UsageError: the variables contradict each other.
    """
    names = ("RANK", "WORLD_SIZE")
    if not all(environ.get(name) for name in (*names, *_MEETING_PLACE)):
        return Rank()
    variables = {name: environ.get(name, "0") for name in (*names, "LOCAL_RANK")}
    try:
        rank, size, local_rank = map(int, variables.values())
        if not 0 <= rank < size or local_rank < 0:
            raise ValueError("a rank is one of 0 to WORLD_SIZE − 1")
    except ValueError as exc:
        text = ", ".join(f"{name}={value!r}" for name, value in variables.items())
        raise UsageError(
            "the environment does not say which process this is",
            why=f"{text}: {exc}",
            fix="start it with torchrun, or unset these variables",
        ) from exc
    return Rank(rank, size, local_rank) if size > 1 else Rank()
