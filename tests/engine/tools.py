"""Small learners and tasks in float64."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from hidra_cli.engine.learner import Learner, Precision
from hidra_cli.engine.losses import LossName
from hidra_cli.engine.normalization import Mode, adapting, norm_factory
from hidra_cli.engine.rates import LearnedRates
from hidra_cli.engine.task_batch import Examples, TaskBatch
from hidra_plugins.backbones import Conv4
from hidra_plugins.heads import Cosine, Hidra, Maml, ProtoMaml, Random, Zero
from hidra_plugins.prototype_head import HidraPrototypes
from hidra_plugins.ridge import Ridge

HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "cosine": (Cosine, {}),
    "hidra": (Hidra, {}),
    "hidra-slots": (Hidra, {"master": "slots"}),
    "hidra-normalized": (Hidra, {"normalize": True, "scale": 3.0}),
    "maml": (Maml, {}),
    "random": (Random, {}),
    "zero": (Zero, {}),
    "protomaml": (ProtoMaml, {}),
    "hidra-prototypes": (HidraPrototypes, {}),
    "ridge": (Ridge, {"scale": 3.0}),
}
MODES: tuple[Mode, ...] = get_args(Mode)


def make_learner(
    head: str = "hidra",
    *,
    ways: int = 3,
    normalization: Mode = "support",
    seed: int = 0,
    filters: int = 3,
    side: int = 8,
    precision: Precision = "float32",
    dtype: torch.dtype = torch.float64,
    loss: LossName = "softmax",
    learned_steps: int | None = None,
    head_options: dict[str, Any] | None = None,
) -> Learner:
    """A small learner; with `learned_steps`, inner rates of 0.3 that are learned."""
    factory, episode = norm_factory(normalization)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = Conv4((1, side, side), factory, filters=filters, blocks=2)
        component, options = HEADS[head]
        built = component(backbone.features, ways, **options, **(head_options or {}))
    rates = None
    if learned_steps is not None:
        rates = LearnedRates(learned_steps, list(adapting(backbone)), 0.3)
    learner = Learner(backbone, built, episode, normalization, precision, loss, rates)
    return learner.to(dtype)


def make_batch(
    *,
    tasks: int = 2,
    ways: int = 3,
    shots: int = 2,
    queries: int = 2,
    seed: int = 0,
    side: int = 8,
    dtype: torch.dtype = torch.float64,
) -> TaskBatch:
    """Tasks whose classes are noisy copies of random prototypes: there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(tasks, ways, 1, 1, side, side, generator=generator, dtype=dtype)

    def examples(each: int) -> Examples:
        noise = torch.rand(tasks, ways, each, 1, side, side, generator=generator, dtype=dtype)
        images = (0.6 * prototypes + 0.4 * noise).reshape(tasks, ways * each, 1, side, side)
        return Examples(images, torch.arange(ways).repeat_interleave(each).expand(tasks, -1))

    support, query = examples(shots), examples(queries)
    return TaskBatch(support, query, ways, shots, tuple(range(seed, seed + tasks)))


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])
