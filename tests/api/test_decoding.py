"""Decoding: any image Pillow reads, in any mode, becomes (C, H, W) uint8."""

import contextlib
import hashlib
import io
import os
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from hidra_cli.api import ArchiveMember, DataError, ImageClass
from hidra_cli.api.decoding import (
    LARGEST_SOURCE,
    TOO_LARGE,
    decode_class,
    decode_image,
    read_picture,
    turned,
)
from hidra_cli.api.preprocessing import Preprocessing

RED, WHITE = (200, 30, 60), (255, 255, 255)


def stored(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def gradient(width: int, height: int, top: int = 255) -> np.ndarray:
    return np.linspace(0, top, width * height).round().reshape(height, width)


def modes() -> dict[str, Image.Image]:
    """Images of odd sizes, one per way of storing pixels."""
    grey = Image.fromarray(gradient(13, 7).astype(np.uint8))
    colour = Image.new("RGB", (13, 7), RED)
    return {
        "grey.png": grey,
        "rgb.png": colour,
        "rgba.png": colour.convert("RGBA"),
        "grey-alpha.png": grey.convert("LA"),
        "palette.png": colour.quantize(4),
        "one-bit.png": grey.convert("1"),
        "sixteen.png": Image.fromarray(gradient(13, 7, 65535).astype(np.uint16)),
        "thirty-two.tif": Image.fromarray(gradient(13, 7, 65535).astype(np.int32)),
        "float.tif": Image.fromarray(gradient(13, 7, 1).astype(np.float32)),
        "cmyk.jpg": colour.convert("CMYK"),
        "cmyk.tif": colour.convert("CMYK"),
        "ycbcr.jpg": colour,
        "grey.jpg": grey,
        "some.gif": colour.quantize(4),
        "some.webp": colour,
        "some.bmp": colour,
        "some.tiff": colour,
        "some.ppm": colour,
    }


@pytest.mark.parametrize("name", modes())
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (3, 7, 13), (1, 5, 9)])
def test_every_kind_of_image_fits_the_shape(
    tmp_path: Path, name: str, shape: tuple[int, int, int]
) -> None:
    found = decode_image(stored(tmp_path, modes()[name], name), shape)
    assert found.shape == shape
    assert found.dtype == np.uint8


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 30), st.integers(1, 30)),
)
def test_any_size_fits_any_shape(size: tuple[int, int], shape: tuple[int, int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 77, np.uint8)
    found = decode_image(pixels, shape)
    assert found.shape == shape
    assert (found == 77).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3000, 2)])
def test_extreme_sizes_fit(tmp_path: Path, size: tuple[int, int]) -> None:
    path = stored(tmp_path, Image.new("RGB", size, RED), "thin.png")
    found = decode_image(path, (3, 28, 28))
    assert (found == np.array(RED, np.uint8)[:, None, None]).all()


def test_images_of_the_right_size_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 5, 3)).astype(np.uint8)
    for name in ("a.png", "a.bmp", "a.tif"):
        path = stored(tmp_path, Image.fromarray(pixels), name)
        assert np.array_equal(decode_image(path, (3, 9, 5)), pixels.transpose(2, 0, 1))
    assert np.array_equal(decode_image(pixels, (3, 9, 5)), pixels.transpose(2, 0, 1))
    assert np.array_equal(decode_image(pixels[..., 0], (1, 9, 5)), pixels[None, ..., 0])


def test_the_middle_of_a_wide_image_is_kept() -> None:
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 255
    assert (decode_image(pixels, (1, 10, 10))[0, :, 1:-1] == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "RGB"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    options: dict[str, Any] = {}
    image = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
    else:
        image = Image.new("RGB", (6, 4), "black").convert(mode)
        options["transparency"] = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    path = stored(tmp_path, image, "clear.png", **options)
    assert (decode_image(path, (3, 4, 6)) == 255).all()
    assert (decode_image(path, (1, 4, 6)) == 255).all()


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    path = stored(tmp_path, Image.new("RGBA", (3, 3), (0, 0, 0, 51)), "half.png")
    assert (decode_image(path, (3, 3, 3)) == 204).all()


@pytest.mark.parametrize(
    ("name", "top"), [("a.png", 65535), ("b.tif", 65535), ("c.tif", 1)], ids=["I;16", "I", "F"]
)
def test_deep_images_are_scaled_to_eight_bits(tmp_path: Path, name: str, top: int) -> None:
    kind = {"a.png": np.uint16, "b.tif": np.int32, "c.tif": np.float32}[name]
    values = gradient(16, 16) / 255 * top
    path = stored(tmp_path, Image.fromarray(values.astype(kind)), name)
    found = decode_image(path, (1, 16, 16))[0].astype(int)
    assert np.abs(found - gradient(16, 16)).max() <= 1
    assert (found[0, 0], found[-1, -1]) == (0, 255)


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    image = Image.new("1", (4, 2), 0)
    image.putpixel((1, 0), 1)
    found = decode_image(stored(tmp_path, image, "bits.png"), (1, 2, 4))
    assert found[0].tolist() == [[0, 255, 0, 0], [0, 0, 0, 0]]


def test_cmyk_looks_like_the_colour_it_is(tmp_path: Path) -> None:
    path = stored(tmp_path, Image.new("RGB", (8, 8), RED).convert("CMYK"), "c.tif")
    assert np.abs(decode_image(path, (3, 8, 8))[:, 4, 4].astype(int) - RED).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = stored(tmp_path, turned, "photo.png", exif=exif)
    assert np.array_equal(decode_image(path, (1, 4, 6))[0], np.asarray(upright))


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in (RED, WHITE)]
    path = stored(tmp_path, frames[0], "two.gif", save_all=True, append_images=frames[1:])
    assert np.abs(decode_image(path, (3, 5, 5))[:, 2, 2].astype(int) - RED).max() <= 2


@pytest.mark.parametrize("turns", range(-1, 5))
def test_quarter_turns_are_counter_clockwise(turns: int) -> None:
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert np.array_equal(turned(pixels[None, None], turns)[0, 0], np.rot90(pixels, turns))


def test_inverting_swaps_dark_and_light() -> None:
    pixels = np.arange(9, dtype=np.uint8).reshape(3, 3)
    plain, digest = decode_class(ImageClass("c", "train", [pixels]), Preprocessing((1, 3, 3)))
    inverted, again = decode_class(
        ImageClass("c", "train", [pixels]), Preprocessing((1, 3, 3), invert=True)
    )
    assert inverted.dtype == np.uint8
    assert (plain.astype(int) + inverted == 255).all()
    assert digest == again


def test_the_digest_is_of_the_undecoded_files(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "b.png").write_bytes(png + b"trailing")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    found, digest = decode_class(ImageClass("c", "train", paths), Preprocessing((1, 6, 8)))
    expected = hashlib.sha256()
    for path in paths:
        expected.update(hashlib.sha256(path.read_bytes()).digest())
    assert digest == expected.digest()
    assert np.array_equal(found[0], found[1])


def test_a_member_of_an_archive_equals_the_file(tmp_path: Path, png: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("in/a.png", png)
    (tmp_path / "a.png").write_bytes(png)
    member = ArchiveMember(tmp_path / "all.zip", "in/a.png")
    shape = (3, 6, 8)
    assert np.array_equal(decode_image(member, shape), decode_image(tmp_path / "a.png", shape))
    with pytest.raises(DataError) as caught:
        decode_image(ArchiveMember(tmp_path / "all.zip", "in/b.png"), shape)
    assert f"{tmp_path / 'all.zip'}:in/b.png" in caught.value.what


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_named(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    path = tmp_path / "cut.img"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(DataError) as caught:
        decode_image(path, (3, 28, 28))
    assert str(path) in caught.value.what
    assert caught.value.why
    assert "this image" in caught.value.fix


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.png cannot be read"):
        decode_image(tmp_path / "odd.png", (1, 28, 28))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        decode_image(tmp_path / "gone.png", (1, 28, 28))


def test_an_image_of_more_pixels_than_the_limit_is_refused(tmp_path: Path) -> None:
    """Before it is decoded, whatever its format; the limit can be set."""
    for name in ("huge.png", "huge.jpg", "huge.tif"):
        path = stored(tmp_path, Image.new("L", (300, 200), 90), name)
        with pytest.raises(DataError, match=r"huge\.\w+ cannot be read") as caught:
            read_picture(path, Preprocessing((1, 28, 28)), max_pixels=59_999)
        assert caught.value.why == "it has 60,000 pixels, and the limit is 59,999"
        assert caught.value.fix == TOO_LARGE
        pixels = read_picture(path, Preprocessing((1, 28, 28)), max_pixels=60_000).pixels
        assert np.abs(pixels.astype(int) - 90).max() <= 1
    bomb = stored(tmp_path, Image.new("1", (20_000, 15_000)), "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png cannot be read") as caught:
        decode_image(bomb, (1, 28, 28))
    assert caught.value.why == "it has 300,000,000 pixels, and the limit is 250,000,000"


@pytest.mark.parametrize("name", ["large.png", "large.jpg"])
def test_a_large_image_is_scaled_while_it_is_decoded(tmp_path: Path, name: str) -> None:
    """Pillow alone refuses it; of a JPEG not even the pixels are ever held."""
    sheet = Image.new("L", (10_000, 9_500), 255)
    sheet.paste(0, (0, 0, 5000, 9500))
    path = stored(tmp_path, sheet, name)
    before = Image.MAX_IMAGE_PIXELS
    found = decode_image(path, (1, 28, 28))[0]
    assert (found[:, :13] < 8).all()
    assert (found[:, 15:] > 247).all()
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "array",
    [np.full((4, 4), 0.5), np.full((4, 4), 300), np.zeros((4, 4, 1), np.uint8), np.zeros(4)],
    ids=["float", "int", "one channel last", "flat"],
)
def test_an_array_that_breaks_the_contract_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8"):
        decode_image(array, (1, 4, 4))


class Lying(list[Any]):
    """Says it holds one image more, or fewer, than it gives."""

    def __init__(self, images: list[Any], difference: int) -> None:
        super().__init__(images)
        self.difference = difference

    def __len__(self) -> int:
        return super().__len__() + self.difference


@pytest.mark.parametrize("difference", [1, -1])
def test_a_class_that_miscounts_its_images_is_named(difference: int) -> None:
    images = Lying([np.zeros((3, 3), np.uint8)] * 3, difference)
    with pytest.raises(DataError, match="'miscounted'"):
        decode_class(ImageClass("miscounted", "train", images), Preprocessing((1, 3, 3)))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "odd.png")
    with pytest.raises(DataError, match=r"odd\.png cannot be read") as caught:
        decode_image(tmp_path / "odd.png", (1, 4, 4))
    assert "not a regular file" in caught.value.why


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(LARGEST_SOURCE + 1)
    with pytest.raises(DataError) as caught:
        decode_image(tmp_path / "large.png", (1, 4, 4))
    assert f"{LARGEST_SOURCE + 1} bytes" in caught.value.why


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
IPTC_HEADER = (
    b"\x1c\x03\x14\x00\x02\x00\x05\x1c\x03\x1e\x00\x02\x00\x05"
    b"\x1c\x03\x3c\x00\x02\x01\x00\x1c\x03\x78\x00\x01\x05"
)


@pytest.mark.parametrize(
    "content",
    [
        POSTSCRIPT,
        IPTC_HEADER + b"\x1c\x08\x0a\x00" + bytes([len(POSTSCRIPT)]) + POSTSCRIPT,
        b"\xd7\xcd\xc6\x9a\0\0" + bytes(10) + b"\xa0\x05" + bytes(4) + b"\x01\0\x09\0" + bytes(50),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"GRIB" + bytes(3) + b"\x01" + bytes(100),
        b"\0\0\x01\xb3" + bytes(100),
        b"%PDF-1.7\n",
    ],
    ids=["EPS", "EPS in IPTC", "WMF", "HDF5", "GRIB", "MPEG", "PDF"],
)
def test_formats_that_need_other_programs_are_refused(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        decode_image(path, (1, 4, 4))
    assert caught.value.why == "its content is damaged, or in no image format that is read"


def test_truncated_images_are_not_filled_up() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">L", len(content))
        + kind
        + content
        + struct.pack(">L", zlib.crc32(kind + content))
    )


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_compressed_metadata_is_bounded(tmp_path: Path, png: bytes, kind: bytes) -> None:
    zeros = zlib.compress(bytes(256 << 20), 1)
    between = b"\1\0\0\0" if kind == b"iTXt" else b"\0"
    chunk = png_chunk(kind, b"name\0" + between + zeros)
    path = tmp_path / "bomb.png"
    path.write_bytes(png[:33] + chunk + png[33:])
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            decode_image(path, (1, 4, 4))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    pixels = np.full((4, 4), value, np.float32)
    with pytest.raises(DataError) as caught:
        decode_image(stored(tmp_path, Image.fromarray(pixels), "odd.tif"), (1, 4, 4))
    assert "not finite" in caught.value.why


def test_names_and_reasons_from_files_have_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J.ppm"
    path.write_bytes(b"P6 " + b"\x1b[2J" * 10 + b" 4 255\n")
    with pytest.raises(DataError) as caught:
        decode_image(path, (1, 4, 4))
    assert str(caught.value).replace("\n", "").isprintable()


def test_pillow_warns_and_logs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = stored(tmp_path, Image.new("RGB", (5, 5)), "odd.tif")
    content = path.read_bytes()
    samples = struct.pack("<HHL", 277, 3, 1)
    assert samples in content
    path.write_bytes(content.replace(samples, struct.pack("<HHL", 277, 3, 9)))
    with contextlib.suppress(DataError):
        decode_image(path, (1, 4, 4))
    assert capfd.readouterr().err == ""
    assert not recwarn.list
