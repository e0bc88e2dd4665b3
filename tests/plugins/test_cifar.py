"""CIFAR-FS and FC100: sources, class splits, official archives, hostile pickles."""

import builtins
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from hidra_cli.api import DataError, ImageClass
from hidra_plugins.datasets import cifar
from hidra_plugins.datasets.cifar import CifarFS, class_split
from hidra_plugins.datasets.sources import split_file

LABELS = sorted(class_split("cifar-fs"))
NOWHERE = Path("nowhere")
SplitName = Literal["cifar-fs", "fc100"]
Bytes = npt.NDArray[np.uint8]


def classes(source: Path, split: SplitName = "cifar-fs") -> list[ImageClass]:
    return list(CifarFS(source, split=split).classes(NOWHERE))


def count_splits(found: list[ImageClass]) -> tuple[int, ...]:
    splits = [c.split for c in found]
    return tuple(splits.count(split) for split in ("train", "val", "test"))


def file_names(source: Path) -> dict[str, list[str]]:
    return {c.name: [str(image).split("/")[-1] for image in c.images] for c in classes(source)}


def write_files(root: Path, names: list[str], content: bytes) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, names: list[str], content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return path


FLAT = [f"{label}/{number}.png" for label in reversed(LABELS) for number in (3, 1, 2)]
PARTED = [
    f"{part}/{label}/{number}.png"
    for label in reversed(LABELS)
    for part, number in (("train", 2), ("train", 3), ("test", 1))
]


def test_every_file_layout_gives_the_same_classes(tmp_path: Path, png: bytes) -> None:
    holder = tmp_path / "holder"
    holder.mkdir()
    sources = [
        write_files(tmp_path / "flat", FLAT, png),
        write_files(tmp_path / "parted", PARTED, png),
        write_zip(tmp_path / "flat.zip", FLAT, png),
        write_zip(tmp_path / "parted.zip", [f"cifar100/{name}" for name in PARTED], png),
        write_zip(holder / "one.zip", PARTED, png).parent,
    ]
    for source in sources:
        assert file_names(source) == {label: ["1.png", "2.png", "3.png"] for label in LABELS}


@pytest.mark.parametrize(("split", "counts"), [("cifar-fs", (64, 16, 20)), ("fc100", (60, 20, 20))])
def test_class_counts_of_each_split(
    tmp_path: Path, png: bytes, split: SplitName, counts: tuple[int, int, int]
) -> None:
    found = classes(write_zip(tmp_path / "all.zip", FLAT, png), split)
    assert count_splits(found) == counts
    assert sorted(c.name for c in found) == LABELS


def test_fc100_keeps_superclasses_together() -> None:
    home = class_split("fc100")
    for split, superclasses in split_file("fc100").items():
        for labels in superclasses.values():
            assert {home[label] for label in labels} == {split}


def test_missing_class_is_named(tmp_path: Path, png: bytes) -> None:
    names = [name for name in FLAT if not name.startswith("otter/")]
    with pytest.raises(DataError, match=r"99 of 100.*'otter'"):
        classes(write_zip(tmp_path / "all.zip", names, png))


@pytest.mark.parametrize(
    "names",
    [
        [f"copy/{name}" for name in FLAT] + FLAT,
        PARTED + FLAT,
        [name for name in PARTED if name.startswith("train/")],
    ],
)
def test_unclear_places_are_refused(tmp_path: Path, png: bytes, names: list[str]) -> None:
    with pytest.raises(DataError, match="holds class folders in"):
        classes(write_zip(tmp_path / "all.zip", names, png))


def test_folder_without_exactly_one_archive_is_refused(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "preview.png").write_bytes(png)
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz"):
        classes(tmp_path)
    write_zip(tmp_path / "a.zip", FLAT, png)
    assert len(classes(tmp_path)) == 100
    write_zip(tmp_path / "b.zip", FLAT, png)
    with pytest.raises(DataError, match=r"a\.zip, b\.zip"):
        classes(tmp_path)


# The official archives.

Images = dict[str, list[Bytes]]
WriteArchive = Callable[[Path, Images], Path]
# The labels are not numbered in alphabetical order, so that indices cannot be confused.
NUMBERED = LABELS[50:] + LABELS[:50]


@pytest.fixture
def images() -> Images:
    """Two training images and one test image of each class, (32, 32, 3) each."""
    generator = np.random.default_rng(7)
    pixels = generator.integers(0, 256, (len(LABELS), 3, 32, 32, 3), dtype=np.uint8)
    return {label: list(pixels[index]) for index, label in enumerate(LABELS)}


def records(images: Images, part: slice) -> tuple[Bytes, list[int]]:
    """Planes (n, 3072) and labels (n,), classes mixed."""
    pairs = [
        (image.transpose(2, 0, 1).ravel(), NUMBERED.index(label))
        for position in range(3)[part]
        for label in LABELS
        for image in [images[label][position]]
    ]
    return np.stack([planes for planes, _ in pairs]), [label for _, label in pairs]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pickled_part(images: Images, part: slice) -> bytes:
    data, labels = records(images, part)
    content = {"data": data, "fine_labels": labels, "coarse_labels": [0] * len(labels)}
    return pickle.dumps(content, 2).replace(b"numpy._core.", b"numpy.core.")


def python_members(images: Images) -> dict[str, bytes]:
    """The files of the Python archive, as an old numpy wrote them."""
    return {
        "cifar-100-python/meta": pickle.dumps({"fine_label_names": NUMBERED}, 2),
        "cifar-100-python/test": pickled_part(images, slice(2, 3)),
        "cifar-100-python/train": pickled_part(images, slice(0, 2)),
    }


@pytest.fixture
def published(images: Images, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of the Python archive, taken for those that the authors published."""
    members = python_members(images)
    checksums = {hashlib.md5(content).hexdigest() for content in members.values()}
    monkeypatch.setattr(cifar, "PUBLISHED", checksums)
    return members


def write_python(path: Path, images: Images) -> Path:
    return write_tar(path, python_members(images))


def write_python_unpacked(path: Path, images: Images) -> Path:
    path.write_bytes(gzip.decompress(write_python(path, images).read_bytes()))
    return path


def write_binary(path: Path, images: Images) -> Path:
    members = {"cifar-100-binary/fine_label_names.txt": "\n".join(NUMBERED).encode()}
    for name, part in (("train", slice(0, 2)), ("test", slice(2, 3))):
        data, labels = records(images, part)
        fine = np.array(labels, np.uint8)[:, None]
        members[f"cifar-100-binary/{name}.bin"] = np.hstack([fine // 5, fine, data]).tobytes()
    return write_tar(path, members)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("write", [write_python, write_python_unpacked, write_binary])
@pytest.mark.parametrize("in_folder", [True, False])
def test_official_archives_give_back_every_image(
    tmp_path: Path, images: Images, write: WriteArchive, in_folder: bool
) -> None:
    archive = write(tmp_path / "cifar-100.tar.gz", images)
    found = classes(tmp_path if in_folder else archive)
    assert [c.name for c in found] == list(class_split("cifar-fs"))
    for image_class in found:
        assert len(image_class.images) == 3
        for image, original in zip(image_class.images, images[image_class.name], strict=True):
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, original)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-100.tar.gz"]


# What Python 2 and its numpy wrote, as in the published archive: two images of three pixels.
OF_PYTHON_2 = b"".join(
    [
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03",
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06",
        b"U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
        b"U\x06\xfa\xfb\xfc\xfd\xfe\xfftbU\x0bfine_labelsq\x08]q\x09(K\x01M\x2c\x01e",
        b"U\x10fine_label_names](U\x04\xe9tateu.",
    ]
)


def test_pickles_of_python_2_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "PUBLISHED", {hashlib.md5(OF_PYTHON_2).hexdigest()})
    pixels, labels = cifar.read_pickled_images(OF_PYTHON_2, tmp_path)
    assert pixels.tolist() == [[250, 251, 252], [253, 254, 255]]
    assert labels.tolist() == [1, 300]
    assert cifar.read_pickled_names(OF_PYTHON_2, tmp_path) == ["état"]


def test_the_published_files_are_those_that_torchvision_knows() -> None:
    from torchvision.datasets import CIFAR100

    images = {md5 for _, md5 in (*CIFAR100.train_list, *CIFAR100.test_list)}
    assert images | {CIFAR100.meta["md5"]} == cifar.PUBLISHED


class Hostile:
    """Unpickles by calling `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def refused_pickle(folder: Path, members: dict[str, bytes]) -> None:
    """An archive is refused for a pickle in it, at once and without taking memory."""
    archive = write_tar(folder / "bad.tar.gz", members)
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"refused to load a pickle in .*bad\.tar\.gz"
        ) as caught:
            classes(archive)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert "not one of those that the authors of CIFAR-100 published" in caught.value.why
    assert "cifar-100-binary.tar.gz" in caught.value.fix


@pytest.mark.parametrize("member", ["train", "test", "meta"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickle_is_refused_and_not_executed(
    tmp_path: Path, published: dict[str, bytes], member: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    hostile = {"data": Hostile(os.mkdir, str(marker)), "fine_labels": []}
    content = pickle.dumps(hostile, protocol)
    refused_pickle(tmp_path, {**published, f"cifar-100-python/{member}": content})
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"fine_label_names": [Hostile(builtins.eval, "1 / 0")]}),
        pickle.dumps(Hostile(np.zeros, 1 << 40)),
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x02}(" + b")" + b"\x85" * 50_000 + b"Nu.",
        b"\x80\x05\x96" + b"\xff" * 8,
        b"not a pickle",
        b"",
        pickle.dumps({"fine_label_names": NUMBERED}, 4),
    ],
    ids=["eval", "array", "memo", "deep key", "bytes", "no pickle", "empty", "own"],
)
def test_every_other_pickle_is_refused(
    tmp_path: Path, published: dict[str, bytes], content: bytes
) -> None:
    refused_pickle(tmp_path, {**published, "cifar-100-python/meta": content})


def test_a_member_too_large_is_not_read(tmp_path: Path, published: dict[str, bytes]) -> None:
    members = {**published, "cifar-100-python/meta": bytes(70_000)}
    with pytest.raises(DataError, match="meta in it has 70000 bytes, not 0 to 65536"):
        classes(write_tar(tmp_path / "bad.tar.gz", members))


def test_truncated_archive_is_an_error(tmp_path: Path, images: Images) -> None:
    whole = write_binary(tmp_path / "whole.tar.gz", images).read_bytes()
    for length in (0, 10, len(whole) // 2):
        cut = tmp_path / "cut.tar.gz"
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar\.gz"):
            classes(cut)


@pytest.mark.parametrize("name", ["/meta", "../meta", "a/../../meta", "C:/meta", "\x1b[2J/meta"])
def test_unsafe_names_in_an_archive_are_refused(
    tmp_path: Path, published: dict[str, bytes], name: str
) -> None:
    members = dict(published)
    members[name] = members.pop("cifar-100-python/meta")
    with pytest.raises(DataError, match="not a plain relative name") as caught:
        classes(write_tar(tmp_path / "bad.tar.gz", members))
    assert caught.value.why.isprintable()


def test_a_member_that_is_there_twice_is_refused(
    tmp_path: Path, published: dict[str, bytes]
) -> None:
    members = {**published, "again/meta": b""}
    with pytest.raises(DataError, match="meta twice"):
        classes(write_tar(tmp_path / "bad.tar.gz", members))


def test_links_in_an_archive_are_not_read(tmp_path: Path, published: dict[str, bytes]) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(published["cifar-100-python/meta"])
    path = tmp_path / "linked.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in published.items():
            info = tarfile.TarInfo(name)
            if name.endswith("meta"):
                info.type, info.linkname = tarfile.SYMTYPE, str(secret)
                content = b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match="neither the Python nor the binary"):
        classes(path)


def test_incomplete_binary_records_are_refused(tmp_path: Path, images: Images) -> None:
    path = write_binary(tmp_path / "good.tar.gz", images)
    with tarfile.open(path) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    members["cifar-100-binary/test.bin"] = members["cifar-100-binary/test.bin"][:-1]
    with pytest.raises(DataError, match="3074"):
        classes(write_tar(tmp_path / "bad.tar.gz", members))


def test_classes_can_be_sent_to_another_process(tmp_path: Path, images: Images) -> None:
    found = classes(write_binary(tmp_path / "all.tar.gz", images))[0]
    received = pickle.loads(pickle.dumps(found))
    assert (received.name, received.split) == (found.name, found.split)
    np.testing.assert_array_equal(np.stack(received.images), np.stack(list(found.images)))


@pytest.mark.parametrize(
    ("options", "value"), [({"size": -1}, "size=-1"), ({"split": "cifar"}, "'cifar'")]
)
def test_bad_options_are_named(options: dict[str, Any], value: str) -> None:
    with pytest.raises(ValueError, match=value):
        CifarFS(None, **options)


def test_without_network_the_error_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DataError) as caught:
        list(CifarFS(None).classes(tmp_path))
    assert "cifar-100-python.tar.gz" in caught.value.what
    assert "eb9058c3a382ffc7106e4002c42a8d85" in caught.value.fix
    assert str(tmp_path) in caught.value.fix
    assert "hidra prepare cifar-fs --source" in caught.value.fix


@pytest.mark.parametrize(("split", "counts"), [("cifar-fs", (64, 16, 20)), ("fc100", (60, 20, 20))])
def test_real_zip(real_cifar100: Path, split: SplitName, counts: tuple[int, int, int]) -> None:
    found = classes(real_cifar100, split)
    assert count_splits(found) == counts
    assert {len(c.images) for c in found} == {600}
    member = next(iter(found[0].images))
    with zipfile.ZipFile(member.archive) as archive:
        assert Image.open(io.BytesIO(archive.read(member.name))).size == (32, 32)
