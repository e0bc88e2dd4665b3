"""Image references → uint8 arrays. Runs in worker processes, so it imports no torch."""

from __future__ import annotations

import hashlib
import io
import logging
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from hidra_cli.api.data import ArchiveMember, ImageClass
from hidra_cli.api.folders import REFUSED_FORMATS, add_heic, shown
from hidra_cli.api.preprocessing import LARGE, Preprocessing, UInt8, Values, to_pixels
from hidra_cli.errors import DataError

# Part of a prepared file's name: raise it when the same source would give other pixels.
PREPROCESSING_VERSION = 2

LARGEST_SOURCE = 1 << 29  # bytes of one image, not yet decoded
TOO_LARGE = "make this image smaller"  # what mends an image of too many pixels
MOST_PIXELS = 250_000_000  # of one image, unless `max_pixels` says otherwise
# Of a JPEG that ends too early, the share that may be missing.
MOST_MISSING = 0.1
_JPEG_BEGIN, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_LAST_BYTES, _VISIBLE = 64, 32
_BLOCK = 16  # rows of a block, at most

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what matters to us, it raises

# Images above Pillow's limit, one at a time: its limit is one for all threads.
_LARGE_ONE = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A decoded image, and what its file was like.

    Attributes:
        pixels: (C, H, W) uint8.
        digest: SHA-256 of the undecoded source.
        size: (width, height) as stored.
        values: those it stores.
        transparent: whether it has transparent pixels, or may have some.
        missing: share of a JPEG that its file ends before, at most.
    """

    pixels: UInt8
    digest: bytes
    size: tuple[int, int]
    values: Values
    transparent: bool = False
    missing: float = 0.0


def decode_class(image_class: ImageClass, preprocessing: Preprocessing) -> tuple[UInt8, bytes]:
    """All images of one class, not yet turned.

    Returns:
        (n, C, H, W) uint8 and the SHA-256 of the undecoded sources, in order.

    Raises:
        DataError: images cannot be read; names them all.
    """
    digest = hashlib.sha256()
    images = []
    damaged: list[DataError] = []
    for reference in image_class.images:
        try:
            picture = read_picture(reference, preprocessing)
        except DataError as error:
            damaged.append(error)
            continue
        digest.update(picture.digest)
        images.append(picture.pixels)
    if damaged:
        raise all_damaged(damaged)
    if len(images) != len(image_class.images):
        raise DataError(
            f"class '{image_class.name}' says it has {len(image_class.images)} images",
            why=f"it gave {len(images)}",
            fix="this is a fault of the dataset plugin: report it to its authors",
        )
    return np.stack(images), digest.digest()


def all_damaged(errors: Sequence[DataError]) -> DataError:
    """One error that names all images that cannot be read."""
    if len(errors) == 1:
        return errors[0]
    return DataError(
        f"{len(errors)} images cannot be read",
        why="\n".join(f"{error.what}: {error.why}" for error in errors),
        fix="repair, replace or remove them, then run the same command again",
    )


def turned(images: UInt8, quarter_turns: int) -> UInt8:
    """Images (n, C, H, W) rotated counter-clockwise by 90° × `quarter_turns`."""
    return np.rot90(images, quarter_turns, axes=(2, 3))


def decode_image(reference: Any, image_shape: tuple[int, int, int]) -> UInt8:
    """One image, fitted to the shape: (C, H, W) uint8.

    Raises:
        DataError: it cannot be read.
    """
    return read_picture(reference, Preprocessing(image_shape)).pixels


def read_picture(
    reference: Any, preprocessing: Preprocessing, *, max_pixels: int = MOST_PIXELS
) -> Picture:
    """Read one image.

    Args:
        reference: a path, a member of a zip archive, or a uint8 array (H, W) or (H, W, 3).
        preprocessing: what becomes of it.
        max_pixels: a larger image is refused before it is decoded.

    Raises:
        DataError: it cannot be read; names it.
    """
    if isinstance(reference, np.ndarray):
        return _read_array(reference, preprocessing)
    try:
        raw = _read(reference)
        digest = hashlib.sha256(raw).digest()
        with _quiet():
            try:
                return _decoded(raw, digest, preprocessing, max_pixels)
            except OSError as exc:
                mended = _without_end(raw, exc)
                if mended is None:
                    raise
            return _decoded(mended[0], digest, preprocessing, max_pixels, mended[1])
    except Exception as exc:  # Pillow's decoders raise many types on damaged data
        fix = "repair, replace or remove this image, then run the same command again"
        if isinstance(exc, _TooLargeError):
            fix = TOO_LARGE
        raise DataError(
            f"the image {shown(str(reference))} cannot be read", why=_reason(exc), fix=fix
        ) from exc


def _read_array(array: UInt8, preprocessing: Preprocessing) -> Picture:
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    ):
        raise DataError(
            "an image given as an array is not uint8 of shape (H, W) or (H, W, 3)",
            why=f"it is {array.dtype} of shape {array.shape}",
            fix="this is a fault of the dataset plugin: report it to its authors",
        )
    image = Image.fromarray(np.ascontiguousarray(array))
    pixels, values, _ = to_pixels(image, preprocessing)
    return Picture(pixels, hashlib.sha256(array.tobytes()).digest(), image.size, values)


def _decoded(
    raw: bytes, digest: bytes, preprocessing: Preprocessing, max_pixels: int, missing: float = 0.0
) -> Picture:
    with _opened(raw, max_pixels) as image:
        size = image.size
        pixels, values, transparent = to_pixels(image, preprocessing)
    return Picture(pixels, digest, size, values, transparent, missing)


@contextmanager
def _opened(raw: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose size was checked; a large one has the memory to itself."""
    image = _open_usual(raw)
    if image is not None:
        with image:
            _check_pixels(image, max_pixels)
            yield image
        return
    with _LARGE_ONE:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(io.BytesIO(raw), formats=formats()) as image:
                _check_pixels(image, max_pixels)
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open_usual(raw: bytes) -> Image.Image | None:
    """An image of usual size, not yet decoded; None for a large one."""
    try:
        image = Image.open(io.BytesIO(raw), formats=formats())
    except Image.DecompressionBombError:
        return None
    if image.width * image.height <= LARGE:
        return image
    image.close()
    return None


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise _TooLargeError(f"it has {pixels:,} pixels, and the limit is {max_pixels:,}")


class _TooLargeError(ValueError):
    """An image of more pixels than are read."""


def _without_end(raw: bytes, exc: OSError) -> tuple[bytes, float] | None:
    """A JPEG whose last bytes are missing, ended, and the share that is missing at most.

    How far down the picture the last bytes of the file reach tells the share.
    """
    if not raw.startswith(_JPEG_BEGIN) or "truncated" not in str(exc):
        return None
    decoded = []
    for cut in (raw, raw[:-_LAST_BYTES]):
        image = _open_usual(cut + _JPEG_END)
        if image is None or image.format != "JPEG":
            return None
        try:
            decoded.append(np.asarray(image, np.int16))
        except OSError:  # it has hardly a beginning
            return None
    # Smaller differences are the last bits of a progressive file.
    missing = _share_after(np.abs(decoded[0] - decoded[1]) > _VISIBLE)
    return (raw + _JPEG_END, missing) if missing <= MOST_MISSING else None


def _share_after(differs: npt.NDArray[np.bool_]) -> float:
    """The share of an image (H, W) or (H, W, C) from the first block that differs to its end."""
    if not differs.any():
        return 0.0
    height, width = differs.shape[:2]
    flat = differs.reshape(height, width, -1)
    top = int(flat.any((1, 2)).argmax())
    band = flat[top : top + _BLOCK]  # blocks follow each other from left to right
    kept = len(band) * int(band.any((0, 2)).argmax())
    missing: float = ((height - top) * width - kept) / (height * width)
    return missing


class _Quiet:
    """Pillow's warnings are about metadata. What warnings do is one state for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._before.__exit__(None, None, None)


_quiet = _Quiet()


@cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself; no other is tried, whatever a file is called."""
    Image.preinit()  # the frequent ones come first
    Image.init()
    add_heic()
    return tuple(kind for kind in Image.ID if kind not in REFUSED_FORMATS)


def _reason(exc: Exception) -> str:
    if isinstance(exc, UnidentifiedImageError):
        return "its content is damaged, or in no image format that is read"
    if isinstance(exc, _TooLargeError):
        return str(exc)
    return shown(f"{type(exc).__name__}: {exc}")


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
