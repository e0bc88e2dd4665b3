"""A run killed again and again ends as one that was left alone."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hidra_cli.runs.directory import RunDir

from .tools import SMALL, assert_whole, checksums, rows, start

STEPS_PER_LIFE = 25


def _rows(run: RunDir) -> int:
    try:
        return run.metrics.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _killed(process: subprocess.Popen[str], run: RunDir, draw: random.Random) -> signal.Signals:
    """Kill a run at a random moment: mostly while it trains, at times while it starts."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    if draw.random() < 0.85:
        wanted, deadline = _rows(run) + draw.randint(1, 12), time.monotonic() + 120
        while process.poll() is None and _rows(run) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
    else:
        time.sleep(draw.random() * 2)
    process.send_signal(number)
    return number


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    tmp_path: Path, cache_dir: Path, kills: int
) -> None:
    iterations = STEPS_PER_LIFE * kills
    flags = [*SMALL, "--ways=2-4", f"--iterations={iterations}", "--validate-every=5"]
    flags += ["--schedule=cosine", "-q"]
    places: list[str | Path] = ["--cache-dir", cache_dir, "--runs-dir", tmp_path]
    alone = start("meta-train", *flags, *places, "--name=whole", HIDRA_RUN_SAVE_SECONDS="0")
    assert alone.wait(600) == 0
    whole, run = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    draw, survived, lives = random.Random(20_191_012), 0, 0
    while True:
        lives += 1
        assert lives < 10 * kills, "it never gets anywhere"
        again = [f"--resume={run.path}"] if run.path.exists() else [*flags, "--name=killed"]
        process = start("meta-train", *again, *places, "-q", HIDRA_RUN_SAVE_SECONDS="0")
        wanted = _killed(process, run, draw) if survived < kills else None
        _, errors = process.communicate(timeout=600)
        assert "Traceback" not in errors
        if process.returncode == 0:
            break
        assert wanted is not None, errors
        # A SIGTERM may come before Python can answer it.
        assert process.returncode in (-wanted, 128 + wanted), errors
        survived += 1
    print(f"{survived} kills in {lives} lives; {checksums(run)}")
    assert survived >= 0.8 * kills
    assert checksums(run) == checksums(whole)
    assert rows(run) == rows(whole)
    assert_whole(run, iterations)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".killed")]
