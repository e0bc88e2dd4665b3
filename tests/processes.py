"""What each process does in the tests of a process group: python -m tests.processes OUT CACHE."""

from __future__ import annotations

import atexit
import contextlib
import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hidra_cli.errors import NotFiniteError, UsageError
from hidra_cli.images.open import open_images
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.training.loop import take_step
from hidra_cli.jobs.training.loop import train as run_training
from hidra_cli.jobs.training.trainer import MetaTrainer
from hidra_cli.runs.directory import RunDir, create_run
from hidra_cli.settings.layers import resolve
from hidra_cli.settings.schema import Settings
from hidra_cli.system.console import Console
from hidra_cli.system.distributed import SINGLE, ProcessGroup, joined
from hidra_cli.system.torchrun import this_rank
from hidra_cli.tasks.sources import open_tasks

from .conftest import TINY, TINY_OPTIONS

CPU = torch.device("cpu")
BASE = {
    "dataset.options": TINY_OPTIONS,
    "tasks.ways": "2-4",
    "tasks.queries": 3,
    "model.backbone_options": {"filters": 8},
    "outer.iterations": 6,
    "outer.meta_batch": 3,
    "outer.validate_every": 2,
    "outer.validation_episodes": 7,
}
DIVERGING = {"model.head": "random", "inner.inner_lr": 1e30, "inner.steps": 3}
# Trainings that must not depend on the number of processes.
TRAININGS: dict[str, dict[str, Any]] = {
    "hidra": {},
    "maml": {"model.head": "maml", "tasks.ways": 3},
    "slots": {"model.head_options": {"master": "slots"}, "inner.rates": "learned"},
    "one task": {"outer.meta_batch": 1},
    "two validation tasks": {"outer.meta_batch": 5, "outer.validation_episodes": 2},
    "skipped": {**DIVERGING, "outer.nonfinite": "skip"},
    "sinusoids": {
        "dataset.name": "sinusoids",
        "dataset.options": {},
        "model.backbone": "mlp",
        "model.backbone_options": {},
        "model.loss": "mse",
        "inner.inner_lr": 0.001,
        "tasks.shots": 5,
        "model.normalization": "none",  # of one input it leaves the sign: weights would drift
    },
}


def settings_of(changes: dict[str, Any]) -> Settings:
    return resolve(BASE | changes, environ={}).settings


def train(name: str, folder: Path, cache: Path, group: ProcessGroup = SINGLE) -> dict[str, Any]:
    """Train in a folder; the rows of metrics, and what this process knows at the end."""
    settings = settings_of(TRAININGS[name])
    data = open_tasks(settings.dataset, cache, Console(verbosity=-1), CPU)
    trainer = MetaTrainer(settings, data, CPU, group=group)
    run = create_run(folder, name, settings) if group.main else RunDir(folder / name)
    trained = run_training(trainer, run)
    group.wait()
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    held = {key: value.tolist() for key, value in trainer.learner.state_dict().items()}
    without = [n for n, p in trainer.learner.named_parameters() if p.grad is None]
    best = trained.best.iteration, trained.best.score
    return {"rows": rows, "weights": held, "best": best, "without gradient": without}


def diverge(images: PreparedImages, group: ProcessGroup = SINGLE) -> str:
    """Why a training whose first step is not finite stopped."""
    trainer = MetaTrainer(settings_of(DIVERGING), images, CPU, group=group)
    try:
        take_step(trainer)
    except NotFiniteError as error:
        return error.why
    return "it did not"


def put_together(group: ProcessGroup) -> dict[str, Any]:
    """Every collective once."""
    rank = group.rank
    sums = [torch.full((2, 3), rank + 1.0), torch.tensor(10.0**rank, dtype=torch.float64)]
    group.sum_(sums)
    lone = torch.tensor([1.5 + rank], dtype=torch.bfloat16)
    group.sum_([lone])
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    if rank:  # the second of three has a gradient in one process, the third in none
        parameters[1].grad = torch.tensor([4.0, 8.0])
    means = group.mean_gradient_(parameters, (rank, 7.0), (0.25, 0.75)[rank])
    rows = [[float(rank), float(n)] for n in range(3 * (1 - rank))]
    refused = ""
    with contextlib.suppress(UsageError):
        group.check_equal("everything", "equal")
        refused = "at first"
        group.check_equal("numbers", str(rank))
        refused = "not at all"
    return {
        "sums": [tensor.tolist() for tensor in sums],
        "low precision": lone.float().tolist(),
        "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "means": means,
        "gathered": group.gather(rows).tolist(),
        "gathered nothing": list(group.gather([]).shape),
        "largest": group.largest(rank * 15),
        "any": [group.any(rank == 1), group.any(False)],
        "said": group.broadcast_text(f"Größe {rank}"),
        "refused": refused,
    }


def threads() -> list[str]:
    """Names of the threads of this process, where the system tells."""
    names = []
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # a thread that has ended since the folder was listed
            names.append((task / "comm").read_text().strip())
    return names


def main(out: Path, cache: Path) -> None:
    # Run after what `joined` registers: the last one goes first.
    atexit.register(lambda: (out / f"threads-{this_rank().rank}").write_text("\n".join(threads())))
    with joined(this_rank(), CPU) as group:
        images = open_images(TINY, cache, Console(verbosity=-1))
        found: dict[str, Any] = {"collectives": put_together(group)}
        for name in TRAININGS:
            found[name] = train(name, out, cache, group)
        found["not finite"] = diverge(images, group)
        found["threads"] = threads()
        (out / f"{group.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
