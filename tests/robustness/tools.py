"""What the tests of robustness share: one small run, and how two runs are compared."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from hidra_cli.runs.directory import RunDir

from ..conftest import TINY_DATA, Finished

SMALL = [
    *TINY_DATA,
    "--bb-opt=filters=4",
    "--queries=3",
    "--meta-batch=2",
    "--validation-episodes=4",
    "--test-episodes=2",
]


def start(*arguments: str | Path, **environ: str) -> subprocess.Popen[str]:
    """`hidra …` as a process of its own."""
    command = [sys.executable, "-m", "hidra_cli.app", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environ,
    )


def checksums(run: RunDir) -> dict[str, str]:
    """SHA-256 of what a finished run must have in common with one never interrupted."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run.last, run.best)
    }


def rows(run: RunDir) -> list[dict[str, str]]:
    """The metrics, without the speed, which no two runs share."""
    with run.metrics.open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key != "tasks_per_second"} for row in found]


def assert_whole(run: RunDir, iterations: int) -> None:
    """Every row there once, and nothing half-written."""
    assert [int(row["iteration"]) for row in rows(run)] == list(range(1, iterations + 1))
    assert not list(run.path.rglob("*.tmp"))


def assert_told(done: Finished, *codes: int) -> None:
    """It ended in a documented way: a message and its exit code, never a traceback."""
    assert done.code in codes, f"{done.code}: {done.err}"
    assert "Traceback" not in done.err
    assert "fault of hidra" not in done.err, done.err
    assert "\x1b" not in done.err + done.out
    if done.code:
        assert "error: " in done.err
