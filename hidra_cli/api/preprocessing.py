"""How a picture becomes a model's input: one record, and the one function that follows it.

Imports no torch: decoding runs in worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps

from hidra_cli.api.data import Dataset, Fit

UInt8 = npt.NDArray[np.uint8]
ValueKind = Literal["byte", "integer", "floating"]

FITS: tuple[Fit, ...] = get_args(Fit)
SIXTEEN_BITS = 65535
# Pillow keeps the upper byte of colours of 16 bits: the value of that byte, as one of 16 bits.
_UPPER_BYTE = 257
_PIXELS_AT_ONCE = 1 << 22  # of images that are scaled in float64
# Above this an image is made smaller before anything else is done with it.
LARGE = 89_478_485
# Of a large image, how much larger than the model's input it stays.
_SPARE = 4


@dataclass(frozen=True)
class ValueRanges:
    """The stored values that mean black and white, for each way of storing a value.

    Attributes:
        byte: of values of 8 bits.
        integer: of integers of more bits.
        floating: of floating-point numbers.
        fixed: they hold for files that declare a range of their own, too.
    """

    byte: tuple[float, float] = (0.0, 255.0)
    integer: tuple[float, float] = (0.0, float(SIXTEEN_BITS))
    floating: tuple[float, float] = (0.0, 1.0)
    fixed: bool = False

    def __post_init__(self) -> None:
        for kind in get_args(ValueKind):
            low, high = self.of(kind)
            if not (np.isfinite([low, high]).all() and low < high):
                raise ValueError(f"the range {low:g}:{high:g} is empty, or has no numbers")

    def of(self, kind: ValueKind) -> tuple[float, float]:
        low, high = getattr(self, kind)
        return float(low), float(high)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an image (C, H, W) of 8-bit values, which a model sees in [0, 1].

    A backbone that wants other values, such as ImageNet's mean and deviation taken off, computes
    them itself: then prepared images, people's own pictures and exported programs agree.

    Attributes:
        image_shape: (C, H, W); C is 1 (grey) or 3 (RGB).
        invert: 255 − value, for dark strokes on white paper.
        fit: how another shape is fitted: "crop" scales to fill it and cuts the ends off, "pad"
            scales to fit inside and adds the colour of the picture's edge, "stretch" distorts.
        background: the colour behind what is transparent, a name or #rrggbb.
        ranges: the stored values that mean black and white.
    """

    image_shape: tuple[int, int, int]
    invert: bool = False
    fit: Fit = "crop"
    background: str = "white"
    ranges: ValueRanges = field(default_factory=ValueRanges)

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit={self.fit!r} is none of {', '.join(FITS)}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(f"background={self.background!r} is not a colour") from None

    def record(self) -> dict[str, Any]:
        """As JSON, for files."""
        return asdict(self) | {"image_shape": list(self.image_shape)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Preprocessing:
        """Read `record()`.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        stored = dict(record["ranges"])
        fixed = bool(stored.pop("fixed"))
        ranges = {name: (float(low), float(high)) for name, (low, high) in stored.items()}
        c, h, w = map(int, record["image_shape"])
        return cls(
            (c, h, w),
            bool(record["invert"]),
            record["fit"],
            str(record["background"]),
            ValueRanges(**ranges, fixed=fixed),
        )


def preprocessing_of(dataset: Dataset) -> Preprocessing:
    """How the images of a dataset are prepared."""
    ranges = dataset.value_range
    return Preprocessing(
        dataset.image_shape,
        dataset.invert,
        dataset.fit,
        dataset.background,
        ValueRanges() if ranges is None else fixed_ranges(*ranges),
    )


def fixed_ranges(low: float, high: float) -> ValueRanges:
    """One range for all pictures, however their values are stored."""
    return ValueRanges((low, high), (low, high), (low, high), fixed=True)


@dataclass(frozen=True)
class Values:
    """The values that a file stores.

    Attributes:
        kind: how they are stored.
        lowest, highest: of what is visible, in the file's own units.
        declared: the range that the file declares, where that is not the usual one of its kind.
    """

    kind: ValueKind
    lowest: float
    highest: float
    declared: tuple[float, float] | None = None


def to_pixels(image: Image.Image, wanted: Preprocessing) -> tuple[UInt8, Values, bool]:
    """An opened image → (C, H, W) uint8, the values it stores, and whether it is transparent."""
    channels, height, width = wanted.image_shape
    deep_colour, declared = _has_deep_colour(image), _declared_range(image)  # loading forgets it
    if image.width * image.height > LARGE:
        image.draft(None, (_SPARE * width, _SPARE * height))  # JPEG scales while it decodes
    image = _upright(image)
    image, values = _in_eight_bits(image, wanted.ranges, declared, deep_colour)
    if image.width * image.height > LARGE:
        image = _plain(image).reduce(_reduction(image, width, height))
    transparent = image.has_transparency_data
    if transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, wanted.background), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = _fitted(image, (width, height), wanted.fit)
    array = np.asarray(image, np.uint8)
    array = array[None] if channels == 1 else array.transpose(2, 0, 1)
    return (255 - array if wanted.invert else array), values, transparent


def _reduction(image: Image.Image, width: int, height: int) -> int:
    """By what whole number a large image may be divided and still be larger than needed."""
    return max(1, min(image.width // (_SPARE * width), image.height // (_SPARE * height)))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; whatever else is wrong with the metadata does not matter."""
    image.load()
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata raises many types
        orientation = 1
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _fitted(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    if fit == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    if fit == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=_edge_colour(image))
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def _edge_colour(image: Image.Image) -> int | tuple[int, ...]:
    """The median of the outermost pixels, of each channel."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = tuple(int(value) for value in np.median(edge, axis=0))
    return colour if len(colour) > 1 else colour[0]


def _in_eight_bits(
    image: Image.Image,
    ranges: ValueRanges,
    declared: tuple[float, float] | None,
    deep_colour: bool,
) -> tuple[Image.Image, Values]:
    if image.mode.startswith(("I", "F")):
        return _scaled(image, ranges, declared)
    kind: ValueKind = "integer" if deep_colour else "byte"
    unit = _UPPER_BYTE if deep_colour else 1
    lowest, highest = (unit * value for value in _extremes(image))
    low, high = ranges.of(kind)
    if (low, high) != (0.0, 255.0 * unit):
        image = _plain(image)
        levels = (np.arange(256) * unit - low) / (high - low)
        scaled = (np.clip(levels, 0, 1) * 255).round().astype(int).tolist()
        bands = image.getbands()
        image = image.point([v for band in bands for v in (range(256) if band == "A" else scaled)])
    return image, Values(kind, lowest, highest)


def _extremes(image: Image.Image) -> tuple[int, int]:
    """The smallest and the largest value of the colours of an image of 8 bits."""
    plain = _plain(image)
    bands = zip(plain.getbands(), np.atleast_2d(plain.getextrema()), strict=True)
    ends = np.array([pair for band, pair in bands if band != "A"])
    return int(ends.min()), int(ends.max())


def _plain(image: Image.Image) -> Image.Image:
    """In grey or RGB, with transparency where there is some."""
    if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled(
    image: Image.Image, ranges: ValueRanges, declared: tuple[float, float] | None
) -> tuple[Image.Image, Values]:
    """An image of integers or floats in 8 bits, strip by strip: every copy takes much memory."""
    kind: ValueKind = "integer" if image.mode.startswith("I") else "floating"
    low, high = ranges.of(kind) if ranges.fixed or declared is None else declared
    clear = image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    # Pillow reads 32 bits as a number with a sign, and takes the lowest value for black.
    unsigned = image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    lowest_is_white = tags.get(262) == 0
    levels = np.empty((image.height, image.width), np.uint8)
    visible = np.full(levels.shape, 255, np.uint8) if isinstance(clear, int) else None
    lowest, highest = np.inf, -np.inf
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        values = np.array(image.crop((0, top, image.width, bottom)))
        values = (values.view(np.uint32) if unsigned else values).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it has pixels that are not finite numbers")
        seen = values
        if visible is not None:
            visible[top:bottom][values == clear] = 0
            seen = values[values != clear]
        lowest = min(lowest, float(seen.min(initial=np.inf)))
        highest = max(highest, float(seen.max(initial=-np.inf)))
        share = np.clip((values - low) / (high - low), 0, 1)
        share = 1 - share if lowest_is_white else share
        levels[top:bottom] = (share * 255).round().astype(np.uint8)
    if lowest > highest:  # all of it is transparent
        lowest = highest = low
    grey = Image.fromarray(levels)
    if visible is not None:
        grey.putalpha(Image.fromarray(visible))
    return grey, Values(kind, lowest, highest, declared)


def _declared_range(image: Image.Image) -> tuple[float, float] | None:
    """What a TIFF of a number of bits such as 12 says; other formats leave it to their kind.

    TIFF's tags of the smallest and largest value are those of one picture, not of its kind.
    """
    bits = getattr(image, "tag_v2", {}).get(258)
    if isinstance(bits, tuple) and len(bits) == 1 and 8 < bits[0] < 16:
        return 0.0, 2.0 ** bits[0] - 1
    return None


def _has_deep_colour(image: Image.Image) -> bool:
    """Whether colours of 16 bits are read, of which Pillow keeps the upper byte."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    return any(";16" in str(part[3:]) for part in getattr(image, "tile", []))


def usual_range(kind: ValueKind, lowest: float, highest: float) -> tuple[float, float]:
    """The smallest range in use that holds all values of a set of pictures.

    Values of 8 bits are 0 to 255, or 0 and 1 in a mask; integers have 8, 10, 12, 14 or 16 bits;
    floats are 0 to 1, −1 to 1, or have the range of such an integer.
    """
    usual = ValueRanges().of(kind)
    if highest <= 0 <= lowest or highest < lowest:
        return usual
    if kind == "byte":
        return (0.0, 1.0) if highest <= 1 else usual
    if lowest < 0:
        return (-1.0, 1.0) if kind == "floating" and lowest >= -1 and highest <= 1 else (
            lowest, max(highest, lowest + 1),
        )  # fmt: skip
    tops = (1.0, *(2.0**bits - 1 for bits in (8, 10, 12, 14, 16)))
    return 0.0, next((top for top in tops if highest <= top), highest)
