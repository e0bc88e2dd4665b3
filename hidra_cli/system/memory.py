"""What the machine has."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

# Of glibc's mallopt: keep up to 2 GB of freed memory, and take no allocation from the system alone.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_KEPT, _LARGEST = 2**31 - 1, 2**30


def available_memory() -> int:
    """Bytes of memory that can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return 4 << 30  # not Linux: a careful guess


def keep_freed_memory() -> bool:
    """Let glibc keep large blocks that were freed: each step asks for the same ones again.

    Else each is given back to the system and comes anew, page by page, which costs a quarter of the
    time of training. Nothing happens where the C library is another.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return False
    done = [set_option(_M_MMAP_THRESHOLD, _LARGEST), set_option(_M_TRIM_THRESHOLD, _MOST_KEPT)]
    return all(done)


def give_back_freed_memory() -> None:
    """Give the system what glibc has kept of freed blocks."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str, process: int | str = "self") -> int:
    """Bytes of a process in memory, now ("VmRSS") or at most ("VmHWM"); 0 if not on Linux."""
    try:
        with open(f"/proc/{process}/status", encoding="ascii") as status:  # noqa: PTH123 (no disk)
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def _largest_resident() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
