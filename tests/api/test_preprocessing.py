"""One picture becomes one image, by one record: nothing is empty, cut off or turned unawares."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hidra_cli.api import DataError
from hidra_cli.api.decoding import Picture, read_picture
from hidra_cli.api.preprocessing import (
    FITS,
    Preprocessing,
    ValueKind,
    ValueRanges,
    fixed_ranges,
    usual_range,
)

SHAPE = (1, 16, 16)
RAMP = np.linspace(0, 255, 256).reshape(16, 16)


def read(path: Path, **wanted: Any) -> Picture:
    shape = wanted.pop("image_shape", SHAPE)
    return read_picture(path, Preprocessing(shape, **wanted))


def png_of(path: Path, rows: np.ndarray, colour_type: int, more: bytes = b"") -> Path:
    """A PNG of 16 bits a sample, (H, W) or (H, W, bands), which Pillow cannot write."""
    height, width = rows.shape[:2]

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">L", zlib.crc32(kind + content))
        return struct.pack(">L", len(content)) + kind + content + crc

    header = struct.pack(">LLBBBBB", width, height, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(lines))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return path


def tiff_of(
    path: Path,
    rows: np.ndarray,
    bits: int,
    order: str = "<",
    sample_format: int = 1,
    white: int = 1,
) -> Path:
    """A grey TIFF in one strip; 12 bits are packed, as scanners and cameras do."""
    height, width = rows.shape
    if bits == 12:
        packed = "".join(f"{value:012b}" for value in rows.astype(int).ravel())
        strip = int(packed, 2).to_bytes(len(packed) // 8, "big")
    else:
        kind = {1: "u", 2: "i", 3: "f"}[sample_format]
        strip = rows.astype(f"{order}{kind}{bits // 8}").tobytes()
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, white),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(strip)), (339, 3, sample_format),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(entries))
    for tag, type_, value in entries:  # 3 is a number of 16 bits, 4 one of 32
        held = struct.pack(f"{order}HH" if type_ == 3 else f"{order}L", *[value, 0][: 5 - type_])
        directory += struct.pack(f"{order}HHL", tag, type_, 1) + held
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8 + len(strip))
    path.write_bytes(begin + strip + directory + bytes(4))
    return path


def close(found: np.ndarray, expected: np.ndarray, within: int = 1) -> bool:
    return bool(np.abs(found.astype(float) - expected).max() <= within)


# ---- how values are stored ------------------------------------------------------------------


# Pillow reads no big-endian TIFF of 32 bits without a sign: it is refused.
@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("u16", "<"),
        ("u16", ">"),
        ("i16", "<"),
        ("i16", ">"),
        ("u32", "<"),
        ("f32", "<"),
        ("f32", ">"),
    ],
)
def test_every_way_of_storing_a_number_is_read(tmp_path: Path, kind: str, order: str) -> None:
    bits, form = int(kind[1:]), {"u": 1, "i": 2, "f": 3}[kind[0]]
    low, high = {"u16": (0, 65535), "i16": (-2000, 3000), "u32": (0, 4e9), "f32": (-3.0, 5.0)}[kind]
    stored = low + RAMP / 255 * (high - low)
    path = tiff_of(tmp_path / "a.tif", stored, bits, order, form)
    picture = read(path, ranges=fixed_ranges(low, high))
    assert close(picture.pixels[0], RAMP)
    assert picture.values.lowest == pytest.approx(low, abs=1e-5 * high)
    assert picture.values.highest == pytest.approx(high, rel=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_lowest_value_is_white(tmp_path: Path, bits: int) -> None:
    stored = (RAMP / 255 * (2**bits - 1)).round()
    path = tiff_of(tmp_path / "a.tif", stored, bits, white=0)
    assert close(read(path).pixels[0], 255 - RAMP)


def test_a_tiff_of_twelve_bits_declares_its_range(tmp_path: Path) -> None:
    path = tiff_of(tmp_path / "a.tif", (RAMP / 255 * 4095).round(), 12)
    assert close(read(path).pixels[0], RAMP)
    assert read(path).values.declared == (0, 4095)
    dark = read(path, ranges=fixed_ranges(0, 65535)).pixels
    assert dark.max() == 16, "a range that somebody gives goes first"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bits_that_hold_fewer(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    path = png_of(tmp_path / "a.png", (RAMP / 255 * top).round(), 0)
    first = read(path)
    found = usual_range(first.values.kind, first.values.lowest, first.values.highest)
    assert list(found) == [0, top]
    assert close(read(path, ranges=ValueRanges(integer=found)).pixels[0], RAMP, within=2)


@pytest.mark.parametrize("colour_type", [2, 6], ids=["RGB", "RGBA"])
def test_colours_of_sixteen_bits_that_hold_twelve(tmp_path: Path, colour_type: int) -> None:
    values = np.stack([RAMP, RAMP.T, 255 - RAMP], -1) / 255 * 4095
    rows = values if colour_type == 2 else np.concatenate([values, 0 * RAMP[..., None] + 65535], -1)
    path = png_of(tmp_path / "a.png", rows.round(), colour_type)
    first = read(path, image_shape=(3, 16, 16))
    assert first.values.kind == "integer"
    found = usual_range("integer", first.values.lowest, first.values.highest)
    assert list(found) == [0, 4095]
    picture = read(path, image_shape=(3, 16, 16), ranges=ValueRanges(integer=found))
    # Four bits of each colour are left: Pillow keeps the upper byte.
    assert close(picture.pixels, values.transpose(2, 0, 1) / 4095 * 255, within=18)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_a_mask_of_zeros_and_ones(tmp_path: Path, mode: str) -> None:
    mask = (RAMP > 128).astype(np.uint8)
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    elif mode != "L":
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    first = read(tmp_path / "a.png")
    assert (first.values.lowest, first.values.highest) == (0, 1)
    found = usual_range("byte", 0, 1)
    pixels = read(tmp_path / "a.png", ranges=ValueRanges(byte=found)).pixels
    assert np.array_equal(pixels[0], 255 * mask)


@given(
    kind=st.sampled_from(["byte", "integer", "floating"]),
    ends=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted),
)
def test_the_usual_range_holds_all_values(kind: ValueKind, ends: list[float]) -> None:
    lowest, highest = ends
    if kind == "byte":
        lowest, highest = np.clip(ends, 0, 255)
    low, high = usual_range(kind, lowest, highest)
    assert fixed_ranges(low, high).of(kind) == (low, high), "it is a range"
    assert low <= lowest or lowest == highest
    assert high >= highest or highest <= 0


# ---- what is transparent --------------------------------------------------------------------


@pytest.mark.parametrize("background", ["white", "black", "#336699"])
def test_ink_on_a_transparent_sheet_lies_on_the_background(tmp_path: Path, background: str) -> None:
    sheet = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    sheet.paste((255, 255, 255, 255), (4, 4, 8, 8))
    sheet.save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png", image_shape=(3, 16, 16), background=background)
    expected = {"white": (255,) * 3, "black": (0,) * 3, "#336699": (0x33, 0x66, 0x99)}[background]
    assert tuple(picture.pixels[:, 0, 0]) == expected
    assert tuple(picture.pixels[:, 5, 5]) == (255, 255, 255)
    assert picture.transparent


def test_a_transparent_grey_of_sixteen_bits(tmp_path: Path) -> None:
    """The colour that stands for nothing is no ink, and none of the values that are seen."""
    rows = np.full((16, 16), 40_000)
    rows[4:8, 4:8] = 1000
    clear = struct.pack(">L", 2) + b"tRNS" + struct.pack(">H", 40_000)
    clear += struct.pack(">L", zlib.crc32(clear[4:]))
    picture = read(png_of(tmp_path / "a.png", rows, 0, clear))
    assert (picture.pixels[0, :4] == 255).all()
    assert (picture.pixels[0, 4:8, 4:8] == round(1000 / 257)).all()
    assert picture.values.highest == 1000


# ---- other shapes ---------------------------------------------------------------------------


def sheet(path: Path, ground: int = 255) -> Path:
    """A wide sheet with a drawing at its left end."""
    pixels = np.full((40, 160), ground, np.uint8)
    pixels[10:30, 4:24] = 255 - ground
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("ground", [0, 255])
def test_what_is_at_the_end_of_a_sheet_is_cut_off_kept_or_squeezed(
    tmp_path: Path, ground: int
) -> None:
    path = sheet(tmp_path / "a.png", ground)
    crop, pad, stretch = (read(path, fit=fit).pixels[0].astype(int) for fit in FITS)
    assert (crop == ground).all()
    assert (pad[:6] == ground).all(), "the colour of the edge goes on above"
    assert (pad[-6:] == ground).all()
    assert np.abs(pad - ground).max() > 200
    assert np.abs(stretch[:, :3] - ground).max() > 200
    columns = np.abs(stretch - ground).max(0) > 100
    assert columns.sum() <= 3, "four times as narrow as it is high"


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    fit=st.sampled_from(FITS),
    channels=st.sampled_from([1, 3]),
)
def test_one_colour_stays_one_colour(size: tuple[int, int], fit: Any, channels: int) -> None:
    pixels = np.full((size[1], size[0], 3), 77, np.uint8)
    wanted = Preprocessing((channels, 11, 7), fit=fit)
    assert (read_picture(pixels, wanted).pixels == 77).all()


# ---- metadata, and files that end too early -------------------------------------------------


def with_exif(orientation: int, *fields: bytes) -> bytes:
    """EXIF of an orientation, and of more fields of 12 bytes."""
    entries = [struct.pack("<HHLHH", 0x0112, 3, 1, orientation, 0), *fields]
    return (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    )


FAULTS = {
    "a rational of zero bytes": struct.pack("<HHLL", 0x011A, 5, 1, 1 << 30),
    "an unknown type": struct.pack("<HHLL", 0x9C9B, 99, 7, 8),
    "a text as a number": struct.pack("<HHLL", 0x0132, 10, 3, 200),
    "a count of billions": struct.pack("<HHLL", 0x927C, 7, 1 << 31, 8),
    "a width below zero": struct.pack("<HHLl", 0x0100, 9, 1, -1),
    "an offset that is a text": struct.pack("<HHL4s", 0x0111, 2, 4, b"abc"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_faulty_metadata_cost_no_pixels(tmp_path: Path, kind: str, fault: str) -> None:
    """Upright all the same, where the orientation can be read."""
    upright = Image.fromarray(
        np.repeat(np.repeat(np.arange(6) * 40, 8)[None], 32, 0).astype(np.uint8)
    )
    path = tmp_path / f"a.{kind}"
    exif = with_exif(6, FAULTS[fault])
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    picture = read(path, image_shape=(1, 32, 48))
    assert close(picture.pixels[0], np.asarray(upright), within=12)


def jpeg(progressive: bool = False, side: int = 160) -> bytes:
    generator = np.random.default_rng(0)
    pixels = (
        generator.integers(0, 256, (side // 8, side // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, progressive=progressive)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("lost", "progressive"),
    [(1, False), (2, False), (40, False), (200, False), (1, True), (2, True), (40, True)],
)
def test_a_jpeg_that_lacks_its_last_bytes_is_read(
    tmp_path: Path, lost: int, progressive: bool
) -> None:
    whole = jpeg(progressive)
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(whole[:-lost])
    expected, found = (
        read(tmp_path / name, image_shape=(3, 160, 160)) for name in ("whole.jpg", "cut.jpg")
    )
    assert expected.missing == 0
    assert 0 <= found.missing <= 0.1
    rows = 160 - round(160 * 0.1)
    assert np.abs(found.pixels[:, :rows].astype(int) - expected.pixels[:, :rows]).mean() < 2


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_a_jpeg_of_which_much_is_missing_is_damaged(tmp_path: Path, share: float) -> None:
    whole = jpeg()
    (tmp_path / "cut.jpg").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut\.jpg cannot be read"):
        read(tmp_path / "cut.jpg")


# ---- the record -----------------------------------------------------------------------------


@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 300), st.integers(1, 300)),
    invert=st.booleans(),
    fit=st.sampled_from(FITS),
    background=st.sampled_from(["white", "black", "#123456"]),
    ranges=st.builds(ValueRanges, integer=st.just((0.0, 4095.0)), fixed=st.booleans()),
)
def test_the_record_comes_back_from_json(
    shape: Any, invert: bool, fit: Any, background: str, ranges: ValueRanges
) -> None:
    wanted = Preprocessing(shape, invert, fit, background, ranges)
    assert Preprocessing.from_record(json.loads(json.dumps(wanted.record()))) == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"fit": "squash"},
        {"background": "nothing"},
        {"ranges": {"byte": [3, 3], "fixed": False}},
        {"ranges": {"byte": [float("nan"), 1], "fixed": False}},
        {"ranges": {"odd": [0, 1], "fixed": False}},
        {"image_shape": [1, 2]},
        {"ranges": None},
    ],
)
def test_a_record_that_is_none_is_refused(change: dict[str, Any]) -> None:
    record: dict[str, Any] = Preprocessing(SHAPE).record() | change
    with pytest.raises((ValueError, TypeError, KeyError)):
        Preprocessing.from_record(record)
