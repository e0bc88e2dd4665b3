"""Worker processes on this machine that compute a part of the tasks.

Threads of one interpreter wait for each other several hundred times in a task; processes do not.
Workers keep no state. Every request carries the learner, the tasks and the function, so the part
of a lost worker can be done again.

A worker is started by its own command line, because `multiprocessing` would run the caller's
script again. So a worker cannot import names that the script itself defines. It then says so.
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

# Only the standard library is imported before sys.path is known.
_PROGRAM = (
    "import sys; from multiprocessing.connection import Connection; "
    "connection = Connection(int(sys.argv[1])); sys.path[:] = connection.recv(); "
    "from hidra_cli.system.worker_pool import serve; serve(connection)"
)


class WorkerLostError(Exception):
    """A worker cannot be started, or has ended."""


class WorkerPool:
    """Worker processes. They are started before they get work, and end with this process.

    Args:
        prepare: a function at the top level of a module. Each worker calls it first.
    """

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._prepare = prepare
        self._workers: list[_Worker] = []
        self._lock = threading.RLock()
        atexit.register(self.stop)

    @property
    def pids(self) -> list[int]:
        """The workers' process numbers."""
        return [worker.process.pid for worker in self._workers]

    def ready(self, number: int, *, wait: bool = False) -> bool:
        """Start missing workers. Return whether `number` workers can begin at once.

        Args:
            wait: wait until they can.

        Raises:
            WorkerLostError: a worker cannot be started, or has ended.
        """
        with self._stopped_on_error():
            while len(self._workers) < number:
                self._workers.append(_Worker(self._prepare))
            return all(worker.ready(wait) for worker in self._workers[:number])

    def map(
        self,
        work: Callable[[C, P], T],
        common: C,
        parts: Sequence[P],
        *,
        processes: int,
        threads: int,
    ) -> list[T]:
        """`[work(common, part) for part in parts]`, in contiguous shares; one share is done here.

        Args:
            work: a function at the top level of a module, or a partial of one. Its arguments and
                results are pickled.
            processes: the number of processes, including this one; the others are `ready`.
            threads: the threads of PyTorch's operators in each process.

        Raises:
            WorkerLostError: a worker has ended.
        """
        number = min(processes, len(parts))
        mine, *others = (share(parts, index, number) for index in range(number))
        with self._stopped_on_error():
            busy = self._workers[: len(others)]
            for worker, theirs in zip(busy, others, strict=True):
                worker.send((work, common, theirs, threads))
            results = _run(work, common, mine, threads)
            for worker in busy:
                results += worker.answer()
        return results

    @contextlib.contextmanager
    def _stopped_on_error(self) -> Iterator[None]:
        """Stop all workers on any error, so that no late answer is taken for the next answer."""
        with self._lock:
            try:
                yield
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End all workers. New ones are started when they are needed."""
        with self._lock:
            while self._workers:
                self._workers.pop().kill()


class _Worker:
    """One worker process, as the main process sees it."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        if os.name != "posix" or not sys.executable:
            raise WorkerLostError("a worker process cannot be started on this system")
        ours, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, str(theirs.fileno())]
            try:
                # In a separate session: Ctrl-C goes only to the process that the user started.
                self.process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    start_new_session=True,
                )
            except (OSError, ValueError) as exc:
                ours.close()
                raise WorkerLostError(f"a worker process cannot be started: {exc}") from exc
        self._connection = ours
        self._said_ready = False
        with self._lost():
            ours.send(sys.path)
            ours.send(prepare)

    def ready(self, wait: bool) -> bool:
        """Whether it has finished its imports."""
        if not self._said_ready and (wait or self._connection.poll()):
            with self._lost():
                self._connection.recv_bytes()
            self._said_ready = True
        return self._said_ready

    def send(self, request: Any) -> None:
        try:
            content = pickled(request)
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as exc:
            raise WorkerLostError(f"the work cannot be sent to a worker process: {exc}") from exc
        with self._lost():
            self._connection.send_bytes(content)

    def answer(self) -> list[Any]:
        """The results of its share.

        Raises:
            WorkerLostError: the worker has ended.
            Exception: the exception that the work raised in the worker.
        """
        with self._lost():
            answer = pickle.loads(self._connection.recv_bytes())
        if isinstance(answer, BaseException):
            raise answer
        results: list[Any] = answer
        return results

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
            raise WorkerLostError(f"a worker process is gone ({how})") from exc

    def kill(self) -> None:
        self._connection.close()
        self.process.kill()
        self.process.wait()


def serve(connection: Connection) -> None:
    """Answer requests until the process that sends them has ended. Ignore signals meanwhile."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # between requests: leave the cores to the others
    with contextlib.suppress(EOFError, OSError):
        connection.recv()()
        connection.send_bytes(b"ready")
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(request: bytes) -> bytes:
    try:
        call = pickle.loads(request)
    except Exception as exc:  # such as a class in the caller's script
        return pickle.dumps(WorkerLostError(f"a worker process cannot read the work: {exc}"))
    try:
        return pickled(_run(*call))
    except Exception as exc:
        with contextlib.suppress(Exception):
            pickle.loads(content := pickle.dumps(exc))  # not every exception can be pickled
            return content
        return pickle.dumps(RuntimeError(f"{type(exc).__name__}: {exc}"))


def _run(work: Callable[[C, P], T], common: C, parts: Sequence[P], threads: int) -> list[T]:
    """The work on each part, with `threads` threads for PyTorch's operators."""
    with operator_threads(threads):
        return [work(common, part) for part in parts]


@contextlib.contextmanager
def operator_threads(number: int) -> Iterator[None]:
    """Set the threads of PyTorch's operators, for this thread of the program."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pickled(value: Any) -> bytes:
    """A pickle in which a tensor is the memory of its own elements, with the same strides.

    A plain pickle of a view holds the whole storage. Operators go through memory in the order of
    strides, so the same bits need the same strides.
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
