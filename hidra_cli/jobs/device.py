"""The device of a command, and the processes that share its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import contextlib

    import torch

    from hidra_cli.system.console import Console
    from hidra_cli.system.distributed import ProcessGroup


def join(
    device: str, console: Console, stack: contextlib.ExitStack
) -> tuple[torch.device, ProcessGroup]:
    """The device of this process, and the processes it was started with, until `stack` ends."""
    from hidra_cli.engine.devices import resolve_device
    from hidra_cli.system.distributed import joined
    from hidra_cli.system.torchrun import this_rank

    rank = this_rank()
    several = rank.size > 1
    place = resolve_device(device, rank.local_rank if several else None)
    if several:
        console.note(f"{rank.size} processes share the tasks; waiting until all are there")
    return place, stack.enter_context(joined(rank, place))
