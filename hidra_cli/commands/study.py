"""`hidra study`: several models, several seeds → one table and picture."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hidra_cli.commands import common

if TYPE_CHECKING:
    from hidra_cli.console import Console
    from hidra_cli.studies import Study, Training

_POLL = 0.2  # seconds between two looks at the processes
_LINES_TOLD = 3


def study(
    file: Annotated[Path, typer.Argument(help="A TOML file that describes the study.")],
    jobs: Annotated[
        int, typer.Option(help="Runs at a time; they share the cores.", min=1, max=1024)
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and list its runs.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of its runs and results. [studies/NAME]")
    ] = None,
    cache_dir: common.CacheDir = None,
    json_output: common.Json = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    debug: common.Debug = False,
) -> None:
    """Train and test all models of a study; run it again, and it goes on where it was.

    Writes table.md, study.json, scores.png, differences.png and learning.png.

    Examples:

      hidra study benchmarks/losses.toml --dry-run

      hidra study benchmarks/losses.toml --jobs 2
    """
    from hidra_cli.studies import load_study, trainings

    console = common.make_console(json_output, quiet, verbose)
    chosen = load_study(file)
    runs = list(trainings(chosen))
    place = out or Path("studies") / file.stem
    if dry_run:
        console.table(
            chosen.title,
            ["run", "iterations", "tested at ways"],
            [[run.name, str(run.iterations), ", ".join(map(str, run.ways))] for run in runs],
        )
        console.result({"title": chosen.title, "runs": [run.name for run in runs]})
        return
    workers = [_Worker(chosen, run, place, cache_dir) for run in runs]
    for worker in workers:
        worker.check_unchanged()
    for part in ("runs", "configs", "logs", "evaluations"):
        common.made(place / part)
    _work(workers, jobs, console)
    _report(chosen, workers, place, console)


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
        from hidra_cli.resuming import settings_of
        from hidra_cli.runs import RunDir, read_json
        from hidra_cli.settings import MAY_CHANGE, changes
        from hidra_cli.studies import tested_settings

        before = tested_settings(read_json(self.tested / "result.json"))
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
        from hidra_cli.runs import read_json
        from hidra_cli.studies import evaluate_flags, tested_flags

        test = evaluate_flags(self.study, self.training)
        if tested_flags(read_json(self.tested / "result.json")) == test:
            return None
        if read_json(self.run / "result.json").get("iterations") == self.training.iterations:
            flags = ["evaluate", str(self.run), *test, f"--out={self.tested}"]
        else:
            flags = self._training()
        if self.cache_dir is not None:
            flags.append(f"--cache-dir={self.cache_dir}")
        return [sys.executable, "-m", "hidra_cli.app", *flags]

    def _training(self) -> list[str]:
        import tomli_w

        from hidra_cli.files import write_atomically

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
    from hidra_cli.interrupts import stop_requests
    from hidra_cli.settings import without_settings

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


def _report(chosen: Study, workers: list[_Worker], place: Path, console: Console) -> None:
    from hidra_cli.files import write_atomically, write_json
    from hidra_cli.picture import differences_over_ways, learning_curves, scores_over_ways
    from hidra_cli.runs import RunDir, read_json
    from hidra_cli.studies import learning, markdown, pooled, read_episodes, summary

    cells = pooled(
        chosen, ((w.training, read_episodes(w.tested / "episodes.csv")) for w in workers)
    )
    found = summary(chosen, cells)
    table = markdown(chosen, found)
    problem = cells[0].problem
    curves = learning(chosen, ((w.training, RunDir(w.run)) for w in workers), problem)
    first = read_json(workers[0].tested / "result.json")
    result: dict[str, Any] = {
        "format_version": 1,
        "study": chosen.model_dump(mode="json", exclude_none=True),
        **found,
        "learning": [asdict(curve) for curve in curves],
        "tasks_per_second": {
            worker.name: read_json(worker.run / "result.json").get("tasks_per_second")
            for worker in workers
        },
        "dataset_hash": first.get("dataset_hash"),
        "environment": first.get("environment"),
    }
    write_atomically(place / "table.md", f"# {chosen.title}\n\n{table}".encode())
    pictures = {"scores.png": scores_over_ways(cells, chosen.title)}
    if minus := found["differences"]:
        pictures["differences.png"] = differences_over_ways(minus, chosen.title, problem)
    if curves:
        pictures["learning.png"] = learning_curves(curves, chosen.title, problem)
    for name, picture in pictures.items():
        write_atomically(place / name, picture)
    write_json(place / "study.json", result)
    console.print(f"{chosen.title}\n\n{table}")
    console.print(f"written: {place / 'table.md'}, {place / 'study.json'}, {', '.join(pictures)}")
    console.result(result | {"folder": str(place)})
