"""Memory: what is free, what processes hold, and how the C library keeps it."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import psutil

# Parameters of glibc's mallopt: keep up to 2 GB of freed memory; map no allocation by itself.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_KEPT, _LARGEST = 2**31 - 1, 2**30


def available_memory() -> int:
    """Bytes of memory that can be taken without swapping."""
    return int(psutil.virtual_memory().available)


def resident_memory() -> int:
    """Bytes that this process has in memory."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_memory(process: int | None = None) -> int:
    """The most bytes that a process had in memory.

    Args:
        process: its number; this one without it.

    Returns:
        What it has now, where the system keeps no peak; 0 where the process is gone.
    """
    # Not getrusage: on Linux its peak begins with what the parent had held.
    with suppress(OSError, TypeError):
        status = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
    with suppress(psutil.Error):
        memory = psutil.Process(process).memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    return 0


def keep_freed_memory() -> bool:
    """Let glibc keep large blocks that were freed: each step asks for the same ones again.

    Otherwise each goes back to the system and is mapped again, page by page, which costs a quarter
    of the time of training. Does nothing with another C library.

    Returns:
        Whether glibc keeps them.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return False
    done = [set_option(_M_MMAP_THRESHOLD, _LARGEST), set_option(_M_TRIM_THRESHOLD, _MOST_KEPT)]
    return all(done)


def give_back_freed_memory() -> None:
    """Return the freed blocks that glibc keeps to the system."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
