"""Drawings and photographs are recognized by what they look like."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from hidra_cli.images.drawings import are_drawings, is_drawing

PICTURES = 20


def photograph(seed: int, size: int = 200) -> Image.Image:
    """Smooth fields of colour with noise and a few objects."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    image = small.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = rng.integers(0, size // 2, 2).tolist()
        draw.ellipse((x, y, x + 60, y + 60), tuple(rng.integers(0, 256, 3).tolist()))
    noisy = np.asarray(image, np.int16) + rng.normal(0, 8, (size, size, 3)).astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def drawing(seed: int, paper: tuple[int, ...] = (255, 255, 255), ink: tuple[int, ...] = (0, 0, 0),
            size: int = 200, width: int = 5) -> Image.Image:  # fmt: skip
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), paper)
    points = [tuple(point) for point in rng.integers(20, size - 20, (5, 2)).tolist()]
    ImageDraw.Draw(image).line(points, ink, width)
    return image


def saved(images: Sequence[Image.Image], folder: Path, suffix: str = "png") -> list[Path]:
    paths = [folder / f"{number}.{suffix}" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("paper", "ink"),
    [
        ((255, 255, 255), (0, 0, 0)),
        ((0, 0, 0), (255, 255, 255)),
        ((240, 235, 220), (20, 30, 140)),
        ((200, 200, 200), (90, 90, 90)),
    ],
    ids=["black on white", "white on black", "ballpoint on ivory", "pencil on grey"],
)
@pytest.mark.parametrize("width", [1, 5, 14])
def test_strokes_on_paper_are_drawings(
    paper: tuple[int, ...], ink: tuple[int, ...], width: int
) -> None:
    for seed in range(PICTURES):
        assert is_drawing(pixels(drawing(seed, paper, ink, width=width)))


def test_photographed_paper_is_a_drawing() -> None:
    """Of uneven light, not sharp, and with the noise of a camera."""
    rng = np.random.default_rng(0)
    for seed in range(PICTURES):
        page = np.asarray(drawing(seed, (225, 222, 215)).filter(ImageFilter.GaussianBlur(1)))
        light = np.linspace(0.95, 1.02, page.shape[1])[None, :, None]
        noisy = page * light + rng.normal(0, 3, page.shape)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        assert is_drawing(pixels(image))


def test_fields_of_colour_are_photographs(tmp_path: Path) -> None:
    images = [photograph(seed) for seed in range(PICTURES)]
    assert not any(is_drawing(pixels(image)) for image in images)
    assert not any(is_drawing(pixels(image.convert("L"))) for image in images), "of grey, too"
    assert not are_drawings(saved(images, tmp_path, "jpg"))


def test_the_majority_of_a_folder_decides(tmp_path: Path) -> None:
    paths = saved([drawing(0), photograph(0), drawing(1)], tmp_path)
    assert are_drawings(paths)
    assert not are_drawings(paths[:2]), "as many of the one as of the other"


def test_transparent_drawings_and_damaged_files(tmp_path: Path) -> None:
    image = Image.new("RGBA", (90, 90), (0, 0, 0, 0))
    ImageDraw.Draw(image).line((10, 10, 80, 60), (0, 0, 0, 255), 3)
    (path,) = saved([image], tmp_path)
    assert are_drawings([path]), "on the white that a model sees behind it"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    assert are_drawings([path, tmp_path / "broken.png"])
    assert not are_drawings([tmp_path / "broken.png"])


def unpacked(archive: Path, suffix: str, folder: Path, seed: int) -> list[Path]:
    """Pictures of an archive, chosen at random."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(suffix)]
        images = [
            Image.open(io.BytesIO(file.read(name)))
            for name in rng.choice(names, 5, replace=False).tolist()
        ]
        folder.mkdir()
        return saved(images, folder)


def test_folders_of_real_pictures(
    real_omniglot: Path, real_cifar100: Path, real_grocery: Path, tmp_path: Path
) -> None:
    """Twenty folders of five pictures each, one picture per class: none is taken for the other."""
    omniglot = real_omniglot / "images_background.zip"
    photographs = [(real_grocery, ".jpg"), (real_cifar100, ".png")]
    for seed in range(20):
        assert are_drawings(unpacked(omniglot, ".png", tmp_path / f"drawings{seed}", seed))
        archive, suffix = photographs[seed % 2]
        assert not are_drawings(unpacked(archive, suffix, tmp_path / f"photographs{seed}", seed))
