"""The trainings and tests of a study, several at once, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hidra_cli.jobs.study.plan import Study, Training
    from hidra_cli.system.console import Console


_POLL = 0.2  # seconds between two looks at the processes


_LINES_TOLD = 3


@dataclass(eq=False)
class _Worker:
    """One training and its test: each a process, taken up again where it was left."""

    study: Study
    training: Training
    place: Path
    cache_dir: Path | None

    @property
    def name(self) -> str:
        return self.training.name

    @property
    def run(self) -> Path:
        return self.place / "runs" / self.name

    @property
    def log(self) -> Path:
        return self.place / "logs" / f"{self.name}.txt"

    @property
    def tested(self) -> Path:
        return self.place / "evaluations" / self.name

    def check_unchanged(self) -> None:
        """Refuse to take a run for this study's that an earlier version of its file made.

        Raises:
            UsageError: lists each changed setting, old and new.
        """
        from hidra_cli.errors import UsageError
        from hidra_cli.jobs.training.resume import settings_of
        from hidra_cli.runs.directory import RunDir
        from hidra_cli.runs.records import EvaluationResult, record_or_none
        from hidra_cli.settings.changes import MAY_CHANGE, changes

        result = record_or_none(self.tested / "result.json", EvaluationResult)
        before = result.models[0].settings if result is not None and result.models else None
        if before is None and (self.run / "config.toml").exists():
            before = settings_of(RunDir(self.run))
        if before is None:
            return
        now = self.training.resolved
        if changed := changes(before, now, MAY_CHANGE - {"outer.iterations"}):
            raise UsageError(
                f"the run {self.name} in {self.place} was made with other settings",
                why="\n     ".join(changed),
                fix="name another folder with --out, or undo the change",
            )

    def command(self) -> list[str] | None:
        """What is to be done next; None where all is done."""
        from hidra_cli.jobs.study.plan import evaluate_flags, tested_flags
        from hidra_cli.runs.records import EvaluationResult, RunResult, record_or_none

        test = evaluate_flags(self.study, self.training)
        if tested_flags(record_or_none(self.tested / "result.json", EvaluationResult)) == test:
            return None
        trained = record_or_none(self.run / "result.json", RunResult)
        if trained is not None and trained.iterations == self.training.iterations:
            flags = ["evaluate", str(self.run), *test, f"--out={self.tested}"]
        else:
            flags = self._training()
        if self.cache_dir is not None:
            flags.append(f"--cache-dir={self.cache_dir}")
        return [sys.executable, "-m", "hidra_cli.app", *flags]

    def _training(self) -> list[str]:
        import tomli_w

        from hidra_cli.system.files import write_atomically

        config = self.place / "configs" / f"{self.name}.toml"
        write_atomically(config, tomli_w.dumps(self.training.settings).encode())
        flags = ["meta-train", f"--runs-dir={self.run.parent}", f"--config={config}"]
        if self.study.preset:
            flags.append(f"--preset={self.study.preset}")
        begun = (self.run / "config.toml").exists()
        return [*flags, f"--resume={self.name}" if begun else f"--name={self.name}"]


def _work(workers: list[_Worker], jobs: int, console: Console) -> None:
    """Run all that is left, so many at a time.

    Raises:
        StoppedError: SIGINT or SIGTERM came; every run was stopped and has saved.
        RunError: a run failed; the others were stopped and have saved.
    """
    from hidra_cli.errors import StoppedError
    from hidra_cli.settings.layers import without_settings
    from hidra_cli.system.signals import stop_requests

    waiting, done = list(workers), 0
    running: dict[_Worker, subprocess.Popen[bytes]] = {}
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    # The file says all there is to say: another shell must train the same.
    environ = {"OMP_NUM_THREADS": threads} | without_settings(os.environ) | {"HIDRA_DEBUG": ""}
    with stop_requests() as stop, console.progress("study", len(workers)) as advance:
        try:
            while (waiting or running) and not stop.number:
                while waiting and len(running) < jobs:
                    worker = waiting.pop(0)
                    command = worker.command()
                    if command is None:
                        done += 1
                        continue
                    console.detail(" ".join(command))
                    running[worker] = _started(command, worker.log, environ)
                for worker in [w for w, process in running.items() if process.poll() is not None]:
                    _check_ended(worker, running.pop(worker).returncode)
                    waiting.insert(0, worker)  # its test, or nothing
                advance(done, ", ".join(worker.name for worker in running))
                time.sleep(_POLL if running else 0)
        finally:
            _stop(running)
    if stop.number:
        raise StoppedError(
            f"with {done} of {len(workers)} runs done; the others have saved",
            signal_number=stop.number,
            why="a signal was received",
            fix="the same command goes on",
        )


def _started(command: list[str], log: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the others.
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environ, start_new_session=True
        )


def _check_ended(worker: _Worker, code: int) -> None:
    from hidra_cli.errors import RunError

    if code:
        told = worker.log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise RunError(
            f"the run {worker.name} ended with exit code {code}",
            why="\n     ".join(told[-_LINES_TOLD:]) or "it said nothing",
            fix=f"see {worker.log}; the same command goes on when it is mended",
        )


def _stop(running: dict[_Worker, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()
