"""Time, memory and work of a meta-gradient, and what the machine could do."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine.agreement import reference_run
from benchmarks.engine.contenders import CONTENDERS
from benchmarks.engine.peers import Run
from benchmarks.engine.workloads import Case, Workload
from hidra_cli.engine.devices import held_memory, peak_memory
from hidra_cli.engine.strategies.cores import POOL
from hidra_cli.errors import RunError

# A measured time is of as many meta-steps as fill this, so that the clock's grain does not matter.
_SHORTEST_SECONDS = 0.2
_MEMORY_STEPS = 3
_ROOT = Path(__file__).resolve().parents[2]
# This folder comes last on the path: the installed package has the compiled kernels.
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from benchmarks.engine.measuring import main; "
    "main(sys.argv[2])"
)


@dataclass(frozen=True)
class Memory:
    """Bytes: the most that was held, and the most beyond what the program held before.

    Of the process on a CPU, and of those it started; of tensors on CUDA.
    """

    peak: int
    growth: int


def seconds_per_call(call: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Wall time of one call, all its work on the device done."""
    _finish(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    _finish(device)
    return (time.perf_counter() - start) / times


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repetitions: int, seed: int
) -> dict[str, list[float]]:
    """Seconds per call, `repetitions` of each, all calls once before any is repeated.

    So a machine that slows down slows all alike. Each round has an order of its own, so that none
    always follows the same other. The first call of each is not counted.
    """
    times = {}
    for name, call in calls.items():
        call()
        once = seconds_per_call(call, device)
        times[name] = max(1, math.ceil(_SHORTEST_SECONDS / max(once, 1e-9)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    for _ in range(repetitions):
        shuffle(order)
        for name in order:
            found[name].append(seconds_per_call(calls[name], device, times[name]))
    return found


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A square matrix product, large enough for the device's full rate, and its FLOPs."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return lambda: torch.mm(left, right, out=out), 2.0 * size**3


def work_of(case: Case) -> int:
    """FLOPs of a workload's convolutions and matrix products as the plain loop does them.

    A multiplication and an addition are two. All tasks are of the same work, so one is counted.
    """
    one = replace(case, workload=replace(case.workload, tasks=1), dtype=torch.float32)
    run = reference_run(one)
    with FlopCounterMode(display=False) as counter:
        run()
    flops: int = counter.get_total_flops()
    return flops * case.workload.tasks


def peak_in_a_fresh_process(name: str, case: Case, threads: int) -> Memory:
    """Peak memory of some meta-steps of one contender, alone in a process.

    Raises:
        RunError: that process failed.
    """
    given = {
        "contender": name,
        "workload": asdict(case.workload),
        "device": str(case.device),
        "peers_channels_last": case.peers_channels_last,
        "seed": case.seed,
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, _ROOT, json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RunError(
            f"{name} failed on {case.workload.name} in a process of its own",
            why=done.stderr.strip().split("\n")[-1] or f"it ended with {done.returncode}",
            fix=f"--no-memory, or --contender without {name}",
        )
    return Memory(**json.loads(done.stdout.strip().split("\n")[-1]))


def measure_memory(run_of: Callable[[], Run], device: torch.device) -> Memory:
    """Build and run a meta-gradient some times in this process, which must not have run one yet."""
    before = held_memory(device)
    run = run_of()
    for _ in range(_MEMORY_STEPS):
        run()
    _finish(device)
    peak = peak_memory(device, POOL.pids)
    return Memory(peak, peak - before)


def main(told: str) -> None:
    """Print the memory of a contender, of which `peak_in_a_fresh_process` tells in JSON."""
    given: dict[str, Any] = json.loads(told)
    torch.set_num_threads(given["threads"])
    case = Case(
        Workload(**given["workload"]),
        torch.device(given["device"]),
        peers_channels_last=given["peers_channels_last"],
        seed=given["seed"],
    )
    if case.device.type == "cuda":
        torch.zeros(1, device=case.device)
    build = CONTENDERS[given["contender"]].build
    print(json.dumps(asdict(measure_memory(lambda: build(case), case.device))))
