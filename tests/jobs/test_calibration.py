"""What answers are worth: scales against brute force, and familiarity against plain refits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hidra_cli.engine.inner_loop import adapted
from hidra_cli.jobs.calibration import (
    PRIOR_PICTURES,
    calibrate,
    default_scale,
    fitted_scale,
    minimum,
)
from hidra_cli.jobs.familiarity import INTERCEPT, familiarity, known_probability
from hidra_cli.jobs.one_task import hold_out, own_task
from hidra_cli.runs.model import TrainedModel, load_model
from hidra_cli.runs.model_records import CalibrationDefaults

DEFAULTS = CalibrationDefaults(
    log_scale=(0.3, 0.1, -0.2, 0.02),
    logit_share=0.1,
    known_offset=(0.14, -0.02),
    known_spread=0.13,
)


def answers(ways: int, shots: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """Logits whose classes are right as often as a softmax of `sharpness` · logits says."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ways * shots * 4000, ways, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((sharpness * logits).softmax(1), 1, generator=generator)[:, 0]
    rows = torch.cat([torch.nonzero(labels == c)[: shots * 2000, 0] for c in range(ways)])
    return logits[rows], labels[rows]


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_many_held_out_pictures_say_how_sharp_logits_have_to_be(sharpness: float) -> None:
    logits, labels = answers(4, 2, sharpness)
    assert fitted_scale(logits, labels, None, 5) == pytest.approx(sharpness, rel=0.15)


@pytest.mark.parametrize("ways", [2, 5])
def test_the_scale_is_the_least_cost_by_brute_force(ways: int) -> None:
    logits, labels = (part[::970] for part in answers(ways, 1, 2.0))
    before = default_scale(DEFAULTS, ways, len(labels) / ways * (1 - 1 / 3))
    counts = labels.bincount()[labels]
    weights = (len(labels) / (ways * counts)).double()
    costs = {
        t: (weights * F.cross_entropy(logits * before * math.exp(t), labels, reduction="none"))
        .sum()
        .item()
        + PRIOR_PICTURES / 2 * t**2
        for t in torch.linspace(-3, 3, 6001).tolist()
    }
    expected = math.exp(min(costs, key=lambda t: costs[t])) * default_scale(
        DEFAULTS, ways, len(labels) / ways
    )
    assert fitted_scale(logits, labels, DEFAULTS, 3) == pytest.approx(expected, rel=2e-3)


def test_a_few_pictures_move_the_scale_little() -> None:
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    default = default_scale(DEFAULTS, 2, 2)
    assert default == pytest.approx(
        math.exp(0.3 + 0.1 * math.log(2) - 0.2 * math.log(2) + 0.02 * math.log(2) ** 2)
    )
    assert fitted_scale(logits, labels, DEFAULTS, 2) == pytest.approx(default, rel=1e-3)
    right = 4 * F.one_hot(labels).double()
    assert default < fitted_scale(right, labels, DEFAULTS, 2) < 1.2 * default


@pytest.mark.parametrize("at", [-2.9, -0.31, 0.0, 1.7])
def test_the_minimum_of_one_number(at: float) -> None:
    assert minimum(lambda t: (t - at) ** 2 + abs(t - at), -3, 3) == pytest.approx(at, abs=1e-5)


def test_pictures_that_were_learned_are_the_most_familiar() -> None:
    support = F.normalize(torch.rand(6, 20, dtype=torch.float64), dim=1)
    others = torch.rand(5, 20, dtype=torch.float64)
    logits = torch.zeros(6, 3, dtype=torch.float64)
    own = familiarity(support, 7 * support, logits, 0.1)
    torch.testing.assert_close(own, torch.ones(6, dtype=torch.float64))
    assert familiarity(support, others, logits[:5], 0.1).max() < 1
    sure = familiarity(support, others, logits[:5] + 2, 0.1)
    torch.testing.assert_close(sure, familiarity(support, others, logits[:5], 0.1) + 0.2)
    known = known_probability(torch.tensor([0.1, 0.5, 0.9]), 0.5, 0.1)
    assert known[0] < known[1] < known[2]
    assert known[1] == pytest.approx(1 / (1 + math.exp(-INTERCEPT)))


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return load_model(Path("photos-any"), torch.device("cpu"))


def clusters(ways: int, shots: int) -> tuple[Tensor, Tensor]:
    """Features of classes that differ."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(ways, 1280, generator=generator)
    labels = torch.arange(ways).repeat(shots)
    return centres[labels] + torch.rand(len(labels), 1280, generator=generator), labels


def ridge(x: Tensor, labels: Tensor, asked: Tensor, ways: int) -> Tensor:
    """Solutions (n, N) of ridge regression for classes of one size, penalty 0.3, in float64."""
    x, asked = (F.normalize(part.double(), dim=1) for part in (x, asked))
    targets = F.one_hot(labels, ways).double() - 1 / ways
    gram = x @ x.T + 0.3 * torch.eye(len(x), dtype=torch.float64)
    solution: Tensor = asked @ x.T @ torch.linalg.solve(gram, targets)
    return solution


def test_familiarity_of_what_is_left_out_is_that_of_plain_refits(model: TrainedModel) -> None:
    ways, shots = 4, 3
    features, labels = clusters(ways, shots)
    task = own_task((features, labels), None, ways)
    held_out = hold_out(model, features, labels, ways)
    assert held_out is not None
    assert held_out.folds == shots
    weights = adapted(model.learner, task, model.inner, meta=False, steps=0)
    record, support = calibrate(model, weights, task, held_out)
    assert support is not None
    torch.testing.assert_close(support, F.normalize(features, dim=1))
    unit = F.normalize(features.double(), dim=1)
    scores: list[list[float]] = [[], []]
    for row in range(len(labels)):
        fold = row // ways
        for scored, rest in zip(
            scores, (torch.arange(len(labels)) // ways != fold, labels != labels[row]), strict=True
        ):
            classes = sorted(set(labels[rest].tolist()))
            places = torch.tensor([classes.index(label) for label in labels[rest].tolist()])
            solution = ridge(features[rest], places, features[row : row + 1], len(classes))
            nearest = (unit[row] @ unit[rest].T).max()
            scored.append(float(nearest + solution.max() / 2))
    own, foreign = (torch.tensor(scored, dtype=torch.float64) for scored in scores)
    assert record.middle == pytest.approx(float(own.mean() + foreign.mean()) / 2, abs=1e-4)
    assert record.spread == pytest.approx(math.sqrt((own.var() + foreign.var()) / 2), rel=1e-3)


def test_one_picture_of_a_class_takes_the_models_defaults(model: TrainedModel) -> None:
    ways = 5
    features, labels = clusters(ways, 1)
    task = own_task((features, labels), None, ways)
    weights = adapted(model.learner, task, model.inner, meta=False, steps=0)
    record, support = calibrate(model, weights, task, None)
    defaults = model.meta.defaults
    assert defaults is not None
    assert record.scale == pytest.approx(default_scale(defaults, ways, 1))
    assert record.spread == pytest.approx(defaults.known_spread)
    assert support is not None
