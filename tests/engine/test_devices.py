"""What is a state of the process: how float32 products are taken; memory held and given back."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from hidra_cli.engine.devices import (
    choose_float32,
    has_tf32,
)

CPU = torch.device("cpu")


@pytest.fixture
def _switches_restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def switches() -> tuple[str, bool, bool]:
    """Of products, then of both as a compiler reads them; it raises where they contradict."""
    return (
        torch.get_float32_matmul_precision(),
        torch._C._get_cublas_allow_tf32(),
        torch._C._get_cudnn_allow_tf32(),
    )


@pytest.mark.usefixtures("_switches_restored")
def test_float32_is_float32_in_full_on_a_gpu_unless_tf32_is_asked_for() -> None:
    cuda = torch.device("cuda")  # the switches are there without one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_float32("tf32", cuda)
        assert switches() == ("high", True, True)
        choose_float32("float32", cuda)
        assert switches() == ("highest", False, False)
        choose_float32("tf32", CPU)
        assert switches() == ("highest", False, False), "they touch products on a CPU too"
    assert not has_tf32(CPU)


HELD = """
import torch
from hidra_cli.engine.devices import held_memory, peak_memory
from hidra_cli.system.memory import *
cpu = torch.device("cpu")
assert keep_freed_memory()
before = held_memory(cpu)
large = [torch.ones(2**18) for _ in range(64)]  # of 1 MB each
held = held_memory(cpu)
assert held - before > 55e6
assert peak_memory(cpu) >= held - 5e6, "the system counts in steps"
large.clear()
give_back_freed_memory()
assert held_memory(cpu) < held - 55e6
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what is held is read from /proc")
def test_what_is_held_follows_what_is_allocated_and_given_back() -> None:
    """In a process of its own, which holds nothing that others have freed."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process begins with its own peak")
def test_the_peak_is_of_this_process_and_not_of_its_parent() -> None:
    held = torch.ones(100 << 20)  # 400 MB
    code = (
        "import torch; from hidra_cli.engine.devices import held_memory, peak_memory;"
        "cpu = torch.device('cpu'); print(peak_memory(cpu) - held_memory(cpu))"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(told) < 100e6 < held.nbytes
