"""Random changes to training images: mirrored, shifted, and never at test."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.training.trainer import MetaTrainer
from hidra_cli.settings.declarations import Augment
from hidra_cli.tasks.augmentation import augmented
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.shape import TaskShape
from tests.commands.test_bad_input import assert_refused
from tests.conftest import Hidra
from tests.jobs.test_training import settings_of

CHANGES: list[Augment] = ["flip", "crop", "flip-crop", "mirror", "mirror-crop"]
CPU = torch.device("cpu")


def pictures(tasks: int, images: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (tasks, images, 3, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def random_keys(tasks: int, images: int) -> npt.NDArray[np.uint64]:
    return np.random.default_rng(1).integers(2**64, size=(tasks, images), dtype=np.uint64)


def windows(image: Tensor, most: tuple[int, int]) -> dict[tuple[bool, int, int], Tensor]:
    """Every mirrored and shifted image there may be, cut from the image with reflected borders."""
    found = {}
    (down, right), (height, width) = most, image.shape[-2:]
    for mirrored in (False, True):
        whole = image.flip(-1) if mirrored else image
        padded = F.pad(whole.float(), (right, right, down, down), mode="reflect").to(image.dtype)
        for y in range(2 * down + 1):
            for x in range(2 * right + 1):
                found[mirrored, y, x] = padded[:, y : y + height, x : x + width]
    return found


@pytest.mark.parametrize(
    ("augment", "most", "mirrored"),
    [("flip", (0, 0), 2), ("crop", (2, 3), 1), ("flip-crop", (2, 3), 2)],
)
def test_every_change_is_one_that_may_be_and_all_that_may_be_occur(
    augment: Augment, most: tuple[int, int], mirrored: int
) -> None:
    images = pictures(10, 70, 16, 24)
    changed = augmented(images, random_keys(10, 70), augment)
    assert changed.dtype == images.dtype
    assert changed.shape == images.shape
    seen: dict[tuple[bool, int, int], int] = {}
    for before, after in zip(images.flatten(0, 1), changed.flatten(0, 1), strict=True):
        which = [how for how, one in windows(before, most).items() if torch.equal(one, after)]
        assert len(which) == 1
        seen[which[0]] = seen.get(which[0], 0) + 1
    kinds = mirrored * (2 * most[0] + 1) * (2 * most[1] + 1)
    assert len(seen) == kinds
    expected = 700 / kinds
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < kinds + 5 * (2 * kinds) ** 0.5  # uniform: five standard deviations


def test_without_augmentation_the_very_images_come_back() -> None:
    images = pictures(1, 4, 8, 8)
    assert augmented(images, random_keys(1, 4), "none") is images


@pytest.mark.parametrize("augment", CHANGES)
def test_tasks_keep_their_classes_and_are_the_same_in_any_batch(
    augment: Augment, tiny_images: PreparedImages
) -> None:
    def sampler(augment: Augment) -> ImageSampler:
        return ImageSampler(tiny_images, "train", [3], [2], 4, 0, device=CPU, augment=augment)

    plain, changing = sampler("none"), sampler(augment)
    episodes = [5, 2**40, 7]
    together = changing.batch(episodes, TaskShape(3, 2))
    as_they_are = plain.batch(episodes, TaskShape(3, 2))
    assert together.generator_keys == as_they_are.generator_keys
    assert torch.equal(together.support.labels, as_they_are.support.labels)
    assert not torch.equal(together.query.images, as_they_are.query.images)
    for place, episode in enumerate(episodes):
        alone = changing.batch([episode], TaskShape(3, 2))
        assert torch.equal(alone.support.images[0], together.support.images[place])
        assert torch.equal(alone.query.images[0], together.query.images[place])


def test_no_two_images_of_many_tasks_are_changed_alike(tiny_images: PreparedImages) -> None:
    keys = []

    def sampler(seed: int) -> ImageSampler:
        return ImageSampler(tiny_images, "train", [3], [2], 4, seed, device=CPU, augment="flip")

    for seed in (0, 1):
        support, query = sampler(seed).augment_keys(range(50), TaskShape(3, 2))
        assert support.shape == (50, 6)
        assert query.shape == (50, 12)
        keys += [*support.flat, *query.flat]
    assert len(set(keys)) == 2 * 50 * 18


def test_a_class_is_mirrored_in_all_its_images_or_none(tiny_images: PreparedImages) -> None:
    def sampler(augment: Augment) -> ImageSampler:
        return ImageSampler(tiny_images, "train", [4], [2], 3, 0, device=CPU, augment=augment)

    plain = sampler("none").batch(range(50), TaskShape(4, 2))
    mirrored = sampler("mirror").batch(range(50), TaskShape(4, 2))

    def which(before: Tensor, after: Tensor, each: int) -> Tensor:
        """Whether each image was mirrored: (T, N, images of a class)."""
        same, other = ((one == after).flatten(2).all(2) for one in (before, before.flip(-1)))
        assert (same | other).all()
        return (other & ~same).view(50, 4, each)

    support = which(plain.support.images, mirrored.support.images, 2)
    query = which(plain.query.images, mirrored.query.images, 3)
    of_class = support[..., 0]
    assert (support == of_class[..., None]).all()
    assert (query == of_class[..., None]).all()
    assert 60 < of_class.sum() < 140, "half of 200 classes: five standard deviations"


def test_functions_have_no_images_to_augment(hidra: Hidra, tmp_path: Path) -> None:
    flags = ["--preset=sinusoids", "--iterations=1", "--runs-dir", tmp_path]
    done = hidra("meta-train", *flags, "--augment=flip")
    assert_refused(done, 2, "sinusoids has no images to augment", "--augment none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("augment", CHANGES)
def test_only_training_tasks_are_changed(augment: Augment, tiny_images: PreparedImages) -> None:
    def first_tasks(augment: Augment) -> tuple[Any, Any]:
        trainer = MetaTrainer(settings_of(tasks__augment=augment), tiny_images, CPU)
        train, validation = trainer.train_episodes, trainer.validator.episodes
        return (
            train.batch([0, 1], train.shape(0)).support.images,
            validation.batch([0, 1], validation.shape(0)).support.images,
        )

    (train, validation), (plain, validation_before) = first_tasks(augment), first_tasks("none")
    assert not torch.equal(train, plain)
    assert torch.equal(validation, validation_before)
