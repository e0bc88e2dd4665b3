"""The losses, against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hidra_cli.engine.inner_loop import InnerLoop, adapted, meta_gradient
from hidra_cli.engine.losses import LossName, loss, probabilities
from hidra_cli.engine.rates import LearnedRates
from hidra_cli.engine.task_batch import Examples

from .tools import make_batch, make_learner

OUTPUTS = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.5, -0.5]], dtype=torch.float64)
LABELS = torch.tensor([2, 0])
CODES = torch.tensor([[0, 0, 1], [1, 0, 0]], dtype=torch.float64)


def by_definition(name: LossName) -> float:
    total = 0.0
    for row, code in zip(OUTPUTS.tolist(), CODES.tolist(), strict=True):
        if name == "softmax":
            total -= math.log(math.exp(row[code.index(1)]) / sum(map(math.exp, row)))
            continue
        for value, wanted in zip(row, code, strict=True):
            chance = 1 / (1 + math.exp(-value))
            right = chance if wanted else 1 - chance
            total += (value - wanted) ** 2 if name == "mse" else -math.log(right)
    return total / len(OUTPUTS)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "mse"])
def test_a_loss_is_the_mean_over_examples_of_a_sum_over_outputs(name: LossName) -> None:
    assert loss(name, OUTPUTS, LABELS).item() == pytest.approx(by_definition(name), rel=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "mse"])
def test_labels_are_short_for_their_one_hot_codes(name: LossName) -> None:
    assert torch.equal(loss(name, OUTPUTS, LABELS), loss(name, OUTPUTS, CODES))


def test_softmax_scores_sum_to_one_and_sigmoid_scores_may_all_be_small() -> None:
    low = OUTPUTS - 20
    assert torch.allclose(probabilities("softmax", low).sum(1), torch.ones(2, dtype=torch.float64))
    assert probabilities("sigmoid", low).max() < 1e-6
    assert probabilities("mse", OUTPUTS).min() >= 0


def test_under_sigmoid_a_class_learns_whatever_the_others_are_called() -> None:
    """One-vs-rest: with the backbone still, neuron 0 sees only which pictures are of class 0."""
    learner = make_learner("hidra", ways=4, loss="sigmoid")
    inner = InnerLoop(3, 0.2, adapt="head", head_lr="fixed")
    task = make_batch(tasks=1, ways=4).task(0)
    merged = task.support_labels.clone()
    merged[merged == 3] = 2
    first = adapted(learner, task, inner, meta=False)
    other = type(task)(
        task.support_images, merged, task.query_images, task.query_labels, 4, task.generator_key
    )
    second = adapted(learner, other, inner, meta=False)
    assert torch.allclose(first.head["weight"][:2], second.head["weight"][:2], atol=1e-14)
    assert not torch.allclose(first.head["weight"][2], second.head["weight"][2])


@pytest.mark.parametrize("head", ["hidra", "zero"])
@pytest.mark.parametrize("ways", [2, 5])
def test_the_prior_starts_every_class_at_its_share(head: str, ways: int) -> None:
    options = {"prior": True} | ({"start": "zero"} if head == "hidra" else {})
    learner = make_learner(head, ways=ways, loss="sigmoid", head_options=options)
    task = make_batch(tasks=1, ways=ways).task(0)
    logits = learner.query_logits(learner.initial_weights(task), task)
    chances = probabilities("sigmoid", logits)
    assert torch.allclose(chances, torch.full_like(chances, 1 / ways), atol=1e-12)


def test_steps_beyond_those_of_training_use_the_last_rates() -> None:
    rates = LearnedRates(2, ["a", "b"], 0.5)
    with torch.no_grad():
        rates.log_body[1, 0] = math.log(0.25)
        rates.log_head[1] = math.log(3.0)
    for step, a, head in ((0, 0.5, 0.5), (1, 0.25, 3.0), (2, 0.25, 3.0), (7, 0.25, 3.0)):
        with torch.no_grad():
            found = rates.at(step)
        assert float(found.body["a"]) == pytest.approx(a)
        assert float(found.body["b"]) == pytest.approx(0.5)
        assert float(found.head) == pytest.approx(head)


@pytest.mark.parametrize("head", ["hidra", "hidra-slots", "zero", "maml"])
@pytest.mark.parametrize("ways", [1, 3])
def test_the_meta_gradient_of_squared_error_on_values(head: str, ways: int) -> None:
    """Against central finite differences, through two inner steps."""
    batch = make_batch(tasks=2, ways=2)
    generator = torch.Generator().manual_seed(5)

    def of_values(examples: Examples) -> Examples:
        shape = (*examples.labels.shape, ways)
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return Examples(examples.images, values)

    batch = replace(
        batch, support=of_values(batch.support), query=of_values(batch.query), ways=ways
    )
    learner = make_learner(head, ways=ways, loss="mse", normalization="none", filters=2)
    inner = InnerLoop(2, 0.05)
    outcome = meta_gradient(learner, batch, inner)
    assert outcome.loss == pytest.approx(ways * outcome.score), "summed over the outputs"

    def query_loss() -> float:
        found = []
        for task in map(batch.task, range(len(batch))):
            weights = adapted(learner, task, inner, meta=False)
            with torch.no_grad():
                outputs = learner.query_logits(weights, task)
            found.append(learner.loss(outputs, task.query_labels).item())
        return sum(found) / len(found)

    for name, parameter in learner.named_parameters():
        if parameter.numel() == 0 or parameter.grad is None:
            continue
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in {0, flat.numel() // 2, flat.numel() - 1}:
            kept, step = flat[index].item(), 1e-6
            flat[index] = kept + step
            above = query_loss()
            flat[index] = kept - step
            slope = (above - query_loss()) / (2 * step)
            flat[index] = kept
            assert gradient[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "mse"])
def test_the_heads_rate_grows_with_the_ways_where_the_gradient_shrinks(name: LossName) -> None:
    learner = make_learner(loss=name)
    found = [InnerLoop(1, 0.4).rates(learner, 0, ways).head for ways in (1, 5, 20)]
    assert found == pytest.approx([0.4] * 3 if name == "mse" else [0.08, 0.4, 1.6])
