"""`hidra adapt` as its user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.classifier import Classifier, load_classifier, save_classifier
from hidra_cli.jobs.one_task import adapt_task
from hidra_cli.runs.model import load_model
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.shape import TaskShape

from ..conftest import TINY_DATA, TINY_MODEL, Hidra

CPU = torch.device("cpu")


def test_it_learns_a_task_and_saves_the_classifier(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    done = hidra(
        "adapt", "--ways=7", "--shots=4", "--queries=3", "--checkpoint", runs_dir / "hidra",
        "--steps=3", "--cache-dir", cache_dir, "--out", tmp_path, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.json["accuracy_per_step"]) == 4
    losses = done.json["support_loss_per_step"]
    assert losses == sorted(losses, reverse=True)
    classes = done.json["accuracy_per_class"]
    assert len(classes) == 7
    mean = sum(classes.values()) / 7
    assert mean == pytest.approx(done.json["accuracy_per_step"][-1])
    classifier = load_classifier(Path(done.json["classifier"]), CPU)
    assert list(classifier.classes) == list(classes)


def test_the_same_episode_is_the_same_task(hidra: Hidra, runs_dir: Path, cache_dir: Path) -> None:
    same = ["--checkpoint", runs_dir / "hidra", "--cache-dir", cache_dir, "--json", "--queries=3"]
    first = hidra("adapt", "--ways=3", "--shots=2", *same)
    again = hidra("adapt", "--ways=3", "--shots=2", *same)
    other = hidra("adapt", "--ways=3", "--shots=2", "--episode=1", *same)
    assert first.json == again.json
    assert first.json["accuracy_per_class"].keys() != other.json["accuracy_per_class"].keys()
    assert first.json["classifier"] != other.json["classifier"]


@pytest.mark.parametrize(
    ("normalization", "head", "precision", "tolerance"),
    [
        ("support", "hidra", "float32", 1e-5),
        ("tasknorm", "hidra", "float32", 1e-5),
        ("none", "hidra", "float32", 1e-5),
        ("transductive", "hidra", "float32", 1e-5),
        ("support", "cosine", "float32", 1e-5),
        ("tasknorm", "protomaml", "float32", 1e-5),
        ("support", "hidra", "bfloat16", 0.02),
        ("tasknorm", "hidra", "bfloat16", 0.02),
    ],
)
def test_the_saved_classifier_predicts_as_the_adapted_model(
    hidra: Hidra,
    cache_dir: Path,
    tmp_path: Path,
    tiny_images: PreparedImages,
    normalization: str,
    head: str,
    precision: str,
    tolerance: float,
) -> None:
    done = hidra(
        "meta-train", *TINY_DATA, *TINY_MODEL, "--ways=3", "--iterations=2", "--test-episodes=0",
        "--validation-episodes=2", f"--normalization={normalization}", "--name=run", "-q",
        f"--precision={precision}", "--cache-dir", cache_dir, "--runs-dir", tmp_path,
        f"--head={head}",
    )  # fmt: skip
    assert done.code == 0, done.err
    model = load_model(tmp_path / "run", CPU, steps=2)
    sampler = ImageSampler(tiny_images, "test", (4,), (3,), 4, seed=0, device=CPU)
    task = sampler.batch([0], TaskShape(4, 3)).task(0)
    adapted = adapt_task(model, task)
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, model, adapted.weights, task, ["a", "b", "c", "d"])
    expected = model.learner.query_logits(adapted.weights, task).softmax(1)
    classifier = load_classifier(path, CPU)
    assert isinstance(classifier, Classifier)
    found = classifier.probabilities(task.query_images)
    assert torch.allclose(found, expected, atol=tolerance)
    if normalization != "transductive":
        alone = torch.cat([classifier.probabilities(image[None]) for image in task.query_images])
        assert torch.allclose(alone, expected, atol=tolerance)
