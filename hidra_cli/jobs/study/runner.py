"""The trainings and tests of a study: several at once, each in its own process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from hidra_cli.errors import HidraError, RunError, StoppedError, UsageError
from hidra_cli.jobs.study.plan import Study, Training, evaluate_flags, is_wanted, trainings
from hidra_cli.jobs.training.resume import settings_of
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.locate import find_checkpoint
from hidra_cli.runs.records import EvaluationResult, RunResult, record_or_none
from hidra_cli.settings.changes import MAY_CHANGE, changes
from hidra_cli.settings.layers import without_settings
from hidra_cli.system.console import Console, Silence
from hidra_cli.system.files import result_folder, write_atomically
from hidra_cli.system.signals import stop_requests

_POLL = 0.2  # seconds between two looks at the processes
_LINES_SHOWN = 3


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One training of a study and its test, in the study's folder `place`."""

    study: Study
    training: Training
    place: Path
    cache_dir: Path | None

    @property
    def name(self) -> str:
        return self.training.name

    @property
    def run(self) -> RunDir:
        return RunDir(self.place / "runs" / self.name)

    @property
    def log(self) -> Path:
        return self.place / "logs" / f"{self.name}.txt"

    @property
    def tested(self) -> Path:
        """The folder of its evaluation."""
        return self.place / "evaluations" / self.name

    @property
    def evaluation(self) -> EvaluationResult | None:
        return record_or_none(self.tested / "result.json", EvaluationResult)

    @property
    def result(self) -> RunResult | None:
        return record_or_none(self.run.result, RunResult)

    def check_unchanged(self) -> None:
        """Refuse a run that was made from an earlier version of the study's file.

        Raises:
            UsageError: lists each changed setting, old and new.
        """
        evaluation = self.evaluation
        before = evaluation.models[0].settings if evaluation and evaluation.models else None
        if before is None and self.run.config.exists():
            before = settings_of(self.run)
        if before is None:
            return
        now = self.training.resolved
        if changed := changes(before, now, MAY_CHANGE - {"outer.iterations"}):
            raise UsageError(
                f"the run {self.name} in {self.place} was made with other settings",
                why="\n     ".join(changed),
                fix="name another folder with --out, or undo the change",
            )

    def commands(self) -> Iterator[list[str]]:
        """The commands that are left to run: the training, the test, both or neither."""
        if self._is_tested():
            return
        result = self.result
        if result is None or result.iterations != self.training.iterations:
            yield self._command(self._training_flags())
        test = evaluate_flags(self.study, self.training)
        yield self._command(["evaluate", str(self.run.path), *test, f"--out={self.tested}"])

    def _is_tested(self) -> bool:
        evaluation = self.evaluation
        measured = evaluation.measured if evaluation is not None else None
        if measured is None:
            return False
        try:
            content = find_checkpoint(self.run.path).read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
        except (HidraError, OSError):  # the run is elsewhere: its scores are enough for the table
            sha256 = None
        return is_wanted(self.study, self.training, measured, sha256)

    def _command(self, flags: list[str]) -> list[str]:
        if self.cache_dir is not None:
            flags = [*flags, f"--cache-dir={self.cache_dir}"]
        return [sys.executable, "-m", "hidra_cli.app", *flags]

    def _training_flags(self) -> list[str]:
        config = self.place / "configs" / f"{self.name}.toml"
        write_atomically(config, tomli_w.dumps(self.training.settings).encode())
        flags = ["meta-train", f"--runs-dir={self.run.path.parent}", f"--config={config}"]
        if self.study.preset:
            flags.append(f"--preset={self.study.preset}")
        begun = self.run.config.exists()
        return [*flags, f"--resume={self.name}" if begun else f"--name={self.name}"]


def run_study(
    study: Study,
    place: Path,
    *,
    jobs: int = 1,
    cache_dir: Path | None = None,
    console: Console | None = None,
) -> list[StudyRun]:
    """Train and test all that is left of a study.

    Args:
        place: its folder.
        jobs: processes at a time; they share the cores.

    Raises:
        UsageError: a run in the folder was made with other settings.
        StoppedError: SIGINT or SIGTERM came; every run was stopped and has saved.
        RunError: a run failed; the others were stopped and have saved.
    """
    runs = [StudyRun(study, training, place, cache_dir) for training in trainings(study)]
    for run in runs:
        run.check_unchanged()
    for part in ("runs", "configs", "logs", "evaluations"):
        result_folder(place / part)
    _work(runs, jobs, console or Silence())
    return runs


def _work(runs: list[StudyRun], jobs: int, console: Console) -> None:
    waiting, done = [(run, run.commands()) for run in runs], 0
    running: dict[StudyRun, tuple[Iterator[list[str]], subprocess.Popen[bytes]]] = {}
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    # The file holds all settings: another shell must train the same.
    environ = {"OMP_NUM_THREADS": threads} | without_settings(os.environ) | {"HIDRA_DEBUG": ""}
    with stop_requests() as stop, console.progress("study", len(runs)) as advance:
        try:
            while (waiting or running) and not stop.number:
                while waiting and len(running) < jobs:
                    run, commands = waiting.pop(0)
                    command = next(commands, None)
                    if command is None:
                        done += 1
                        continue
                    console.detail(" ".join(command))
                    running[run] = commands, _started(command, run.log, environ)
                for run, (commands, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[run]
                        _check_ended(run, process.returncode)
                        waiting.insert(0, (run, commands))  # its test, or nothing
                advance(done, ", ".join(run.name for run in running))
                time.sleep(_POLL if running else 0)
        finally:
            _stop([process for _, process in running.values()])
    if stop.number:
        raise StoppedError(
            f"with {done} of {len(runs)} runs done; the others have saved",
            signal_number=stop.number,
            why="a signal was received",
            fix="the same command goes on",
        )


def _started(command: list[str], log: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        # In another session: Ctrl-C reaches this process alone, which then ends the others.
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environ, start_new_session=True
        )


def _check_ended(run: StudyRun, code: int) -> None:
    if code:
        lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise RunError(
            f"the run {run.name} ended with exit code {code}",
            why="\n     ".join(lines[-_LINES_SHOWN:]) or "it said nothing",
            fix=f"see {run.log}; the same command goes on when it is mended",
        )


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
