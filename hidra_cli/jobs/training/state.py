"""The checkpoints of a run: the two newest and the best, and how one is restored."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from hidra_cli.errors import DataError, RunError
from hidra_cli.jobs.training.trainer import MetaTrainer, Progress
from hidra_cli.jobs.training.validation import Validation
from hidra_cli.runs.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    incomplete,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
)
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.metrics import MetricsFile
from hidra_cli.runs.model_records import CheckpointMeta
from hidra_cli.runs.network import check_network, network_record
from hidra_cli.system.files import write_atomically


def restore(trainer: MetaTrainer, checkpoint: Checkpoint) -> None:
    """Go on where a checkpoint of this run was saved.

    Everything random is a function of (seed, iteration), so that weights, optimizer and counters
    are all there is to restore.

    Raises:
        DataError: the checkpoint is of other images, or an entry is missing or wrong.
        RunError: its weights do not fit.
    """
    meta = checkpoint.model_meta
    if meta.dataset_hash != trainer.data.content_hash:
        raise DataError(
            f"the tasks of {trainer.data.dataset} are not those that {checkpoint.path} was "
            "trained on",
            why=f"{trainer.data.place} has other content now",
            fix="prepare the dataset from the same source again, or begin a new run",
        )
    check_network(checkpoint.path, meta, trainer.learner)
    load_weights(trainer.learner, checkpoint, meta)
    restore_optimizer(trainer.optimizer, trainer.names, checkpoint)
    best = None
    if meta.best is not None:
        if meta.best.metric != trainer.objective.key:
            raise incomplete(checkpoint, f"best: it has no {trainer.objective.key}")
        best = Validation(meta.best.iteration, meta.best.score, meta.best.interval)
    trainer.progress = Progress(meta.iteration, best, *meta.skipped)


class Checkpoints:
    """Writes the checkpoints of a run; of several processes, the first one does.

    Args:
        trainer: whose state is saved.
        run: where to.
        metrics: whose rows must be on the disk before a checkpoint is.
    """

    def __init__(self, trainer: MetaTrainer, run: RunDir, metrics: MetricsFile) -> None:
        self.trainer = trainer
        self.run = run
        self.metrics = metrics
        self._iteration = trainer.progress.iteration
        self._time = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last one."""
        return time.monotonic() - self._time

    def save(self, *, best: bool = False) -> None:
        """Save the state: what it builds on first, so that a kill in between loses nothing."""
        self.metrics.flush_to_disk()
        if best:
            self.save_best()
        self._write(self.run.last, self.run.previous)
        self._iteration, self._time = self.trainer.progress.iteration, time.monotonic()

    def save_best(self) -> None:
        """Save the state as the best alone."""
        self._write(self.run.best)

    @contextlib.contextmanager
    def saved_if_it_fails(self) -> Iterator[None]:
        """No memory, not finite, a plugin's fault, a lost process: the steps before are whole."""
        try:
            yield
        except Exception:
            self.save()
            raise

    def with_last_good(self, error: RunError) -> RunError:
        """An error that says which checkpoint is safe, too."""
        run = self.run
        kept = next((path for path in (run.last, run.previous) if path.is_file()), None)
        if kept is None or not self.trainer.group.main:
            return error
        safe = f"iteration {self._iteration} is safe in {kept}"
        return RunError(
            error.what,
            why=error.why,
            fix=f"{error.fix}; {safe}: then hidra meta-train --resume {run.path}",
        )

    def _write(self, path: Path, keep_old_as: Path | None = None) -> None:
        trainer = self.trainer
        if not trainer.group.main:
            return
        tensors = {f"model.{name}": value for name, value in trainer.learner.state_dict().items()}
        tensors |= optimizer_tensors(trainer.optimizer, trainer.names)
        content = checkpoint_bytes(tensors, _meta(trainer).to_json())
        write_atomically(path, content, keep_old_as=keep_old_as)


def _meta(trainer: MetaTrainer) -> CheckpointMeta:
    data, progress = trainer.data, trainer.progress
    return CheckpointMeta(
        settings=trainer.settings,
        plugins=trainer.components.records,
        problem=trainer.objective.name,
        image_shape=data.image_shape,
        max_ways=max(trainer.settings.tasks.ways),
        dataset_hash=data.content_hash,
        store=Path(data.place).name,
        invert=data.attributes["invert"] == "True",
        preprocessing=json.loads(data.attributes.get("preprocessing", "null")),
        network=network_record(trainer.learner),
        iteration=progress.iteration,
        best=progress.best.record(trainer.objective) if progress.best else None,
        skipped=(progress.skipped, progress.skipped_in_a_row),
    )
