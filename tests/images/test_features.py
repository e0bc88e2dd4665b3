"""Features of a frozen network: one whole file or none, and the same whenever it was stopped."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hidra_cli.api import Backbone, DataError
from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.errors import RunError
from hidra_cli.images import features
from hidra_cli.images.features import NetworkChoice, prepare_features
from hidra_cli.images.prepared import PreparedImages, open_store

COMMAND = "hidra prepare glyphs"


class Small(Backbone):
    """A network with 7 features."""

    api_version = 1
    freezable = True
    name = "small"
    features = 7

    def __init__(self, seed: int, factor: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = nn.Conv2d(1, 7, 5)
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layer(images).mean((2, 3)) * self.factor
        return found


class StoppedHereError(Exception):
    """As a killed process: nothing more is done."""


def choice(seed: int = 0, factor: float = 1.0) -> NetworkChoice:
    return NetworkChoice(FrozenNetwork(Small(seed, factor)), "small")


@pytest.fixture
def images(tiny_images: PreparedImages, tmp_path: Path) -> PreparedImages:
    """The tiny glyphs, in a folder of this test."""
    path = tmp_path / tiny_images.path.name
    path.write_bytes(tiny_images.path.read_bytes())
    return open_store(path, tiny_images.dataset)


def advance(*_: Any, **__: Any) -> None:
    """Say nothing."""


def made(images: PreparedImages, **options: Any) -> tuple[Path, bool]:
    return prepare_features(images, choice(), COMMAND, advance, **options)


def test_every_image_has_its_features(images: PreparedImages) -> None:
    path, written = made(images)
    assert written
    found = open_store(path, images.dataset, table="features")
    with torch.no_grad():
        expected = Small(0)(torch.from_numpy(images.images[:]).float() / 255)
    torch.testing.assert_close(torch.from_numpy(found.images), expected, rtol=1e-4, atol=1e-6)
    assert found.image_shape == images.image_shape
    assert found.names == images.names
    assert found.content_hash == images.content_hash
    assert found.attributes["network_sha256"] == choice().network.sha256
    assert np.array_equal(found.table("val").first, images.table("val").first)
    picked = found.gather(np.array([[3, 1], [3, 0]]))
    assert torch.equal(picked[0, 0], picked[1, 0])
    assert picked.shape == (2, 2, 7)


def test_a_stopped_computation_goes_on_and_gives_the_same_bits(
    images: PreparedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_AT_ONCE", 16)
    count = len(images.images)
    path, _ = made(images)
    whole = open_store(path, images.dataset, table="features").images.copy()
    path.unlink()
    seen: list[int] = []

    def stop(done: int, *_: Any, **__: Any) -> None:
        seen.append(done)
        if done >= 40:
            raise StoppedHereError

    with pytest.raises(StoppedHereError):
        prepare_features(images, choice(), COMMAND, stop)
    assert not path.exists()
    (rows,) = path.parent.glob(".*.rows")
    with rows.open("ab") as file:
        file.write(b"half a row")
    seen.clear()
    prepare_features(images, choice(), COMMAND, lambda done, *_, **__: seen.append(done))
    assert seen[0] == 48
    assert seen[-1] == count
    again = open_store(path, images.dataset, table="features").images
    assert np.array_equal(again, whole)
    assert not list(path.parent.glob(".*.rows"))


def test_they_are_computed_once_by_several_writers_at_once(images: PreparedImages) -> None:
    results: list[bool] = []
    one = choice()  # made once: threads share torch's generator, which draws its weights

    def write() -> None:
        results.append(prepare_features(images, one, COMMAND, advance)[1])

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(results) == [False, False, True]


def test_other_weights_have_a_file_of_their_own(images: PreparedImages) -> None:
    path, _ = made(images)
    other, written = prepare_features(images, choice(1), COMMAND, advance)
    assert written
    assert other != path
    assert choice(1).others_beside(images.path) == [path]


def test_force_computes_again(images: PreparedImages) -> None:
    path, _ = made(images)
    before = path.stat().st_mtime_ns
    assert made(images, force=True) == (path, True)
    assert path.stat().st_mtime_ns > before


@pytest.mark.parametrize("place", [100, 700, -5])
def test_a_damaged_file_is_refused(images: PreparedImages, place: int) -> None:
    path, _ = made(images)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged") as caught:
        open_store(path, images.dataset, table="features", command=COMMAND)
    assert "--force" in caught.value.fix


def test_images_are_no_features_and_features_no_images(images: PreparedImages) -> None:
    path, _ = made(images)
    with pytest.raises(DataError, match="is damaged"):
        open_store(path, images.dataset)
    with pytest.raises(DataError, match="is damaged"):
        open_store(images.path, images.dataset, table="features")


def test_features_that_are_not_finite_are_refused(images: PreparedImages) -> None:
    with pytest.raises(DataError, match="not finite"):
        prepare_features(images, choice(factor=float("inf")), COMMAND, advance)
    assert not list(images.path.parent.glob("*small*.h5"))


def test_a_folder_that_cannot_be_written_to_is_told(
    images: PreparedImages, read_only: Path
) -> None:
    from dataclasses import replace

    there = replace(images, path=read_only / images.path.name)
    with pytest.raises(RunError, match="could not be written"):
        prepare_features(there, choice(), COMMAND, advance)
