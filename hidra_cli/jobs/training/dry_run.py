"""`hidra meta-train --dry-run`: what a training step takes, measured."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hidra_cli.system.console import Console
from hidra_cli.tasks.shape import TaskShape

if TYPE_CHECKING:
    from hidra_cli.jobs.training.trainer import MetaTrainer, Step


def dry_run(trainer: MetaTrainer, console: Console) -> None:
    """Outer steps at the most ways and shots: parameters, memory and speed.

    They are of the order and with the losses that take the most memory, even where training begins
    with less.

    Raises:
        DeviceError: out of memory; names the flags that help.
    """
    from hidra_cli.engine import devices
    from hidra_cli.engine.strategies.cores import POOL
    from hidra_cli.system import memory

    settings, device = trainer.settings, trainer.device
    shape = TaskShape(max(settings.tasks.ways), max(settings.tasks.shots))
    count = sum(p.numel() for p in trainer.learner.parameters())
    others = trainer.strategy.other_processes(settings.outer.meta_batch)
    console.print("plugins, data and every episode were checked")
    console.print(f"meta-parameters   {count:,}")
    console.print(f"strategy          {trainer.strategy.name}")
    _warm_up(trainer)
    memory.give_back_freed_memory()
    before = devices.held_memory(device)
    devices.reset_peak_memory(device)
    step, rate = _measured(trainer, shape)
    peak = devices.peak_memory(device, POOL.pids)
    console.print(
        f"memory            {_mb(peak - before)}, beside {_mb(before)} of the program ({device})"
    )
    if others:
        console.print(f"                  and {others} more program(s) of about {_mb(before)} each")
    console.print(f"speed             {rate:.1f} tasks/s at {shape.ways} ways, {shape.shots} shots")
    console.result(
        {
            "meta_parameters": count,
            "peak_memory_mb": round(peak / 1e6),
            "memory_mb": round((peak - before) / 1e6, 1),
            "strategy": trainer.strategy.name,
            "processes": trainer.group.size * (1 + others),
            "tasks_per_second": round(rate, 2),
            "ways": shape.ways,
            "shots": shape.shots,
            "loss": step.outcome.loss,
        }
    )


def _warm_up(trainer: MetaTrainer) -> None:
    """The gradient of a small task: libraries are loaded now, not while memory is measured."""
    from hidra_cli.engine.devices import memory_errors

    tasks = trainer.settings.tasks
    with memory_errors():
        batch = trainer.train_episodes.batch([0], TaskShape(min(tasks.ways), min(tasks.shots)))
        trainer.strategy.meta_gradient(batch, trainer.inner)
    trainer.optimizer.zero_grad(set_to_none=True)


def _measured(trainer: MetaTrainer, shape: TaskShape) -> tuple[Step, float]:
    """The second of two steps, because the first pays for warming up; tasks per second."""
    from hidra_cli.jobs.training.loop import take_step
    from hidra_cli.jobs.training.schedule import heaviest_inner

    inner = heaviest_inner(trainer.inner, trainer.settings.outer)
    take_step(trainer, shape, inner)
    begun = time.monotonic()
    step = take_step(trainer, shape, inner)
    return step, trainer.settings.outer.meta_batch / (time.monotonic() - begun)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if abs(size) >= 10e6 else f"{size / 1e6:.1f} MB"
