"""Image references → uint8 arrays. Runs in worker processes, so it imports no torch."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hidra_cli.api.data import ArchiveMember, ImageClass
from hidra_cli.errors import DataError

UInt8 = npt.NDArray[np.uint8]

# Part of a prepared file's name: raise it when the same source would give other pixels.
PREPROCESSING_VERSION = 1


def decode_class(
    image_class: ImageClass, image_shape: tuple[int, int, int], invert: bool
) -> tuple[UInt8, bytes]:
    """All images of one class, not yet turned.

    Returns:
        (n, C, H, W) uint8 and the SHA-256 of the undecoded sources, in order.

    Raises:
        DataError: an image cannot be read; names it.
    """
    digest = hashlib.sha256()
    images = []
    for reference in image_class.images:
        pixels, raw = _pixels(reference, image_shape)
        digest.update(hashlib.sha256(raw).digest())
        images.append(pixels)
    if len(images) != len(image_class.images):
        raise DataError(
            f"class '{image_class.name}' says it has {len(image_class.images)} images",
            why=f"it gave {len(images)}",
            fix="this is a fault of the dataset plugin: report it to its authors",
        )
    decoded = np.stack(images)
    return (255 - decoded if invert else decoded), digest.digest()


def turned(images: UInt8, quarter_turns: int) -> UInt8:
    """Images (n, C, H, W) rotated counter-clockwise by 90° × `quarter_turns`."""
    return np.rot90(images, quarter_turns, axes=(2, 3))


def decode_image(reference: Any, image_shape: tuple[int, int, int]) -> UInt8:
    """One image, fitted to the shape: (C, H, W) uint8.

    Raises:
        DataError: it cannot be read.
    """
    return _pixels(reference, image_shape)[0]


def _pixels(reference: Any, image_shape: tuple[int, int, int]) -> tuple[UInt8, bytes]:
    if isinstance(reference, np.ndarray):
        if reference.dtype != np.uint8 or not (
            reference.ndim == 2 or (reference.ndim == 3 and reference.shape[2] == 3)
        ):
            raise DataError(
                "an image given as an array is not uint8 of shape (H, W) or (H, W, 3)",
                why=f"it is {reference.dtype} of shape {reference.shape}",
                fix="this is a fault of the dataset plugin: report it to its authors",
            )
        return fit(Image.fromarray(np.ascontiguousarray(reference)), image_shape), (
            reference.tobytes()
        )
    try:
        raw = _read(reference)
        with warnings.catch_warnings():
            # A picture of over 90 million pixels is a mistake or an attack, not a sample.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw)) as image:
                return fit(image, image_shape), raw
    except Exception as exc:  # Pillow's decoders raise many types on damaged data
        raise DataError(
            f"the image {reference} cannot be read",
            why=f"{type(exc).__name__}: {exc}",
            fix="repair, replace or remove this image, then run the same command again",
        ) from exc


def fit(image: Image.Image, image_shape: tuple[int, int, int]) -> UInt8:
    """Scale and centre-crop to (H, W), convert to grey or RGB: (C, H, W) uint8.

    Transparent pixels become white paper; 16-bit and float images are scaled to 8 bits.
    """
    channels, height, width = image_shape
    image = _to_eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    array = np.asarray(image, np.uint8)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, np.float64)
    top = 65535.0 if image.mode.startswith("I") else 1.0
    top = max(top, float(values.max(initial=0.0)))
    return Image.fromarray((np.clip(values / top, 0, 1) * 255).round().astype(np.uint8))


def _read(reference: Path | ArchiveMember) -> bytes:
    if isinstance(reference, ArchiveMember):
        return _archive(reference.archive).read(reference.name)
    return reference.read_bytes()


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    """Kept open per worker process: reading a zip's index for every image would dominate."""
    return zipfile.ZipFile(path)
