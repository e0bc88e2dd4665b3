"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib


def stream_key(seed: int, *names: str | int) -> int:
    """A 64-bit key for one independent random stream of a run's seed."""
    text = "/".join(str(part) for part in ("hidra", seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
