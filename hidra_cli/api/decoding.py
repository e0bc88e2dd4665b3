"""Image references → uint8 arrays. Runs in worker processes, so it imports no torch."""

from __future__ import annotations

import hashlib
import io
import logging
import stat
import warnings
import zipfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from hidra_cli.api.data import ArchiveMember, ImageClass
from hidra_cli.api.folders import REFUSED_FORMATS, shown
from hidra_cli.errors import DataError

UInt8 = npt.NDArray[np.uint8]

# Part of a prepared file's name: raise it when the same source would give other pixels.
PREPROCESSING_VERSION = 1

LARGEST_SOURCE = 1 << 29  # bytes of one image, not yet decoded

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what matters to us, it raises


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
            warnings.simplefilter("ignore")  # they are about metadata
            # A picture of over 90 million pixels is a mistake or an attack, not a sample.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=formats()) as image:
                return fit(image, image_shape), raw
    except Exception as exc:  # Pillow's decoders raise many types on damaged data
        raise DataError(
            f"the image {shown(str(reference))} cannot be read",
            why=_reason(exc),
            fix="repair, replace or remove this image, then run the same command again",
        ) from exc


@cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself; no other is tried, whatever a file is called."""
    Image.preinit()  # the frequent ones come first
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in REFUSED_FORMATS)


def _reason(exc: Exception) -> str:
    if isinstance(exc, UnidentifiedImageError):
        return "its content is damaged, or in no image format that is read"
    return shown(f"{type(exc).__name__}: {exc}")


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
    values = np.array(image, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    top = 65535.0 if image.mode.startswith("I") else 1.0
    # In place: of a large image, every copy takes hundreds of megabytes.
    values /= max(top, float(values.max(initial=0.0)))
    np.clip(values, 0, 1, out=values)
    values *= 255
    return Image.fromarray(values.round(out=values).astype(np.uint8))


def _read(reference: Path | ArchiveMember) -> bytes:
    if isinstance(reference, ArchiveMember):
        return _read_member(_archive(reference.archive), reference.name)
    status = reference.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a named pipe would wait for ever
        raise ValueError("it is not a regular file")
    _check_size(status.st_size)
    with reference.open("rb") as file:
        return file.read(status.st_size)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.flag_bits & 0x1:
        raise ValueError("it is encrypted")
    # Python unpacks the others in one go, however large they become.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed, but neither stored nor deflated")
    _check_size(info.file_size)
    with archive.open(info) as file:
        content = file.read(info.file_size)
        if len(content) < info.file_size:
            raise EOFError("it ends too early")
        return content


def _check_size(size: int) -> None:
    if size > LARGEST_SOURCE:
        raise ValueError(f"it has {size} bytes, more than {LARGEST_SOURCE}")


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    """Kept open per worker process: reading a zip's index for every image would dominate."""
    return zipfile.ZipFile(path)
