"""How large a task is."""

from __future__ import annotations

from typing import NamedTuple


class TaskShape(NamedTuple):
    """The size of a task.

    Attributes:
        ways: classes N, or outputs of a function.
        shots: support examples K: per class, or of a function in all.
    """

    ways: int
    shots: int
