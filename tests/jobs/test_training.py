"""Meta-training: reproducible, selected on validation, interrupted without loss."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hidra_cli.errors import DataError, RunError, UsageError
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.training.loop import METRICS, Trained, take_step
from hidra_cli.jobs.training.loop import train as run_training
from hidra_cli.jobs.training.schedule import inner_at, outer_scale
from hidra_cli.jobs.training.state import restore
from hidra_cli.jobs.training.trainer import MetaTrainer
from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.directory import RunDir, create_run
from hidra_cli.runs.model import load_model, restore_learner
from hidra_cli.runs.records import StartRecord
from hidra_cli.settings.layers import resolve
from hidra_cli.settings.schema import Settings
from hidra_cli.tasks.shape import TaskShape
from hidra_plugins.heads import Hidra

from ..conftest import TINY_OPTIONS

CPU = torch.device("cpu")
TINY = {
    "dataset.options": TINY_OPTIONS,
    "tasks.ways": "2-5",
    "tasks.queries": 3,
    "model.backbone_options": {"filters": 4},
    "outer.iterations": 6,
    "outer.meta_batch": 2,
    "outer.validate_every": 2,
    "outer.validation_episodes": 6,
}


def settings_of(**changes: Any) -> Settings:
    flags = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return resolve(flags, environ={}).settings


def train(
    images: PreparedImages, folder: Path, **changes: Any
) -> tuple[MetaTrainer, RunDir, Trained]:
    settings = settings_of(**changes)
    trainer = MetaTrainer(settings, images, CPU)
    run = create_run(folder, None, settings)
    return trainer, run, run_training(trainer, run)


def rows(run: RunDir) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_seed_gives_the_same_run_bit_for_bit(
    tiny_images: PreparedImages, tmp_path: Path
) -> None:
    _, first, _ = train(tiny_images, tmp_path)
    _, second, _ = train(tiny_images, tmp_path)
    _, other, _ = train(tiny_images, tmp_path, run__seed=1)
    a, b, c = (load_checkpoint(run.last).tensors for run in (first, second, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_run_may_begin_with_the_weights_of_another(
    tiny_images: PreparedImages, tmp_path: Path
) -> None:
    _, first, _ = train(tiny_images, tmp_path, inner__rates="learned")
    changes = {"inner__rates": "learned", "model__start_from": str(first.path), "run__seed": 7}
    settings = settings_of(**changes)
    second = MetaTrainer(settings, tiny_images, CPU)
    best = load_checkpoint(first.best).part("model")
    begun = second.learner.state_dict()
    assert begun.keys() == best.keys()
    assert all(torch.equal(begun[name], best[name]) for name in best)
    digest = hashlib.sha256(first.best.read_bytes()).hexdigest()
    assert second.start == StartRecord(checkpoint=str(first.best), sha256=digest)
    run = create_run(tmp_path, None, settings)
    run_training(second, run)
    shutil.rmtree(first.path)
    last = load_checkpoint(run.last)  # what it began with is no longer needed
    learner = restore_learner(last, last.model_meta, settings)
    going_on = MetaTrainer(settings, tiny_images, CPU, learner=learner)
    restore(going_on, last)
    assert going_on.progress.iteration == 6


def test_a_run_does_not_begin_with_weights_of_another_model(
    tiny_images: PreparedImages, tmp_path: Path
) -> None:
    _, first, _ = train(tiny_images, tmp_path)
    for change in ({"model__normalization": "tasknorm"}, {"inner__rates": "learned"}):
        ((name, value),) = change.items()
        with pytest.raises(UsageError) as refused:
            MetaTrainer(settings_of(model__start_from=str(first.path), **change), tiny_images, CPU)
        assert f"{name.replace('__', '.')} is " in str(refused.value.why)
        assert f"{value} here" in str(refused.value.why)
    for no_run in ("no-such-run", ""):
        with pytest.raises(DataError, match="not a run"):
            MetaTrainer(settings_of(model__start_from=no_run), tiny_images, CPU)


@pytest.mark.parametrize("other", ["random", "zero", "maml", "protomaml"])
def test_two_heads_with_one_seed_share_backbone_and_tasks(
    tiny_images: PreparedImages, other: str
) -> None:
    hidra = MetaTrainer(settings_of(tasks__ways=3), tiny_images, CPU)
    rival = MetaTrainer(settings_of(tasks__ways=3, model__head=other), tiny_images, CPU)
    for name, value in hidra.learner.backbone.state_dict().items():
        assert torch.equal(value, rival.learner.backbone.state_dict()[name])
    ours = hidra.train_episodes.batch([5], TaskShape(3, 1))
    theirs = rival.train_episodes.batch([5], TaskShape(3, 1))
    assert torch.equal(ours.query.images, theirs.query.images)


def test_metrics_have_one_row_per_step(tiny_images: PreparedImages, tmp_path: Path) -> None:
    _, run, _ = train(tiny_images, tmp_path)
    found = rows(run)
    assert tuple(found[0]) == METRICS
    assert [row["iteration"] for row in found] == ["1", "2", "3", "4", "5", "6"]
    assert [bool(row["validation_accuracy"]) for row in found] == [False, True] * 3
    assert all(2 <= int(row["ways"]) <= 5 for row in found)


def test_the_best_checkpoint_is_the_best_on_validation_not_the_last(
    tiny_images: PreparedImages, tmp_path: Path
) -> None:
    changes = {"outer__outer_lr": 0.3, "outer__iterations": 20, "outer__validate_every": 1}
    _, run, trained = train(tiny_images, tmp_path, **changes)
    accuracies = [float(row["validation_accuracy"]) for row in rows(run)]
    best = accuracies.index(max(accuracies)) + 1
    assert best < 20, "this rate was meant to break the model towards the end"
    assert load_checkpoint(run.best).meta["iteration"] == trained.best.iteration == best
    assert load_checkpoint(run.last).meta["iteration"] == 20
    assert load_model(run.path, CPU).meta.iteration == best


def test_order_and_multi_step_loss_follow_the_iteration(tiny_images: PreparedImages) -> None:
    settings = settings_of(inner__steps=4, inner__second_order_from=3, outer__multi_step=4)
    trainer = MetaTrainer(settings, tiny_images, CPU)
    seen = [inner_at(trainer.inner, settings, iteration) for iteration in range(6)]
    assert [inner.order for inner in seen] == [1, 1, 1, 2, 2, 2]
    assert seen[0].shares == pytest.approx((0, 0.25, 0.25, 0.25, 0.25))
    assert seen[2].shares == pytest.approx((0, 0.125, 0.125, 0.125, 0.625))
    assert seen[4].shares is None, "from then on the last step alone counts"


def test_learned_rates_move_at_a_rate_of_their_own_and_are_saved(
    tiny_images: PreparedImages, tmp_path: Path
) -> None:
    changes = {"inner__rates": "learned", "inner__steps": 2, "outer__rates_lr": 0.05}
    trainer, run, _ = train(tiny_images, tmp_path, **changes, outer__schedule="cosine")
    assert [g["initial_lr"] for g in trainer.optimizer.param_groups] == [1e-3, 0.05]
    last = outer_scale(trainer.settings.outer, trainer.progress.iteration)
    assert 0 <= last < 1e-9, "the schedule ends at zero, for both"
    saved = load_checkpoint(run.last).part("model")
    assert saved["rates.log_head"].shape == (2,)
    start = torch.full((), math.log(0.4))
    assert torch.equal(saved["rates.log_body"][0], start.expand(12)), "no signal, no move"
    moved = (saved["rates.log_body"][1] - start).abs()
    assert 1e-3 < moved.max() < 0.05 * 6
    model = load_model(run.path, CPU)
    assert model.learner.rates is not None
    assert torch.equal(
        model.learner.rates.log_head, load_checkpoint(run.best).part("model")["rates.log_head"]
    )


@pytest.mark.parametrize(
    "head", ["cosine", "hidra", "maml", "protomaml", "random", "ridge", "zero"]
)
@pytest.mark.parametrize("order", [1, 2])
def test_every_head_trains_saves_and_reloads(
    tiny_images: PreparedImages, tmp_path: Path, head: str, order: int
) -> None:
    trainer, run, _ = train(
        tiny_images, tmp_path, model__head=head, tasks__ways=3, inner__order=order
    )
    model = load_model(run.last, CPU)
    for name, value in trainer.learner.state_dict().items():
        assert torch.equal(value, model.learner.state_dict()[name])
    task = trainer.train_episodes.batch([0], TaskShape(3, 1)).task(0)
    weights = trainer.learner.initial_weights(task)
    assert torch.equal(
        trainer.learner.query_logits(weights, task), model.learner.query_logits(weights, task)
    )


def test_the_backbone_learns(tiny_images: PreparedImages, tmp_path: Path) -> None:
    changes = {"outer__iterations": 60, "outer__outer_lr": 0.01, "outer__meta_batch": 4}
    _, run, _ = train(tiny_images, tmp_path, **changes)
    losses = [float(row["loss"]) for row in rows(run)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


def test_slot_averaging_is_one_adam_step_per_slot_then_the_mean_of_the_used_ones() -> None:
    torch.manual_seed(0)
    head = Hidra(3, 4, master="slots")
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    master = head.slot_weights[0].detach().clone()
    slots = [master.clone().requires_grad_() for _ in range(4)]
    own = [torch.optim.Adam([slot], lr=0.1) for slot in slots]
    for ways in (3, 2, 4, 2):
        targets = torch.randn(ways, 3)
        optimizer.zero_grad()
        weights = head.initialize(ways, None, torch.arange(ways), torch.Generator())
        ((weights["weight"] - targets) ** 2).sum().backward()
        optimizer.step()
        head.after_outer_step(ways)

        for index, slot in enumerate(slots):
            used = index < ways
            slot.grad = 2 * (master - targets[index]) if used else torch.zeros(3)
            own[index].step()
        master = master + torch.stack([s.detach() - master for s in slots[:ways]]).mean(0)
        for slot in slots:
            slot.data.copy_(master)
        assert torch.allclose(head.slot_weights, master.expand(4, -1), atol=1e-6)
    more = head.initialize(9, None, torch.arange(9), torch.Generator())
    assert torch.allclose(more["weight"], master.expand(9, -1), atol=1e-6)


def test_gradient_tensors_are_clipped_each_to_the_norm(tiny_images: PreparedImages) -> None:
    trainer = MetaTrainer(settings_of(outer__clip=1e-3), tiny_images, CPU)
    trainer.gradient()
    norms = [p.grad.norm().item() for p in trainer.learner.parameters() if p.grad is not None]
    assert max(norms) <= 1e-3 * 1.001
    assert sum(norm > 0.9e-3 for norm in norms) >= 2


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights(
    tiny_images: PreparedImages,
) -> None:
    trainer = MetaTrainer(
        settings_of(inner__inner_lr=1e30, inner__steps=3, model__head="random"), tiny_images, CPU
    )
    before = {n: v.clone() for n, v in trainer.learner.state_dict().items()}
    with pytest.raises(RunError, match="iteration 1") as failure:
        take_step(trainer)
    assert "training episode 0 of seed 0" in failure.value.why
    assert "--inner-lr" in failure.value.fix
    assert all(torch.equal(v, before[n]) for n, v in trainer.learner.state_dict().items())


def test_impossible_settings_are_refused_before_the_first_step(
    tiny_images: PreparedImages,
) -> None:
    with pytest.raises(UsageError, match="serves only") as fixed:
        MetaTrainer(settings_of(model__head="maml"), tiny_images, CPU)
    assert "hidra" in fixed.value.fix
    with pytest.raises(DataError, match="too few images") as few:
        MetaTrainer(settings_of(tasks__shots=6), tiny_images, CPU)
    assert "it has 8 and needs 9: 6 for support, 3 as queries" in few.value.why
    with pytest.raises(DataError, match="too few classes"):
        MetaTrainer(settings_of(tasks__ways=200), tiny_images, CPU)
    with pytest.raises(UsageError, match="only the body adapts"):
        MetaTrainer(settings_of(inner__adapt="body"), tiny_images, CPU)


LONG_RUN = [
    *(f"--data-opt={name}={value}" for name, value in TINY_OPTIONS.items()),
    "--ways=2-5",
    "--queries=3",
    "--bb-opt=filters=4",
    "--iterations=100000",
    "--validation-episodes=6",
    "--name=long",
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_saving_the_finished_step(
    cache_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "hidra_cli.app", "meta-train", *LONG_RUN]
    command += [f"--cache-dir={cache_dir}", f"--runs-dir={tmp_path}"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    run = RunDir(tmp_path / "long")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (run.metrics.exists() and len(rows(run)) >= 3):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped: after iteration" in errors
    assert number.name in errors
    assert "Traceback" not in errors
    steps = rows(run)
    saved = load_checkpoint(run.last).meta["iteration"]
    assert [int(row["iteration"]) for row in steps] == list(range(1, saved + 1))
    assert not list(tmp_path.rglob("*.tmp"))
