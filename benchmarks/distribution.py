"""What MAML learns for its output neurons: specific values, or a distribution to draw them from?

Takes MAML runs of several seeds and tests each on the same episodes with its neurons as they were
learned, in another order, all replaced by their mean, and redrawn from a normal distribution fitted
to them (mean and standard deviation of each feature's weight over the neurons).

    hidra meta-train --head maml --ways 5 --seed S --name maml-S …    # for several S
    python benchmarks/distribution.py runs/maml-* --out docs/results/distribution

Writes OUT.json, OUT.md and OUT.png.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hidra_cli.images.open import open_images
from hidra_cli.jobs.scoring import evaluate_cell
from hidra_cli.reports.figures import COLOURS
from hidra_cli.runs.environment import environment
from hidra_cli.runs.model import TrainedModel, load_model
from hidra_cli.runs.scores import interval
from hidra_cli.system.console import Console
from hidra_cli.system.files import write_atomically, write_json
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.objective import CLASSIFICATION
from hidra_cli.tasks.shape import TaskShape

CPU = torch.device("cpu")
Change = Callable[[Tensor, torch.Generator], Tensor]


def permuted(neurons: Tensor, generator: torch.Generator) -> Tensor:
    return neurons[torch.randperm(len(neurons), generator=generator)]


def averaged(neurons: Tensor, _generator: torch.Generator) -> Tensor:
    return neurons.mean(0, keepdim=True).expand_as(neurons).clone()


def redrawn(neurons: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(neurons.shape, generator=generator)
    return neurons.mean(0) + neurons.std(0) * noise


CHANGES: dict[str, tuple[Change | None, int]] = {
    "as learned": (None, 1),
    "in another order": (permuted, 5),
    "replaced by their mean": (averaged, 1),
    "redrawn from their distribution": (redrawn, 5),
}


def neurons_of(model: TrainedModel) -> Tensor:
    """Weights and bias of every output neuron: (N, F + 1)."""
    head = model.learner.head
    return torch.cat(
        [head.get_parameter("weight"), head.get_parameter("bias")[:, None]], 1
    ).detach()


def changed(model: TrainedModel, change: Change | None, draws: int) -> Iterator[TrainedModel]:
    """The model with other output neurons, as often as the change is to be drawn."""
    for draw in range(draws):
        learner = copy.deepcopy(model.learner)
        if change is not None:
            other = change(neurons_of(model), torch.Generator().manual_seed(draw))
            learner.head.get_parameter("weight").data.copy_(other[:, :-1])
            learner.head.get_parameter("bias").data.copy_(other[:, -1])
        yield replace(model, learner=learner)


def spread(models: list[TrainedModel]) -> dict[str, float]:
    """Root mean squares over features: neurons around their mean, and those means over seeds."""
    all_neurons = torch.stack([neurons_of(model)[:, :-1] for model in models])  # (seeds, N, F)
    means = all_neurons.mean(1)
    return {
        "between neurons of one run": all_neurons.std(1).square().mean().sqrt().item(),
        "between the mean neurons of runs": means.std(0).square().mean().sqrt().item(),
        "size of a mean neuron's weight": means.square().mean().sqrt().item(),
    }


def measure(models: list[TrainedModel], episodes: int, cache: Path | None) -> dict[str, Any]:
    """Accuracy of every model under every change, and each change's paired difference."""
    first = models[0]
    images = open_images(first.settings.dataset, cache, Console(verbosity=-1))
    ways, shots = first.max_ways, min(first.settings.tasks.shots)
    sampler = ImageSampler(images, "test", (ways,), (shots,), 15, seed=0, device=CPU)

    def accuracies(model: TrainedModel) -> np.ndarray[Any, np.dtype[np.float64]]:
        cell = evaluate_cell(
            model, sampler, TaskShape(ways, shots), episodes=episodes, every_step=False
        )
        return cell.final

    rows, learned = [], np.empty(0)
    for name, (change, draws) in CHANGES.items():
        per_run = []
        for model in models:
            print(f"{model.name}: {name}", flush=True)
            per_run.append(
                np.mean([accuracies(other) for other in changed(model, change, draws)], axis=0)
            )
        together = np.concatenate(per_run)
        learned = together if change is None else learned
        mean, half = interval(together)
        difference, its_half = interval(together - learned)
        rows.append(
            {
                "neurons": name,
                "draws": draws,
                "accuracy": mean,
                "interval": half,
                "per_run": [float(values.mean()) for values in per_run],
                "difference": difference,
                "difference_interval": its_half,
            }
        )
    return {
        "episodes": episodes,
        "runs": [model.name for model in models],
        "settings": first.meta.settings.model_dump(),
        "spread": spread(models),
        "rows": rows,
        "environment": environment(CPU, first.meta.plugins).to_json(),
    }


def table(found: dict[str, Any]) -> str:
    lines = ["| output neurons | accuracy, % | minus learned, points |", "|---|---:|---:|"]
    for row in found["rows"]:
        minus, shown = "", CLASSIFICATION.interval(row["accuracy"], row["interval"])
        if row["difference"]:
            minus = CLASSIFICATION.interval(row["difference"], row["difference_interval"])
        lines.append(f"| {row['neurons']} | {shown} | {minus} |")
    lines += ["", "| spread (root mean square over weights) | |", "|---|---:|"]
    lines += [f"| {name} | {value:.4f} |" for name, value in found["spread"].items()]
    return "\n".join(lines) + "\n"


def picture(models: list[TrainedModel], found: dict[str, Any]) -> bytes:
    """Left: the neurons' weights of the first run, a line each. Right: accuracies with bars."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    weights = neurons_of(models[0])[:, :-1]
    order = weights.mean(0).argsort()
    for row in weights[:, order]:
        left.plot(row, linewidth=1, alpha=0.8)
    left.plot(weights.mean(0)[order], color="black", linewidth=2, label="mean of the neurons")
    left.set_title("output neurons of one MAML run", fontsize=10, loc="left")
    left.set_xlabel("feature, ordered by the mean")
    left.set_ylabel("meta-learned weight")
    left.legend(frameon=False, fontsize=8)
    rows = found["rows"]
    places = np.arange(len(rows))[::-1]
    right.errorbar(
        [100 * row["accuracy"] for row in rows], places,
        xerr=[100 * row["interval"] for row in rows], fmt="o", color=COLOURS[0], capsize=4,
    )  # fmt: skip
    right.set_yticks(places, [row["neurons"] for row in rows], fontsize=8)
    right.set_ylim(-0.7, len(rows) - 0.3)
    right.set_xlabel("test accuracy, %")
    right.grid(color="0.9")
    right.set_axisbelow(True)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("distribution"))
    parser.add_argument("--cache-dir", type=Path)
    given = parser.parse_args()
    models = [load_model(run, CPU) for run in given.runs]
    found = measure(models, given.episodes, given.cache_dir)
    write_json(given.out.with_suffix(".json"), found)
    write_atomically(given.out.with_suffix(".md"), table(found).encode())
    write_atomically(given.out.with_suffix(".png"), picture(models, found))
    print(table(found))
    print(json.dumps(found["spread"], indent=2))


if __name__ == "__main__":
    main()
