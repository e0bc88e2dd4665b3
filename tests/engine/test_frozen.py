"""Frozen networks: nothing of them learns, and each picture goes through them once for a task."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.inner_loop import InnerLoop, adapted, meta_gradient
from hidra_cli.engine.learner import Learner
from hidra_cli.engine.normalization import Episode
from hidra_cli.engine.strategies.choose import choose
from hidra_cli.engine.task_batch import TaskBatch
from hidra_plugins.heads import Hidra
from hidra_plugins.ridge import Ridge
from hidra_plugins.timm_backbone import Timm

from .tools import make_batch

SHAPE = (1, 96, 96)
HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "hidra": (Hidra, {"normalize": True, "scale": 3.0}),
    "ridge": (Ridge, {}),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of a small convolutional network of timm."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return str(path)


def frozen(weights: str, head: str = "hidra") -> Learner:
    network = Timm(SHAPE, None, name="test_efficientnet", weights=weights)
    network.load_pretrained()
    backbone = FrozenNetwork(network)
    component, options = HEADS[head]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = Learner(backbone, component(backbone.features, 3, **options), Episode(), "frozen")
    return learner.eval()


def batch() -> TaskBatch:
    return make_batch(side=96, dtype=torch.float32)


def counted(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the network was given, call by call."""
    assert isinstance(learner.backbone, FrozenNetwork)
    network, calls = learner.backbone.network, list[int]()
    forward = network.forward

    def count(images: Tensor) -> Tensor:
        calls.append(len(images))
        return forward(images)

    monkeypatch.setattr(network, "forward", count)
    return calls


@pytest.mark.parametrize("head", HEADS)
def test_a_picture_goes_through_the_network_once_for_all_steps(
    weights: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, tasks = frozen(weights, head), batch()
    calls = counted(learner, monkeypatch)
    choose("loop", learner, SHAPE).strategy.scores(tasks, InnerLoop(5, 0.1), 5, every_step=True)
    assert sum(calls) == tasks.support.labels.numel() + tasks.query.labels.numel()


@pytest.mark.parametrize("head", HEADS)
def test_its_features_give_the_answers_of_its_images(weights: str, head: str) -> None:
    learner, task = frozen(weights, head), batch().task(0)
    inner = InnerLoop(2, 0.1)
    of_images = learner.query_logits(adapted(learner, task, inner, meta=False), task)
    features = task.mapped(learner.precomputed)
    assert features.support_images.shape == (6, learner.backbone.features)
    of_features = learner.query_logits(adapted(learner, features, inner, meta=False), features)
    torch.testing.assert_close(of_features, of_images)
    assert features.mapped(learner.precomputed).query_images is features.query_images


def test_nothing_of_it_is_a_meta_parameter_adapts_or_is_in_a_checkpoint(weights: str) -> None:
    learner, task = frozen(weights), batch().task(0)
    assert {name.split(".")[0] for name, _ in learner.named_parameters()} == {"head"}
    assert {name.split(".")[0] for name in learner.state_dict()} == {"head"}
    assert not learner.initial_weights(task).body


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["threads", "processes", "batched"])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_strategy_has_the_gradient_of_the_loop(
    weights: str, head: str, name: Any, recompute: bool
) -> None:
    tasks, inner = batch(), InnerLoop(2, 0.1)
    expected, learner = frozen(weights, head), frozen(weights, head)
    one = meta_gradient(expected, tasks, inner)
    choice = choose(name, learner, SHAPE, recompute=recompute)
    assert not choice.why
    other = choice.strategy.meta_gradient(tasks, inner)
    assert other.loss == pytest.approx(one.loss, abs=1e-5)
    pairs = zip(expected.parameters(), learner.parameters(), strict=True)
    for parameter, same in pairs:
        if parameter.grad is None:
            assert same.grad is None
        else:
            torch.testing.assert_close(same.grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_its_hash_is_of_its_weights_and_statistics(weights: str) -> None:
    one, same = frozen(weights).backbone, frozen(weights).backbone
    assert isinstance(one, FrozenNetwork)
    assert isinstance(same, FrozenNetwork)
    assert one.sha256 == same.sha256
    assert one.size == sum(t.nbytes for t in one._tensors().values()) > 1000
    other = frozen(weights).backbone
    assert isinstance(other, FrozenNetwork)
    running = next(v for k, v in other.network.named_buffers() if k.endswith("running_var"))
    running[0] += 1
    assert other.sha256 != one.sha256


def test_a_worker_process_gets_no_network(weights: str) -> None:
    learner = frozen(weights)
    assert isinstance(learner.backbone, FrozenNetwork)
    sent = pickle.dumps(learner)
    assert len(sent) < learner.backbone.size / 2
    task = batch().task(0).mapped(learner.precomputed)
    there: Learner = pickle.loads(sent)
    torch.testing.assert_close(
        there.query_logits(there.initial_weights(task), task),
        learner.query_logits(learner.initial_weights(task), task),
    )


def test_moving_the_learner_moves_the_network(weights: str) -> None:
    learner = frozen(weights).to(torch.float64)
    assert learner.dtype == torch.float64
    found = learner.precomputed(torch.rand(2, *SHAPE, dtype=torch.float64))
    assert found.dtype == torch.float64
    assert learner.precomputed(torch.rand(0, *SHAPE)).shape == (0, learner.backbone.features)


@pytest.mark.parametrize("head", HEADS)
def test_on_a_cpu_its_tasks_are_computed_at_once(weights: str, head: str) -> None:
    choice = choose("auto", frozen(weights, head), SHAPE)
    assert choice.strategy.name == "batched"
    assert not choice.why
