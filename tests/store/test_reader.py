"""Reading: a prepared file is whole or refused, and gathered alike from memory and disk."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hidra_cli.api import DataError, Dataset, ImageClass, Split
from hidra_cli.store import reader
from hidra_cli.store.build import prepare
from hidra_cli.store.paths import StoreKey
from hidra_cli.store.reader import open_store

SHAPE = (3, 4, 5)


class Noise(Dataset):
    api_version = 1
    title = "noise"
    image_shape = SHAPE

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        generator = np.random.default_rng(0)
        splits: list[Split] = ["train", "val", "train", "test", "val"]
        for number, split in enumerate(splits):
            pixels = generator.integers(0, 256, (number + 2, 4, 5, 3)).astype(np.uint8)
            yield ImageClass(f"class {number}", split, list(pixels))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "noise.h5"
    key = StoreKey("noise", "toy-dist", {}, SHAPE, False, None)
    prepare(
        Noise(),
        key,
        path,
        version="1",
        source=None,
        downloads=path.parent,
        progress=lambda *_, **__: None,
        workers=1,
    )
    return path


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        open_store(path, "noise")
    assert caught.value.code == 3
    assert str(path) in str(caught.value)
    assert caught.value.why
    assert "hidra prepare" in caught.value.fix
    return caught.value


def test_tables_hold_the_classes_of_their_split(whole: Path) -> None:
    found = open_store(whole, "noise")
    train, val, test = (found.table(split) for split in ("train", "val", "test"))
    assert train.names == ("class 0", "class 2")
    assert (train.first.tolist(), train.counts.tolist()) == ([0, 5], [2, 4])
    assert val.names == ("class 1", "class 4")
    assert (val.first.tolist(), val.counts.tolist()) == ([2, 14], [3, 6])
    assert (test.names, test.dataset, test.split) == (("class 3",), "noise", "test")


@pytest.mark.parametrize(
    "indices",
    [
        np.array([4, 0, 19, 4]),
        np.array([[3, 2], [2, 3], [0, 0]]),
        np.arange(20)[::-1].copy(),
        np.array([7]),
        np.zeros((2, 3, 4), np.int64),
    ],
    ids=["unsorted", "repeated", "reversed", "one", "deep"],
)
def test_images_are_gathered_alike_from_memory_and_file(
    whole: Path, indices: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = open_store(whole, "noise")
    monkeypatch.setattr(reader, "IN_MEMORY_SHARE", 0)
    lazy = open_store(whole, "noise")
    assert isinstance(memory.images, np.ndarray)
    assert isinstance(lazy.images, h5py.Dataset)
    assert lazy.content_hash == memory.content_hash
    expected = torch.from_numpy(memory.images[indices])
    for found in (memory.gather(indices), lazy.gather(indices)):
        assert found.shape == (*indices.shape, *SHAPE)
        assert found.dtype == torch.uint8
        assert torch.equal(found, expected)


def test_images_can_be_left_in_the_file(whole: Path) -> None:
    found = open_store(whole, "noise", load=False)
    assert isinstance(found.images, h5py.Dataset)
    assert len(found.images) == 20


def test_gathered_images_are_a_copy(whole: Path) -> None:
    found = open_store(whole, "noise")
    before = found.images.copy()
    found.gather(np.array([0, 1])).zero_()
    assert np.array_equal(found.images, before)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.h5")
    assert error.what == "noise is not prepared"
    assert error.fix.startswith("hidra prepare noise")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(whole: Path, tmp_path: Path, share: float) -> None:
    content = whole.read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(content[: int(len(content) * share)])
    assert "--force" in refused(path).fix


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    path.write_text("no HDF5 at all, but long enough to be read as one " * 99)
    refused(path)
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)
    refused(path)


def test_a_file_with_one_image_bit_flipped_is_refused(whole: Path, tmp_path: Path) -> None:
    content = bytearray(whole.read_bytes())
    with h5py.File(whole) as file:
        start, size = file["images"].id.get_offset(), file["images"].nbytes
    for place in (start, start + size // 2, start + size - 1):
        content[place] ^= 16
        (tmp_path / "flip.h5").write_bytes(content)
        error = refused(tmp_path / "flip.h5")
        assert "damaged" in error.what
        assert "--force" in error.fix
        content[place] ^= 16


Change = Callable[[h5py.File], None]


def _set(name: str, value: object) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def _without(name: str) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def _as_group(file: h5py.File) -> None:
    del file["images"]
    file.create_group("images")


def _about(edit: Callable[[dict[str, Any]], object], *, rehash: bool = False) -> Change:
    def change(file: h5py.File) -> None:
        about = json.loads(file["about"][:].tobytes())
        edit(about)
        if rehash:
            about["hash"] = reader._about_hash(about)
        del file["about"]
        file["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)

    return change


def _other_split(file: h5py.File) -> None:
    file["splits"][0] = 2


@pytest.mark.parametrize(
    "change",
    [
        _without("images"),
        _about(lambda about: about.pop("names")),
        _as_group,
        _about(lambda about: about["attributes"].pop("content_hash")),
        _about(lambda about: about["names"].reverse(), rehash=True),
        _about(lambda about: about["attributes"].update(licence="none at all")),
        _other_split,
        _about(lambda about: about["attributes"].update(invert="True")),
        _set("offsets", np.zeros(0, np.int64)),
        _set("offsets", 20),
        _set("offsets", np.array([0, 3, 5, 9, 14, 20])),
        _set("splits", np.zeros(2, np.uint8)),
        _about(lambda about: about.update(names=5)),
        _set("images", np.zeros((20, 3, 4, 5), np.float32)),
        _set("images", 7),
    ],
    ids=[
        "no images",
        "no names",
        "images is a group",
        "no hash",
        "another name",
        "another licence",
        "another split",
        "another invert",
        "no offsets",
        "offsets is a number",
        "other offsets",
        "too few splits",
        "names are numbers",
        "images are floats",
        "images is a number",
    ],
)
def test_a_file_whose_tables_were_changed_is_refused(
    whole: Path, tmp_path: Path, change: Change
) -> None:
    path = tmp_path / "changed.h5"
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    error = refused(path)
    assert "damaged" in error.what


def test_another_format_version_is_refused_with_the_command_that_rebuilds(
    whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "future.h5"
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, "r+") as file:
        _about(lambda about: about.update(format_version=99))(file)
    error = refused(path)
    assert error.fix.startswith("hidra prepare noise --force")


def test_the_file_has_no_heap_whose_damage_could_keep_hdf5_looping(whole: Path) -> None:
    assert b"GCOL" not in whole.read_bytes()
