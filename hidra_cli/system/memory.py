"""Memory: free memory, the memory of processes, and how the C library keeps freed blocks."""

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
        process: its number; None for this process.

    Returns:
        The memory now, if the system records no peak; 0 if the process is gone.
    """
    # Not getrusage: on Linux its peak includes memory of the parent process.
    with suppress(OSError, TypeError):
        status = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
    with suppress(psutil.Error):
        memory = psutil.Process(process).memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    return 0


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks: each step needs the same blocks again.

    Otherwise each block goes back to the system and is mapped again, page by page. That costs a
    quarter of the time of training. The function does nothing with another C library.

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
