"""The generated alphabets: reproducible, drawn apart, neither trivial nor impossible."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hidra_cli.api import ImageClass
from hidra_plugins.datasets.glyphs import Glyphs

NOWHERE = Path("no-such-folder")


def classes_of(**options: int) -> list[ImageClass]:
    return list(Glyphs(None, **options).classes(NOWHERE))


def digest_of(classes: list[ImageClass]) -> str:
    digest = hashlib.sha256()
    for one in classes:
        digest.update(f"{one.name} {one.split} ".encode())
        for image in one.images:
            digest.update(image.tobytes())
    return digest.hexdigest()


def digest_of_three(seed: int) -> str:
    return digest_of(classes_of(seed=seed, alphabets=3, characters=4, drawings=3))


def pixels_of(classes: list[ImageClass]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Every image, (classes, drawings, H, W)."""
    return np.stack([np.stack(list(one.images)) for one in classes])


@pytest.fixture(scope="module")
def alphabets() -> list[ImageClass]:
    """The first 15 alphabets of the default dataset."""
    return classes_of(alphabets=15)


@pytest.fixture(scope="module")
def pixels(alphabets: list[ImageClass]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return pixels_of(alphabets)


def test_default_is_1200_classes_in_alphabets_of_one_split() -> None:
    classes = classes_of()
    assert len({one.name for one in classes}) == len(classes) == 1200
    assert all(len(one.images) == 20 for one in classes)
    split_of = {(one.name.split("/")[0], one.split) for one in classes}
    assert Counter(split for _, split in split_of) == {"train": 40, "val": 8, "test": 12}
    assert len({alphabet for alphabet, _ in split_of}) == 60


@pytest.mark.parametrize("alphabets", [3, 4, 10])
def test_few_alphabets_still_fill_every_split(alphabets: int) -> None:
    classes = classes_of(alphabets=alphabets, characters=2)
    assert {one.split for one in classes} == {"train", "val", "test"}
    assert len(classes) == 2 * alphabets


def test_same_seed_gives_same_images_in_another_process() -> None:
    here = digest_of_three(7)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(digest_of_three, (7,)) == here


def test_another_seed_gives_other_images() -> None:
    assert len({digest_of_three(seed) for seed in range(4)}) == 4


def test_more_of_anything_changes_nothing_earlier() -> None:
    few = classes_of(seed=3, alphabets=4, characters=5, drawings=4)
    more = {one.name: one for one in classes_of(seed=3, alphabets=7, characters=8, drawings=6)}
    for one in few:
        assert more[one.name].split == one.split
        np.testing.assert_array_equal(list(one.images), list(more[one.name].images)[:4])


@pytest.mark.parametrize("size", [14, 28, 64])
def test_images_are_grey_bytes_of_the_declared_shape(size: int) -> None:
    dataset = Glyphs(None, alphabets=3, characters=3, drawings=2, size=size)
    assert dataset.image_shape == (1, size, size)
    assert not dataset.invert
    for one in dataset.classes(NOWHERE):
        images = list(one.images)
        assert len(images) == len(one.images) == 2
        assert all(image.dtype == np.uint8 and image.shape == (size, size) for image in images)
        assert all(image in one.images for image in images)
        assert np.zeros((size, size), np.uint8) not in one.images


def test_size_changes_resolution_and_not_the_drawing() -> None:
    small = pixels_of(classes_of(alphabets=3, characters=4, drawings=2, size=28)) / 255
    large = pixels_of(classes_of(alphabets=3, characters=4, drawings=2, size=56)) / 255
    reduced = large.reshape(12, 2, 28, 2, 28, 2).mean((3, 5))
    assert np.abs(reduced - small).mean() < 0.03 < small.mean()


def test_every_image_has_strokes_inside_its_border(
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
) -> None:
    ink = (pixels / 255).mean((2, 3))
    assert ink.min() > 0.01
    assert ink.max() < 0.35
    assert 0.05 < ink.mean() < 0.1  # Omniglot at 28×28: 0.08
    assert (pixels.max((2, 3)) > 100).all()
    inside = pixels[:, :, 1:-1, 1:-1].sum((2, 3), dtype=np.int64)
    assert (inside > 0.9 * pixels.sum((2, 3), dtype=np.int64)).all()
    drawn = pixels > 50
    side = np.maximum(drawn.any(2).sum(2), drawn.any(3).sum(2))
    assert side.min() >= 5  # no character is a dot


def test_drawings_of_a_character_differ(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    for images in pixels:
        assert len({image.tobytes() for image in images}) == len(images)


def test_characters_of_an_alphabet_differ(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    means = (pixels / 255).mean(1).reshape(15, 20, -1)
    for alphabet in means:
        gap = ((alphabet[:, None] - alphabet[None]) ** 2).sum(-1) + 100 * np.eye(20)
        assert gap.min() > 0.5


def test_images_survive_pickling(alphabets: list[ImageClass]) -> None:
    for one in alphabets[::60]:
        again = pickle.loads(pickle.dumps(one))
        assert digest_of([again]) == digest_of([one])
        assert len(pickle.dumps(one)) < 20_000  # the program travels, not the pixels


def test_nearest_neighbour_is_neither_lost_nor_done(
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
) -> None:
    """5-way 1-shot on raw pixels, chance 0.2; about 0.47 on Omniglot."""
    rng = np.random.default_rng(0)
    flat = (pixels / 255).reshape(len(pixels), 20, -1)
    right = 0
    for _ in range(400):
        ways = rng.choice(len(flat), 5, replace=False)
        shown, *asked = rng.choice(20, 4, replace=False)
        gap = flat[ways][:, asked].reshape(15, 1, -1) - flat[ways, shown]
        right += int(((gap**2).sum(-1).argmin(1) == np.repeat(np.arange(5), 3)).sum())
    assert 0.35 < right / 6000 < 0.65


def test_a_source_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no source"):
        Glyphs(Path())


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("alphabets", 2), ("characters", 0), ("drawings", 1), ("size", 13)],
)
def test_an_option_out_of_range_is_refused_by_name_and_value(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        Glyphs(None, **{name: value})
