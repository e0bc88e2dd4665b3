"""Frozen networks by the command line: a vision transformer with weights from a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from hidra_cli.runs.checkpoint import load_checkpoint

from ..conftest import Hidra

SIZE = 160  # of the pictures that timm's test_vit takes
GLYPHS = [
    "--data-opt=alphabets=3",
    "--data-opt=characters=6",
    "--data-opt=drawings=6",
    f"--data-opt=size={SIZE}",
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


def train(hidra: Hidra, weights: Path, place: list[str], *more: str) -> None:
    done = hidra(
        "meta-train",
        *network(weights),
        *GLYPHS,
        *place,
        "--head=ridge",
        "--ways=2-3",
        "--queries=2",
        "--iterations=2",
        "--validation-episodes=2",
        "--test-episodes=4",
        "--name=frozen",
        "-q",
        *more,
    )
    assert done.code == 0, done.err


def test_a_model_of_a_frozen_network_names_its_weights_and_does_not_hold_them(
    hidra: Hidra, weights: Path, place: list[str], tmp_path: Path
) -> None:
    train(hidra, weights, place)
    path = tmp_path / "runs/frozen/checkpoints/best.safetensors"
    checkpoint = load_checkpoint(path)
    assert {name.split(".head.")[0] for name in checkpoint.tensors} == {"model", "optimizer"}
    assert checkpoint.model_meta.network is not None
    assert checkpoint.model_meta.network.name == "test_vit"

    adapted = hidra("adapt", "--checkpoint", path, "--ways=3", "--shots=2", "--queries=2",
                    f"--out={tmp_path}/out", place[0], "--json")  # fmt: skip
    assert adapted.code == 0, adapted.err
    classifier = adapted.json["classifier"]
    assert Path(classifier).stat().st_size < weights.stat().st_size + 6 * SIZE**2 * 3
    picture = tmp_path / "picture.png"
    Image.new("L", (SIZE, SIZE), 90).save(picture)
    assert hidra("predict", classifier, picture).code == 0

    weights.rename(tmp_path / "elsewhere.safetensors")
    missing = hidra("predict", classifier, picture)
    assert missing.code == 3
    assert "needs the weights of test_vit" in missing.err
    assert str(weights) in missing.err
    write_weights(weights, 2)
    for command in (["predict", classifier, picture], ["evaluate", str(path), place[0]]):
        other = hidra(*command)
        assert other.code == 3
        assert "was made with other weights of test_vit" in other.err
    shutil.move(tmp_path / "elsewhere.safetensors", weights)
    assert hidra("predict", classifier, picture).code == 0


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
