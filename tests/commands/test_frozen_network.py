"""Frozen networks by the command line: a vision transformer with weights from a file."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from hidra_cli.images.open import open_images
from hidra_cli.jobs.scoring import evaluate_cell
from hidra_cli.runs.checkpoint import load_checkpoint
from hidra_cli.runs.model import load_model
from hidra_cli.system.console import Silence
from hidra_cli.tasks.shape import TaskShape
from hidra_cli.tasks.sources import sampler_of

from ..conftest import Finished, Hidra

SIZE = 160  # of the pictures that timm's test_vit takes
GLYPHS = [
    "--data-opt=alphabets=3",
    "--data-opt=characters=6",
    "--data-opt=drawings=6",
    f"--data-opt=size={SIZE}",
]
TRAINING = [
    "--head=ridge",
    "--ways=2-3",
    "--queries=2",
    "--iterations=2",
    "--validation-episodes=2",
    "--test-episodes=4",
    "--name=frozen",
    "-q",
]


def write_weights(path: Path, seed: int, name: str = "test_vit") -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(timm.create_model(name).state_dict(), path)
    return path


def network(weights: Path) -> list[str]:
    return [
        "--backbone=timm",
        "--bb-opt=name=test_vit",
        f"--bb-opt=weights={weights}",
        "--normalization=frozen",
    ]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights.safetensors", 1)


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    return [f"--cache-dir={tmp_path}/cache", f"--runs-dir={tmp_path}/runs"]


def prepare(hidra: Hidra, weights: Path, place: list[str], *more: str) -> Finished:
    return hidra("prepare", "glyphs", *network(weights)[:-1], *GLYPHS, place[0], *more)


def train(hidra: Hidra, weights: Path, place: list[str]) -> Finished:
    return hidra("meta-train", *TRAINING, *network(weights), *GLYPHS, *place)


def evaluate(hidra: Hidra, path: Path, place: list[str], *more: str) -> Finished:
    flags = ["--ways=3", "--queries=2", "--episodes=4", place[0], "--json"]
    return hidra("evaluate", path, *flags, *more)


def test_a_vision_transformer_from_a_file_end_to_end(
    hidra: Hidra, weights: Path, place: list[str], tmp_path: Path
) -> None:
    missing = train(hidra, weights, place)
    assert missing.code == 3
    assert "there are no features of glyphs by test_vit" in missing.err
    fix = missing.err.split("fix: ")[1].split("   ")[0]
    made = hidra(*shlex.split(fix)[1:], place[0], "--json")
    assert made.code == 0, made.err
    assert made.json["features"]["prepared_now"]
    again = prepare(hidra, weights, place, "--json").json
    assert not again["features"]["prepared_now"]
    assert again["features"]["path"] == made.json["features"]["path"]

    done = train(hidra, weights, place)
    assert done.code == 0, done.err
    path = tmp_path / "runs/frozen/checkpoints/best.safetensors"
    checkpoint = load_checkpoint(path)
    assert {name.split(".head.")[0] for name in checkpoint.tensors} == {"model", "optimizer"}
    assert checkpoint.model_meta.network is not None
    assert checkpoint.model_meta.network.name == "test_vit"
    assert evaluate(hidra, path, place).json["results"][0]["episodes"] == 4

    adapted = hidra("adapt", "--checkpoint", path, "--ways=3", "--shots=2", "--queries=2",
                    f"--out={tmp_path}/out", place[0], "--json")  # fmt: skip
    assert adapted.code == 0, adapted.err
    classifier = adapted.json["classifier"]
    assert Path(classifier).stat().st_size < weights.stat().st_size + 6 * SIZE**2 * 3
    picture = tmp_path / "picture.png"
    Image.new("L", (SIZE, SIZE), 90).save(picture)
    assert hidra("predict", classifier, picture).code == 0

    program = hidra("export", classifier, f"--out={tmp_path}/program.pt2", "--json")
    assert program.code == 0, program.err
    assert program.json["bytes"] > weights.stat().st_size / 2, "it holds the network"

    weights.rename(tmp_path / "elsewhere.safetensors")
    missing = hidra("predict", classifier, picture)
    assert missing.code == 3
    assert "needs the weights of test_vit" in missing.err
    assert str(weights) in missing.err
    write_weights(weights, 2)
    for other in (hidra("predict", classifier, picture), evaluate(hidra, path, place)):
        assert other.code == 3
        assert "was made with other weights of test_vit" in other.err
    shutil.move(tmp_path / "elsewhere.safetensors", weights)
    assert hidra("predict", classifier, picture).code == 0


def test_features_and_images_give_the_same_scores(
    hidra: Hidra, weights: Path, place: list[str], tmp_path: Path
) -> None:
    assert prepare(hidra, weights, place).code == 0
    assert train(hidra, weights, place).code == 0
    path = tmp_path / "runs/frozen"
    of_features = evaluate(hidra, path, place).json["results"]
    model = load_model(path, torch.device("cpu"))
    images = open_images(model.settings.dataset, tmp_path / "cache", Silence())
    sampler = sampler_of(images, "test", (3,), (1,), 2, 0, device=torch.device("cpu"))
    cell = evaluate_cell(model, sampler, TaskShape(3, 1), episodes=4)
    steps = [step["accuracy"] for step in of_features[0]["per_step"]]
    assert steps == pytest.approx(cell.scores.mean(0).tolist())
    for reason in ("", "there are no features of glyphs"):
        report = hidra("report", path, "--ways=3", "--episodes=2", place[0],
                       f"--out={tmp_path}/page.html")  # fmt: skip
        assert report.code == 0, report.err
        told = "Accuracy was not measured" in (tmp_path / "page.html").read_text()
        assert told == bool(reason), "a report measures on features alone"
        for features in tmp_path.glob("cache/stores/*test_vit*.h5"):
            features.unlink()


def test_features_of_other_weights_and_pictures_are_refused(
    hidra: Hidra, weights: Path, place: list[str], tmp_path: Path
) -> None:
    made = prepare(hidra, weights, place, "--json").json
    other = write_weights(tmp_path / "other.safetensors", 2)
    done = train(hidra, other, place)
    assert done.code == 3
    assert "made with other weights of test_vit" in done.err
    images = Path(made["path"])
    assert hidra("prepare", "glyphs", *GLYPHS, "--force", place[0]).code == 0
    assert train(hidra, weights, place).code == 0, "the same pictures, prepared again"
    images.unlink()
    other_seed = [*GLYPHS, "--data-opt=seed=5"]
    elsewhere = f"--cache-dir={tmp_path}/elsewhere"
    there = hidra("prepare", "glyphs", *other_seed, elsewhere, "--json").json
    shutil.copy(there["path"], images)
    done = train(hidra, weights, place)
    assert done.code == 3
    assert "are of other pictures" in done.err
    assert prepare(hidra, weights, place, "--json").json["features"]["prepared_now"]


def test_augmented_features_are_refused(hidra: Hidra, weights: Path, place: list[str]) -> None:
    assert prepare(hidra, weights, place).code == 0
    flags = [*TRAINING, *network(weights), *GLYPHS, *place, "--augment=flip"]
    done = hidra("meta-train", *flags)
    assert done.code == 2
    assert "features cannot be augmented" in done.err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--bb-opt=name=test_vit"], 2, "--bb-opt needs --backbone"),
        (["--backbone=conv4"], 2, "the backbone 'conv4' cannot be frozen"),
        (["--backbone=timm", "--bb-opt=name=test_vitt"], 2, "did you mean test_vit"),
        (["--backbone=timm", "--bb-opt=name=test_vit", "--bb-opt=weights=nowhere.pth"], 2,
         "is no file"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_computed(
    hidra: Hidra, place: list[str], flags: list[str], code: int, message: str
) -> None:
    done = hidra("prepare", "glyphs", *flags, *GLYPHS, place[0])
    assert done.code == code
    assert message in done.err
    assert not list(Path(place[0].partition("=")[2]).glob("stores/*rows"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--normalization=frozen"], "the backbone 'conv4' cannot be frozen"),
        (["--backbone=timm", "--normalization=frozen", "--adapt=body"], "does not adapt"),
    ],
)
def test_what_cannot_be_frozen_is_refused(
    hidra: Hidra, place: list[str], flags: list[str], told: str
) -> None:
    done = hidra("meta-train", *flags, *GLYPHS, *place, "--ways=2-3")
    assert done.code == 2
    assert told in done.err
