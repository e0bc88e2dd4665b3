"""A step that is not finite: skip it, or stop and name the task and how to replay it."""

from __future__ import annotations

import math

from hidra_cli.errors import NotFiniteError
from hidra_cli.jobs.training.trainer import MetaTrainer, Step
from hidra_cli.tasks.objective import CLASSIFICATION

# With --nonfinite skip: so many in a row are no accident, and skipping them is no training.
MOST_SKIPPED_IN_A_ROW = 20


def skip_or_stop(trainer: MetaTrainer, step: Step) -> None:
    """Count a step that is not finite as skipped, where the settings allow it.

    Raises:
        NotFiniteError: steps are not to be skipped, or too many in a row were; names the task.
    """
    progress = trainer.progress
    if (
        trainer.settings.outer.nonfinite == "stop"
        or progress.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW
    ):
        raise not_finite_error(trainer, step)
    progress.iteration += 1
    progress.skipped += 1
    progress.skipped_in_a_row += 1


def not_finite_error(trainer: MetaTrainer, step: Step) -> NotFiniteError:
    """The error of a step, which names the first task that is not finite by itself."""
    outer, seed = trainer.settings.outer, trainer.settings.run.seed
    iteration, size = trainer.progress.iteration, outer.meta_batch
    first, replay = iteration * size, ""
    # The first process looks through all tasks and reports; the others need not.
    faulty = _first_not_finite(trainer, step) if trainer.group.main else None
    if faulty is None:  # each task is finite, their sum is not
        task = f"training episodes {first} to {first + size - 1} of seed {seed}"
    else:
        position, loss = faulty
        task = f"task {position + 1} of {size}, loss {loss}: "
        task += f"training episode {first + position} of seed {seed}"
        if trainer.objective is CLASSIFICATION:  # `hidra adapt` learns classes only
            replay = f"; to replay that task: {_replay(trainer, first + position, step)}"
    if outer.nonfinite == "skip":
        task += f"; {trainer.progress.skipped_in_a_row} steps before this one were skipped"
    skip = ", or skip such steps with --nonfinite skip" if outer.nonfinite == "stop" else ""
    return NotFiniteError(
        f"the loss or its gradient is not finite at iteration {iteration + 1}",
        why=f"loss {step.outcome.loss}, gradient norm {step.gradient_norm}, "
        f"{step.shape.ways} ways, {step.shape.shots} shots; {task}",
        fix=f"lower --inner-lr or --outer-lr, or set --clip{skip}{replay}",
    )


def _first_not_finite(trainer: MetaTrainer, step: Step) -> tuple[int, float] | None:
    """The first task of a meta-batch that is not finite by itself: its position and loss."""
    batch = trainer.train_episodes.batch(trainer.episodes(trainer.progress.iteration), step.shape)
    for position in range(len(batch)):
        outcome = trainer.gradient_of(batch.only(position), trainer.inner_now)
        if not (math.isfinite(outcome.loss) and math.isfinite(trainer.clip(0))):
            return position, outcome.loss
    return None


def _replay(trainer: MetaTrainer, episode: int, step: Step) -> str:
    """The command that learns one training task alone."""
    return (
        f"hidra adapt --checkpoint RUN/checkpoints/last.safetensors --split train "
        f"--episode {episode} --seed {trainer.settings.run.seed} --ways {step.shape.ways} "
        f"--shots {step.shape.shots} --queries {trainer.settings.tasks.queries} "
        f"--steps {trainer.inner.steps}"
    )
