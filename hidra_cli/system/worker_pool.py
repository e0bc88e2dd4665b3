"""Other processes of this machine that take a part of the tasks.

Threads of one interpreter wait for each other whenever two want it at once, several hundred times
in a task; processes do not. They hold nothing: every request brings the learner, the tasks and what
is to be done, so that a lost one costs no more than doing its part again.

A process is started by its program, not by `multiprocessing`, which would run the caller's script
again; what a script defines itself it cannot know, and is told so.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from copyreg import dispatch_table
from io import BytesIO
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hidra_cli.system.signals import STOPPING
from hidra_cli.system.torchrun import share

C = TypeVar("C")
P = TypeVar("P")
T = TypeVar("T")

# Nothing but Python's own is imported before the path of modules is known.
_PROGRAM = (
    "import sys; from multiprocessing.connection import Connection; "
    "connection = Connection(int(sys.argv[1])); sys.path[:] = connection.recv(); "
    "from hidra_cli.system.worker_pool import serve; serve(connection)"
)


class LostError(Exception):
    """A process of the pool cannot be started, or is gone."""


class WorkerPool:
    """Processes that are started ahead of their work, and end with this one.

    Args:
        prepare: a function of a module, which each calls first.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare
        self._members: list[_Member] = []
        self._lock = threading.RLock()
        atexit.register(self.dismiss)

    @property
    def pids(self) -> list[int]:
        """Of the processes there are."""
        return [member.process.pid for member in self._members]

    def ready(self, number: int, *, wait: bool = False) -> bool:
        """Whether so many processes can begin at once; those that are missing are started.

        Args:
            wait: until they can.

        Raises:
            LostError: one cannot be started, or is gone.
        """
        with self._whole_or_none():
            while len(self._members) < number:
                self._members.append(_Member(self._prepare))
            return all(member.ready(wait) for member in self._members[:number])

    def share(
        self,
        work: Callable[[C, P], T],
        common: C,
        parts: Sequence[P],
        *,
        processes: int,
        threads: int,
    ) -> list[T]:
        """`[work(common, part) for part in parts]`, in contiguous shares, one of them done here.

        Args:
            work: a function of a module, or a partial one. All it is given is sent to the others,
                and all it finds is sent here.
            processes: how many, with this one; the others are `ready`.
            threads: of PyTorch's operators, in each process.

        Raises:
            LostError: a process is gone.
        """
        number = min(processes, len(parts))
        mine, *others = (share(parts, index, number) for index in range(number))
        with self._whole_or_none():
            asked = self._members[: len(others)]
            for member, theirs in zip(asked, others, strict=True):
                member.send((work, common, theirs, threads))
            found = _do(work, common, mine, threads)
            for member in asked:
                found += member.answer()
        return found

    @contextlib.contextmanager
    def _whole_or_none(self) -> Iterator[None]:
        """After any error or interrupt an answer may be under way: no one is to take it for its."""
        with self._lock:
            try:
                yield
            except BaseException:
                self.dismiss()
                raise

    def dismiss(self) -> None:
        """End all; there are new ones when they are wanted."""
        with self._lock:
            while self._members:
                self._members.pop().leave()


class _Member:
    """One process, as seen from here."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        if os.name != "posix" or not sys.executable:
            raise LostError("a process cannot be started: not on this system")
        ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, str(theirs.fileno())]
            try:
                # A session of its own: Ctrl-C is for the one started by hand. So are warnings.
                self.process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    start_new_session=True,
                )
            except (OSError, ValueError) as exc:
                ours.close()
                raise LostError(f"a process cannot be started: {exc}") from exc
        self._connection = ours
        self._said_ready = False
        with self._lost():
            ours.send(sys.path)
            ours.send(prepare)

    def ready(self, wait: bool) -> bool:
        """Whether it has imported what it needs."""
        if not self._said_ready and (wait or self._connection.poll()):
            with self._lost():
                self._connection.recv_bytes()
            self._said_ready = True
        return self._said_ready

    def send(self, request: Any) -> None:
        try:
            content = packed(request)
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as exc:
            raise LostError(f"what is to be done cannot be sent to another process: {exc}") from exc
        with self._lost():
            self._connection.send_bytes(content)

    def answer(self) -> list[Any]:
        """What was found.

        Raises:
            LostError: it is gone.
            Exception: the one there was at work.
        """
        with self._lost():
            answer = pickle.loads(self._connection.recv_bytes())
        if isinstance(answer, BaseException):
            raise answer
        found: list[Any] = answer
        return found

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as exc:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            code = self.process.returncode
            how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            how = "no answer" if code is None else how
            raise LostError(f"a process that took a part of the tasks is gone ({how})") from exc

    def leave(self) -> None:
        self._connection.close()
        self.process.kill()
        self.process.wait()


def serve(connection: Connection) -> None:
    """Do what is asked for, until the one who asks is gone: that one obeys signals."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # between requests: the other cores are at work elsewhere
    with contextlib.suppress(EOFError, OSError):
        connection.recv()()
        connection.send_bytes(b"ready")
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(request: bytes) -> bytes:
    try:
        asked = pickle.loads(request)
    except Exception as exc:  # of a script's own class, which is not in a module
        return pickle.dumps(LostError(f"another process cannot know what is to be done: {exc}"))
    try:
        return packed(_do(*asked))
    except Exception as exc:
        with contextlib.suppress(Exception):
            pickle.loads(whole := pickle.dumps(exc))
            return whole
        return pickle.dumps(RuntimeError(f"{type(exc).__name__}: {exc}"))


def _do(work: Callable[[C, P], T], common: C, parts: Sequence[P], threads: int) -> list[T]:
    """The work on each part, with so many threads of PyTorch's operators."""
    with threads_of_operators(threads):
        return [work(common, part) for part in parts]


@contextlib.contextmanager
def threads_of_operators(number: int) -> Iterator[None]:
    """Let PyTorch's operators have so many threads, in this thread of the program."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def packed(value: Any) -> bytes:
    """A pickle in which a tensor is its memory: not every view of it, and with the same strides.

    Strides say in which order operators go through memory, so the same bits need the same ones.
    """
    file = BytesIO()
    pickler = pickle.Pickler(file, protocol=5)
    pickler.dispatch_table = dispatch_table | {Tensor: _as_memory, nn.Parameter: _as_memory}
    pickler.dump(value)
    return file.getvalue()


def _as_memory(tensor: Tensor) -> tuple[Any, ...]:
    values = tensor.detach()
    order = sorted(range(values.dim()), key=lambda d: values.stride(d), reverse=True)
    if not values.permute(order).is_contiguous():  # overlapping, or with gaps
        values = values.contiguous()
        order = list(range(values.dim()))
    memory: Any = values.permute(order).reshape(-1).view(torch.uint8).numpy()
    is_parameter = isinstance(tensor, nn.Parameter)
    shape = (tuple(values.shape), values.stride(), values.dtype)
    return _tensor, (pickle.PickleBuffer(memory), *shape, is_parameter, tensor.requires_grad)


def _tensor(
    memory: bytearray,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    is_parameter: bool,
    requires_grad: bool,
) -> Tensor:
    values = torch.empty(math.prod(size), dtype=dtype)  # aligned, as a pickle's memory is not
    if memory:
        values.view(torch.uint8).copy_(torch.frombuffer(memory, dtype=torch.uint8))
    values = values.as_strided(size, stride)
    if is_parameter:
        return nn.Parameter(values, requires_grad)
    return values.requires_grad_(requires_grad)
