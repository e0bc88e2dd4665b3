"""`hidra meta-train --dry-run`: what training will need and how fast it will be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hidra_cli.system.console import Console
from hidra_cli.tasks.shape import TaskShape

if TYPE_CHECKING:
    from hidra_cli.engine.memory_estimate import MemoryEstimate
    from hidra_cli.engine.task_batch import TaskBatch
    from hidra_cli.jobs.training.trainer import MetaTrainer, Step


def dry_run(trainer: MetaTrainer, console: Console) -> None:
    """Outer steps at the most ways and shots: parameters, memory and speed.

    The memory is told before a step is taken, so that it is known where the step does not fit.
    """
    from hidra_cli.engine import devices
    from hidra_cli.engine.memory_estimate import estimate, warm_up
    from hidra_cli.engine.strategies.cores import CREW
    from hidra_cli.system import memory

    settings, device = trainer.settings, trainer.device
    shape = TaskShape(max(settings.tasks.ways), max(settings.tasks.shots))
    count = sum(p.numel() for p in trainer.learner.parameters())
    console.print("plugins, data and every episode were checked")
    console.print(f"meta-parameters   {count:,}")
    others = trainer.strategy.other_processes(settings.outer.meta_batch)
    console.print(f"strategy          {trainer.strategy.name}")

    def draw(number: int) -> TaskBatch:
        return trainer.train_episodes.batch(range(1), shape._replace(ways=number))

    with devices.memory_errors():
        warm_up(trainer.strategy, draw(min(settings.tasks.ways)))
        memory.give_back_freed_memory()
        before = devices.held_memory(device)
        size = settings.outer.meta_batch
        told = estimate(trainer.strategy, trainer.heaviest_inner, draw, shape.ways, size)
    console.print(f"memory, estimate  {_told(told)}")
    if others:
        console.print(f"                  and {others} more program(s) of about {_mb(before)} each")
    memory.give_back_freed_memory()
    devices.reset_peak_memory(device)
    step, rate = _measured(trainer, shape)
    peak = devices.peak_memory(device, CREW.pids)
    console.print(
        f"memory, measured  {_mb(peak - before)}, beside {_mb(before)} of the program ({device})"
    )
    console.print(f"speed             {rate:.1f} tasks/s at {shape.ways} ways, {shape.shots} shots")
    if trainer.inner_now.order < trainer.heaviest_inner.order:
        console.note("the estimate is of order 2; measured was order 1, with which training begins")
    console.result(
        {
            "meta_parameters": count,
            "peak_memory_mb": round(peak / 1e6),
            "memory_mb": round((peak - before) / 1e6, 1),
            "memory_estimate_mb": _in_parts(told),
            "strategy": trainer.strategy.name,
            "processes": trainer.world.size * (1 + others),
            "tasks_per_second": round(rate, 2),
            "ways": shape.ways,
            "shots": shape.shots,
            "loss": step.outcome.loss,
        }
    )


def _measured(trainer: MetaTrainer, shape: TaskShape) -> tuple[Step, float]:
    """The second of two steps, because the first pays for warming up; tasks per second."""
    trainer.step(shape)
    begun = time.monotonic()
    step = trainer.step(shape)
    return step, trainer.settings.outer.meta_batch / (time.monotonic() - begun)


def _told(memory: MemoryEstimate) -> str:
    at_once = memory.tasks_at_once
    tasks = "1 task at a time" if at_once == 1 else f"{at_once} tasks at once"
    return (
        f"{_mb(memory.total)}: {tasks}, {_mb(memory.task + memory.within)} each "
        f"({_mb(memory.step)} more with every inner step); "
        f"weights and Adam {_mb(memory.weights)}; images {_mb(memory.images)}"
        + (f"; unused between them {_mb(memory.heap)}" if memory.heap else "")
    )


def _in_parts(memory: MemoryEstimate) -> dict[str, Any]:
    return {
        "total": round(memory.total / 1e6, 1),
        "weights_and_optimizer": round(memory.weights / 1e6, 1),
        "images": round(memory.images / 1e6, 1),
        "task": round(memory.task / 1e6, 1),
        "within_operators": round(memory.within / 1e6, 1),
        "each_inner_step": round(memory.step / 1e6, 2),
        "tasks_at_once": memory.tasks_at_once,
        "unused_between_blocks": round(memory.heap / 1e6, 1),
    }


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if abs(size) >= 10e6 else f"{size / 1e6:.1f} MB"
