"""SIGINT and SIGTERM as requests: the current step is finished and saved first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set by a signal: its number, or 0."""

    number = 0

    def obey(self) -> None:
        """End the process as the signal would have done, if there was a signal."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            raise SystemExit(128 + self.number)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one quits at once."""
    stop = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.number:
            os._exit(128 + number)
        stop.number = number

    if threading.current_thread() is not threading.main_thread():  # it may not
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in STOPPING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Block signals. A process that is started meanwhile never gets them; its parent ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
