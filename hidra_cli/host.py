"""What the machine has."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int:
    """Bytes of memory that can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return 4 << 30  # not Linux: a careful guess
