"""Damaged and hostile source files, made by chance: each is read, or refused with one error.

A case is named by its number, from which it follows: `damaged(content, label, number)`.
"""

import contextlib
import gzip
import io
import itertools
import random
import signal
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hidra_cli.api import Dataset, ImageClass
from hidra_cli.api.decoding import decode_class, formats
from hidra_cli.api.folders import REFUSED_FORMATS
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.errors import HidraError
from hidra_plugins.datasets.cifar import CifarFS, class_split
from hidra_plugins.datasets.folder import Folder
from hidra_plugins.datasets.miniimagenet import MiniImageNet
from hidra_plugins.datasets.sources import zip_tree

SLOWEST = 20.0  # seconds, on a machine with much else to do
SHAPE = (3, 8, 8)
LABELS = sorted(class_split("cifar-fs"))
Mutation = Callable[[bytearray, random.Random, int], None]
Source = tuple[bytes, Sequence[int]]  # content, and places where a change tells


def flip(content: bytearray, chance: random.Random, place: int) -> None:
    content[place] ^= 1 << chance.randrange(8)


def overwrite(content: bytearray, chance: random.Random, place: int) -> None:
    """Put a number there that lengths and counts do not expect."""
    size = chance.choice((1, 2, 4, 8))
    value = chance.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), chance.getrandbits(16)))
    order = chance.choice(("little", "big"))
    number = (value % (1 << 8 * size)).to_bytes(size, "little" if order == "little" else "big")
    content[place : place + size] = number


def cut(content: bytearray, chance: random.Random, place: int) -> None:
    del content[place:]


def remove(content: bytearray, chance: random.Random, place: int) -> None:
    del content[place : place + chance.randint(1, 40)]


def insert(content: bytearray, chance: random.Random, place: int) -> None:
    piece = chance.choice((chance.randbytes(9), bytes(512), b"\x1b[2J", b"9" * 30, b"/../", b"\n"))
    content[place:place] = piece


def repeat(content: bytearray, chance: random.Random, place: int) -> None:
    content[place:place] = content[place : place + chance.randint(1, 600)]


def swap(content: bytearray, chance: random.Random, place: int) -> None:
    """Exchange two neighbouring fields."""
    size = chance.choice((1, 2, 4, 8))
    first, second = content[place : place + size], content[place + size : place + 2 * size]
    content[place : place + 2 * size] = second + first


MUTATIONS: list[Mutation] = [flip, flip, overwrite, overwrite, cut, remove, insert, repeat, swap]


def damaged(source: Source, label: str, number: int) -> bytes:
    """The source with one to three changes, half of them where they tell most."""
    content, hot = source
    chance = random.Random(f"{label} {number}")
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        place = chance.choice(hot) + chance.randrange(64) if chance.random() < 0.7 else len(content)
        if not 0 <= place < len(changed):
            place = chance.randrange(max(1, len(changed)))
        if changed:
            chance.choice(MUTATIONS)(changed, chance, place)
    return bytes(changed)


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Interrupt what runs for ever."""

    def rung(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {SLOWEST} s")

    before = signal.signal(signal.SIGALRM, rung)
    signal.setitimer(signal.ITIMER_REAL, SLOWEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refusal(use: Callable[[bytes], object], content: bytes) -> Exception | None:
    """The error that a use ends with."""
    try:
        with warnings.catch_warnings(), alarm():
            warnings.simplefilter("error")
            use(content)
    except Exception as error:
        return error
    return None


def fuzz(source: Source, use: Callable[[bytes], object], label: str, cases: int) -> None:
    """Use many damaged versions of a source, which itself must be one that can be used."""
    assert label in BEGINNINGS or refusal(use, source[0]) is None
    for number in range(cases):
        start = time.monotonic()
        error = refusal(use, damaged(source, label, number))
        case = f"case {number} of {label}: {error!r}"
        assert time.monotonic() - start < SLOWEST, case
        if error is not None:
            assert isinstance(error, HidraError), case
            assert error.code in {2, 3}, case
            assert len(str(error)) < 3000, case
            assert str(error).replace("\n", "").isprintable(), case


def many(few: int, lots: int) -> pytest.MarkDecorator:
    """A few cases in every run, lots of them in a long one."""
    return pytest.mark.parametrize("cases", [few, pytest.param(lots, marks=pytest.mark.slow)])


def prepared(dataset: Dataset, folder: Path) -> None:
    decoded(list(dataset.classes(folder)))


def decoded(classes: list[ImageClass]) -> None:
    for image_class in classes:
        decode_class(image_class, Preprocessing(SHAPE))


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


# Archives.


@many(100, 4000)
def test_zip_archives(tmp_path: Path, cases: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) * 3):
            archive.writestr(f"c{number % 2}/{number}.png", picture("PNG", "1"), method)
    content = buffer.getvalue()
    index = content.index(b"PK\x01\x02")
    numbers = itertools.count()

    def use(content: bytes) -> None:
        path = tmp_path / f"{next(numbers)}.zip"  # an open archive is kept by its name
        path.write_bytes(content)
        tree = zip_tree(path)
        decoded([ImageClass("/".join(name), "train", images) for name, images in tree.items()])

    fuzz((content, [0, index, index + 50, index + 110, len(content) - 22]), use, "zip", cases)


def binary() -> dict[str, bytes]:
    """The members of the binary version of CIFAR-100, with one image of each class."""
    records = np.zeros((len(LABELS), 3074), np.uint8)
    records[:, 1] = range(len(LABELS))
    names = "\n".join(LABELS).encode()
    images = records.tobytes()
    return {"fine_label_names.txt": names, "test.bin": images, "train.bin": images}


def tar(members: dict[str, bytes]) -> Source:
    buffer = io.BytesIO()
    starts = []
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(content)
            starts += [archive.offset + field for field in (0, 96, 120, 150, 512)]
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), starts


def use_cifar(folder: Path) -> Callable[[bytes], None]:
    path = folder / "a.tar.gz"

    def use(content: bytes) -> None:
        path.write_bytes(content)
        prepared(CifarFS(path), folder)

    return use


@many(40, 2500)
def test_gzipped_tar_archives(tmp_path: Path, cases: int) -> None:
    packed = gzip.compress(tar(binary())[0], mtime=0)
    fuzz((packed, [0, 10, 60, len(packed) - 8]), use_cifar(tmp_path), "gzip", cases)


@many(60, 2500)
def test_tar_archives(tmp_path: Path, cases: int) -> None:
    use = use_cifar(tmp_path)
    fuzz(tar(binary()), lambda content: use(gzip.compress(content, 1)), "tar", cases)


# Images.

OPTIONS: dict[str, dict[str, Any]] = {
    "PNG animated": {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]},
    "GIF animated": {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]},
    "WEBP animated": {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]},
    "TIFF animated": {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF jpeg": {"compression": "jpeg"},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "TIFF packbits": {"compression": "packbits"},
    "JPEG progressive": {"progressive": True},
    "JPEG with EXIF": {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"},
    "BLP": {"blp_version": "BLP2"},
}
MODES = {"BLP": "P", "MSP": "1", "XBM": "1", "SPIDER": "F", "GIF": "P", "MPO": "RGB"}
Image.init()
WRITABLE = sorted({*Image.SAVE, *OPTIONS})


@pytest.mark.filterwarnings("ignore:IM image format")
@many(4, 1200)
@pytest.mark.parametrize("kind", [k for k in WRITABLE if k not in REFUSED_FORMATS])
def test_images(tmp_path: Path, kind: str, cases: int) -> None:
    form = kind.split(" ")[0]
    content = picture(form, MODES.get(form, "RGB"), **OPTIONS.get(kind, {}))
    fuzz((content, [0, 16, 64, len(content) - 64]), use_image(tmp_path), kind, cases)


def use_image(folder: Path) -> Callable[[bytes], None]:
    path = folder / "source" / "cat" / "picture.png"
    path.parent.mkdir(parents=True)

    def use(content: bytes) -> None:
        path.write_bytes(content)
        prepared(Folder(folder / "source"), folder)

    return use


# How files begin that Pillow reads and does not write.
FITS = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 4", "END"]
BEGINNINGS = {
    "CUR": b"\0\0\2\0\1\0\x10\x10\0\0\1\0\1\0\0\1\0\0\x16\0\0\0\x28\0\0\0\x10\0\0\0\x20\0\0\0"
    + b"\1\0\1\0"
    + bytes(24),
    "DCX": b"\xb1\x68\xde\x3a\x0c\0\0\0\0\0\0\0\x0a\5\1\1\0\0\0\0\x0f\0\x0f\0",
    "FITS": "".join(line.ljust(80) for line in FITS).ljust(2880).encode(),
    "FLI": bytes(4) + b"\x11\xaf\1\0\x10\0\x10\0\x08\0\3\0" + bytes(112) + b"\x40\0\0\0\xfa\xf1\1",
    "FTEX": b"FTEX\1\0\0\0\4\0\0\0\4\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\x20\0\0\0\x08\0\0\0",
    "GBR": b"\0\0\0\x1d\0\0\0\2\0\0\0\4\0\0\0\4\0\0\0\1GIMP\0\0\0\x0ax",
    "IMT": b"*\nwidth 4\nheight 4\npixel n8\n\x0c",
    "MCIDAS": b"\0\0\0\0\0\0\0\4" + b"\0\0\0\1" * 62,
    "PCD": bytes(2048) + b"PCD_" + bytes(1534),
    "PIXAR": b"\x80\xe8\0\0" + bytes(412) + b"\4\0\4\0\0\0\0\0\x0e\0\2" + bytes(597),
    "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\4\0\0\0\4\0\x08\0\3" + bytes(12) + b"\0\1",
    "SUN": b"\x59\xa6\x6a\x95\0\0\0\4\0\0\0\4\0\0\0\x08\0\0\0\x10\0\0\0\2\0\0\0\0\0\0\0\0",
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"2 1 1 1",\n"a c #ffffff",\n"aa"};\n',
    "XVTHUMB": b"P7 332\n#END_OF_COMMENTS\n4 4 255\n",
}


@many(4, 1200)
@pytest.mark.parametrize("kind", BEGINNINGS)
def test_images_that_pillow_only_reads(tmp_path: Path, kind: str, cases: int) -> None:
    if kind not in formats():
        pytest.skip("this version of Pillow does not read it")
    content = BEGINNINGS[kind] + bytes(range(256)) * 8
    fuzz((content, [0, 8, len(BEGINNINGS[kind]) - 8]), use_image(tmp_path), kind, cases)


# Lists.


@many(60, 2500)
def test_csv_files(tmp_path: Path, cases: int) -> None:
    rows = []
    for number in range(6):
        path = tmp_path / "images" / f"n{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture("PNG", "1"))
        rows.append(f'{path.name},"label {number}"\r\n')
    for split in ("train", "val", "test"):
        number = ("train", "val", "test").index(split) * 2
        lines = ["filename,label\r\n", *rows[number : number + 2]]
        (tmp_path / f"{split}.csv").write_text("".join(lines), newline="")
    content = (tmp_path / "train.csv").read_bytes()

    def use(content: bytes) -> None:
        (tmp_path / "train.csv").write_bytes(content)
        prepared(MiniImageNet(tmp_path), tmp_path)

    fuzz((content, [0, 10]), use, "csv", cases)
