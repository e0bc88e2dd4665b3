"""Processes that share work: what is sent arrives as it was, and nothing outlives a fault."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hidra_cli.errors import DataError
from hidra_cli.system.memory import keep_freed_memory
from hidra_cli.system.worker_pool import WorkerLostError, WorkerPool, operator_threads, pickled

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are started on POSIX alone")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(keep_freed_memory)
    yield made
    made.stop()


def process_and_threads(common: int, part: int) -> tuple[int, int, int]:
    return common * part, os.getpid(), torch.get_num_threads()


def plus(common: Tensor, part: Tensor) -> Tensor:
    return common + part


class OwnError(Exception):
    """Cannot be made again from its message alone."""

    def __init__(self, what: str, more: str) -> None:
        super().__init__(f"{what} {more}")


def fails(common: str, part: int) -> int:
    if part < 2:
        return part
    if common == "own":
        raise OwnError("no", "more")
    if common == "data":
        raise DataError("bad data", why="it is so", fix="hidra prepare")
    raise MemoryError("full")


def dies(common: signal.Signals, part: int) -> int:
    if part:
        os.kill(os.getpid(), common)
        time.sleep(60)
    return part


def test_work_is_shared_and_comes_back_in_order(pool: WorkerPool) -> None:
    assert pool.ready(2, wait=True)
    found = pool.map(process_and_threads, 10, range(7), processes=3, threads=1)
    assert [value for value, _, _ in found] == [0, 10, 20, 30, 40, 50, 60]
    processes = [process for _, process, _ in found]
    assert processes == [os.getpid()] * 3 + [pool.pids[0]] * 2 + [pool.pids[1]] * 2
    assert {threads for _, _, threads in found} == {1}


def test_each_process_has_the_threads_it_is_given_and_here_they_are_as_before(
    pool: WorkerPool,
) -> None:
    assert pool.ready(1, wait=True)
    with operator_threads(2):
        found = pool.map(process_and_threads, 1, range(2), processes=2, threads=3)
        assert [threads for _, _, threads in found] == [3, 3]
        assert torch.get_num_threads() == 2


def test_there_may_be_less_to_do_than_there_are_processes(pool: WorkerPool) -> None:
    assert pool.ready(2, wait=True)
    assert len(pool.map(process_and_threads, 1, [4], processes=3, threads=1)) == 1


def tensors() -> Iterator[Tensor]:
    whole = torch.randn(4, 6, 5, 3)
    yield whole
    yield whole.permute(0, 3, 1, 2)  # channels last
    yield whole[1]  # a part of a larger memory
    yield whole[:, ::2]  # with gaps
    yield whole[:1].permute(0, 3, 1, 2)
    yield torch.randn(7, 5, 5, 1).permute(0, 3, 1, 2)  # one channel: told by its stride alone
    yield torch.randn(3, 1).expand(3, 4)  # overlapping
    yield torch.tensor(2.5)
    yield torch.empty(0, 3)
    yield torch.arange(6)
    yield torch.randn(4, dtype=torch.float64)
    yield torch.randn(4, 4).to(torch.bfloat16)
    yield torch.tensor([True, False])


@pytest.mark.parametrize("tensor", list(tensors()), ids=lambda t: f"{tuple(t.shape)} {t.stride()}")
def test_a_tensor_arrives_bit_for_bit(tensor: Tensor) -> None:
    found = pickle.loads(pickled(tensor))
    assert torch.equal(found, tensor)
    assert found.dtype == tensor.dtype
    dense = tensor.numel() == tensor.untyped_storage().nbytes() // tensor.element_size()
    if dense:
        assert found.stride() == tensor.stride()
    assert found.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@given(order=st.permutations(range(4)), sizes=st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_so_does_one_of_any_order_of_dimensions(order: list[int], sizes: list[int]) -> None:
    tensor = torch.randn(sizes).permute(order)
    found = pickle.loads(pickled(tensor))
    assert torch.equal(found, tensor)
    assert found.stride() == tensor.stride()


def test_parameters_stay_parameters_and_what_is_shared_stays_shared() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    module[0].bias.requires_grad_(False)
    module.register_buffer("held", torch.ones(2))
    module[0].weight.grad = torch.ones(2, 2)
    found = pickle.loads(pickled(module))
    assert found[1].weight is found[0].weight
    assert isinstance(found[0].weight, nn.Parameter)
    assert [p.requires_grad for p in found.parameters()] == [True, False, True]
    assert found[0].weight.grad is None
    assert found.state_dict().keys() == module.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(found.parameters(), module.parameters(), strict=True)
    )


def test_a_part_of_a_batch_is_sent_without_the_rest() -> None:
    batch = torch.randn(100, 1000)
    assert len(pickled(batch[3])) < 2 * batch[3].numel() * batch.element_size()


@pytest.mark.parametrize(
    ("common", "kind", "message"),
    [
        ("", MemoryError, "full"),
        ("data", DataError, "bad data"),
        ("own", RuntimeError, "OwnError: no more"),
    ],
)
def test_an_error_of_the_work_comes_here(
    pool: WorkerPool, common: str, kind: type[Exception], message: str
) -> None:
    assert pool.ready(1, wait=True)
    before = pool.pids
    with pytest.raises(kind, match=message):
        pool.map(fails, common, range(4), processes=2, threads=1)
    assert pool.pids == []
    assert not any(alive(process) for process in before)
    assert pool.ready(1, wait=True)  # there are new ones
    assert pool.map(fails, "", [0, 1], processes=2, threads=1) == [0, 1]


def test_an_error_here_leaves_no_answer_for_the_next_one(pool: WorkerPool) -> None:
    assert pool.ready(1, wait=True)
    with pytest.raises(MemoryError):
        pool.map(fails, "", [5, 0], processes=2, threads=1)
    assert pool.ready(1, wait=True)
    two = [torch.ones(2), torch.zeros(2)]
    found = pool.map(plus, torch.ones(2), two, processes=2, threads=1)
    assert [value.tolist() for value in found] == [[2.0, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_at_work_is_told_of(pool: WorkerPool, number: signal.Signals) -> None:
    assert pool.ready(1, wait=True)
    with pytest.raises(WorkerLostError, match=f"signal {number.value}"):
        pool.map(dies, number, [0, 1], processes=2, threads=1)
    assert pool.pids == []


def test_one_that_died_before_is_told_of(pool: WorkerPool) -> None:
    assert pool.ready(1, wait=True)
    os.kill(pool.pids[0], signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="signal 9"):
        pool.map(plus, torch.ones(1), [torch.ones(1)] * 2, processes=2, threads=1)
    assert pool.pids == []


def test_what_cannot_be_sent_is_told_of(pool: WorkerPool) -> None:
    assert pool.ready(1, wait=True)
    with pytest.raises(WorkerLostError, match="cannot be sent"):
        pool.map(lambda common, part: common + part, 0, [0, 1], processes=2, threads=1)


def test_a_process_that_cannot_start_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WorkerLostError, match="cannot be started"):
        WorkerPool(keep_freed_memory).ready(1)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(WorkerLostError, match="cannot be started"):
        WorkerPool(keep_freed_memory).ready(1)


def test_signals_are_for_the_one_that_asks(pool: WorkerPool) -> None:
    assert pool.ready(1, wait=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pool.pids[0], number)
    assert pool.map(fails, "", [0, 1], processes=2, threads=1) == [0, 1]


# A script without a guard, with a class of its own.
SCRIPT = """
import sys, time
from hidra_cli.system.worker_pool import WorkerPool, WorkerLostError
from tests.system.test_worker_pool import keep_freed_memory, process_and_threads

class Own:
    def __mul__(self, other):
        return other

print("begun", flush=True)
pool = WorkerPool(keep_freed_memory)
pool.ready(2, wait=True)
print(*pool.pids, flush=True)
print(len(pool.map(process_and_threads, 1, range(3), processes=3, threads=1)), flush=True)
try:
    pool.map(process_and_threads, Own(), [1, 2, 3], processes=3, threads=1)
except WorkerLostError as lost:
    print(lost, flush=True)
pool.ready(1, wait=True)
print(*pool.pids, flush=True)
if len(sys.argv) > 1:
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["", "killed"])
def test_processes_end_with_the_script_that_started_them_and_do_not_run_it(
    tmp_path: Path, end: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *([end] if end else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(5)]
    assert lines[0] == "begun"
    assert lines[2] == "3"
    assert "a worker process cannot read the work" in lines[3]
    assert "Own" in lines[3]
    if end:
        process.kill()
    assert process.wait(60) == (-signal.SIGKILL if end else 0)
    deadline = time.monotonic() + 30
    left = [int(pid) for line in (lines[1], lines[4]) for pid in line.split()]
    assert len(left) == 3
    while any(alive(pid) for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.stdout.read() == ""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
