"""Heads on frozen features of photographs: accuracy at several ways and shots, and calibration.

python benchmarks/photographs/heads.py FOLDER FEATURES.safetensors RESULT.json [TASKS]

FOLDER has a folder of photographs per class. FEATURES holds what photos-any sees of them; it is
made where it does not exist. Every head sees the same tasks: ridge as it ships, the nearest
class mean, and scikit-learn's logistic regression (its default, C = 1, on features × 10).
"""

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.images.labelled import labelled_pictures
from hidra_cli.images.own_pictures import read_pictures
from hidra_cli.jobs.calibration import default_scale, fitted_scale
from hidra_cli.runs.model import load_model

WAYS, SHOTS, QUERIES = (2, 5, 7, 10, 20, 50), (1, 2, 5, 10, 20), 10
PENALTY, SCALE, LENGTH = 0.3, 15.0, 10.0
CPU = torch.device("cpu")
MODEL = load_model(Path("photos-any"), CPU)


def features_of(folder: Path, file: Path) -> tuple[Tensor, Tensor]:
    """Features of length 1 (n, F) and labels (n,)."""
    if not file.is_file():
        pictures = labelled_pictures(folder)
        preprocessing: Preprocessing = MODEL.meta.image_preprocessing
        seen = [
            MODEL.learner.precomputed(read_pictures([path], preprocessing).images)
            for path in pictures.paths
        ]
        save_file({"features": torch.cat(seen), "labels": torch.tensor(pictures.labels)}, file)
    held = load_file(file)
    return F.normalize(held["features"].float(), dim=1), held["labels"]


def tasks(
    features: Tensor, labels: Tensor, ways: int, shots: int, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Support (N, K, F) and queries (N, Q, F); nothing where there are too few pictures."""
    by_class = [features[labels == label] for label in sorted(set(labels.tolist()))]
    able = [rows for rows in by_class if len(rows) >= shots + QUERIES]
    generator = torch.Generator().manual_seed(1000 * ways + shots)
    for _ in range(count if len(able) >= ways else 0):
        chosen = torch.randperm(len(able), generator=generator)[:ways].tolist()
        drawn = [
            able[c][torch.randperm(len(able[c]), generator=generator)[: shots + QUERIES]]
            for c in chosen
        ]
        both = torch.stack(drawn)
        yield both[:, :shots], both[:, shots:]


def ridge(support: Tensor, queries: Tensor) -> Tensor:
    """Logits (N, Q, N), as the head `ridge` gives them."""
    ways, shots, _ = support.shape
    x, labels = support.flatten(0, 1), torch.arange(ways).repeat_interleave(shots)
    targets = F.one_hot(labels, ways).float() - 1 / ways
    solution = torch.linalg.solve(x @ x.T + PENALTY * torch.eye(len(x)), targets)
    logits: Tensor = SCALE * queries @ (x.T @ solution)
    return logits


def nearest_mean(support: Tensor, queries: Tensor) -> Tensor:
    return queries @ F.normalize(support.mean(1), dim=1).T


def logistic_regression(support: Tensor, queries: Tensor) -> Tensor:
    fit = importlib.import_module("sklearn.linear_model").LogisticRegression(max_iter=300).fit
    ways, shots, _ = support.shape
    labels = torch.arange(ways).repeat_interleave(shots)
    fitted = fit(LENGTH * support.flatten(0, 1), labels)
    answers = torch.from_numpy(fitted.predict_proba(LENGTH * queries.flatten(0, 1)))
    return answers.reshape(ways, queries.shape[1], ways)


HEADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ridge": ridge,
    "nearest class mean": nearest_mean,
    "logistic regression": logistic_regression,
}


def scale_of(support: Tensor) -> float:
    """What `hidra adapt` multiplies the logits by."""
    ways, shots, _ = support.shape
    if shots == 1:
        return default_scale(MODEL.meta.defaults, ways, shots)
    folds = min(shots, 10)
    held_out = torch.empty(ways, shots, ways)
    for fold in range(folds):
        out = torch.arange(shots) % folds == fold
        held_out[:, out] = ridge(support[:, ~out], support[:, out])
    labels = torch.arange(ways).repeat_interleave(shots)
    return fitted_scale(held_out.flatten(0, 1), labels, MODEL.meta.defaults, folds)


def calibration_error(probabilities: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017) of the largest probabilities."""
    place = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = [
        (right[place == b].sum() - probabilities[place == b].sum()).abs().item()
        for b in range(bins)
    ]
    return sum(gaps) / len(right)


def measure(
    features: Tensor, labels: Tensor, ways: int, shots: int, count: int
) -> dict[str, object]:
    """Mean accuracy and 95 % half-width of every head, and the calibration error of ridge."""
    accuracies: dict[str, list[float]] = {name: [] for name in HEADS}
    sure, right = [], []
    for support, queries in tasks(features, labels, ways, shots, count):
        truth = torch.arange(ways)[:, None]
        for name, head in HEADS.items():
            correct = head(support, queries).argmax(-1) == truth
            accuracies[name].append(correct.double().mean().item())
        answers = (scale_of(support) * ridge(support, queries)).softmax(-1)
        best = answers.max(-1)
        sure.append(best.values.flatten())
        right.append((best.indices == truth).flatten().float())
    row: dict[str, object] = {"ways": ways, "shots": shots, "tasks": len(sure)}
    for name, values in accuracies.items():
        each = torch.tensor(values, dtype=torch.float64)
        row[name] = [each.mean().item(), 1.96 * each.std().item() / math.sqrt(len(each))]
    row["calibration error"] = calibration_error(torch.cat(sure), torch.cat(right))
    return row


def main(folder: Path, file: Path, result: Path, count: int = 600) -> None:
    features, labels = features_of(folder, file)
    rows = []
    for ways in WAYS:
        for shots in SHOTS:
            if next(tasks(features, labels, ways, shots, 1), None) is None:
                continue
            rows.append(measure(features, labels, ways, shots, count))
            print(json.dumps(rows[-1]), flush=True)
            result.write_text(
                json.dumps({"photographs": folder.name, "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    folder, features, result = map(Path, sys.argv[1:4])
    main(folder, features, result, *map(int, sys.argv[4:]))
