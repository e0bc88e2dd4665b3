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
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.images import prepared
from hidra_cli.images.cache import StoreKey
from hidra_cli.images.file_format import seal
from hidra_cli.images.prepare import prepare
from hidra_cli.images.prepared import open_store

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
    key = StoreKey("noise", "toy-dist", {}, Preprocessing(SHAPE), None)
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
    monkeypatch.setattr(prepared, "IN_MEMORY_SHARE", 0)
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


def _about(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(file: h5py.File) -> None:
        about = json.loads(file["about"][:].tobytes())
        edit(about)
        del file["about"]
        file["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)

    return change


def _compressed(file: h5py.File) -> None:
    """A bomb: gigabytes of zeros in a few bytes."""
    del file["images"]
    bomb = (1 << 22, 3, 40, 50)
    file.create_dataset("images", bomb, np.uint8, chunks=(1 << 12, 3, 40, 50), compression="gzip")


def _never_written(file: h5py.File) -> None:
    """Gigabytes that are not in the file at all: HDF5 would make them up."""
    del file["images"]
    file.create_dataset("images", (1 << 22, 3, 40, 50), np.uint8)


def _external(file: h5py.File) -> None:
    """Images that lie in any other file."""
    size = file["images"].shape
    del file["images"]
    elsewhere = [("secret.bin", 0, int(np.prod(size)))]
    file.create_dataset("images", size, np.uint8, external=elsewhere)


def _link(link: object) -> Change:
    def change(file: h5py.File) -> None:
        del file["images"]
        file["images"] = link

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((20, 3, 4, 5), np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "images", (20, 3, 4, 5))
    del file["images"]
    file.create_virtual_dataset("images", layout)


CHANGES: dict[str, Change] = {
    "no images": _without("images"),
    "images is a group": _as_group,
    "images are floats": _set("images", np.zeros((20, 3, 4, 5), np.float32)),
    "images is a number": _set("images", 7),
    "images have no pixels": _set("images", np.zeros((20, 3, 0, 5), np.uint8)),
    "images are compressed": _compressed,
    "images were never written": _never_written,
    "images lie in another file": _external,
    "images are a link": _link(h5py.SoftLink("/offsets")),
    "images are a link to another file": _link(h5py.ExternalLink("other.h5", "images")),
    "images are virtual": _virtual,
    "no names": _about(lambda about: about.pop("names")),
    "no hash": _about(lambda about: about["attributes"].pop("content_hash")),
    "no attributes": _about(lambda about: about.pop("attributes")),
    "names are a number": _about(lambda about: about.update(names=5)),
    "one name twice": _about(lambda about: about.update(names=["a"] * len(about["names"]))),
    "what it says is no object": _set("about", np.frombuffer(b"[1]", np.uint8)),
    "what it says is no JSON": _set("about", np.frombuffer(b"{", np.uint8)),
    "what it says nests too deep": _set("about", np.frombuffer(b"[" * 99_999, np.uint8)),
    "no offsets": _set("offsets", np.zeros(0, np.int64)),
    "offsets is a number": _set("offsets", 20),
    "offsets beyond the images": _set("offsets", np.array([0, 3, 5, 9, 14, 21])),
    "offsets run backwards": _set("offsets", np.array([0, 19, 5, 9, 14, 20])),
    "too few splits": _set("splits", np.zeros(2, np.uint8)),
    "an unknown split": _set("splits", np.array([0, 1, 0, 2, 7], np.uint8)),
}


def changed(whole: Path, path: Path, change: Change, *, resealed: bool) -> Path:
    path.write_bytes(whole.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    if resealed:
        with path.open("r+b") as raw:
            seal(raw)
    return path


@pytest.mark.parametrize("resealed", [False, True], ids=["", "sealed by an attacker"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_file_whose_tables_were_changed_is_refused(
    whole: Path, tmp_path: Path, name: str, resealed: bool
) -> None:
    error = refused(changed(whole, tmp_path / "c.h5", CHANGES[name], resealed=resealed))
    assert "damaged" in error.what
    assert ("hash" in error.why) is not resealed or name == "no hash"


def test_a_file_sealed_again_without_a_change_is_whole(whole: Path, tmp_path: Path) -> None:
    again = changed(whole, tmp_path / "c.h5", lambda _: None, resealed=True)
    assert open_store(again, "noise").content_hash == open_store(whole, "noise").content_hash


def test_another_format_version_is_refused_with_the_command_that_rebuilds(
    whole: Path, tmp_path: Path
) -> None:
    future = _about(lambda about: about.update(format_version=99))
    error = refused(changed(whole, tmp_path / "future.h5", future, resealed=True))
    assert error.fix.startswith("hidra prepare noise --force")


def test_the_file_has_no_heap_whose_damage_could_keep_hdf5_looping(whole: Path) -> None:
    assert b"GCOL" not in whole.read_bytes()


@pytest.mark.parametrize("load", [True, False])
def test_images_that_fit_are_kept_on_the_device(whole: Path, load: bool) -> None:
    """Here the device is the CPU: what a GPU would hold."""
    cpu = torch.device("cpu")
    expected = open_store(whole, "noise")
    found = open_store(whole, "noise", load=load)
    size = found.images.nbytes
    enough = int(size / prepared.ON_DEVICE_SHARE)
    assert found.on(cpu, enough - 1) is found, "a byte too few are free"
    there = found.on(cpu, enough)
    assert isinstance(there.images, torch.Tensor)
    assert there.images.dtype == torch.uint8
    assert there.images.nbytes == size
    assert load or not found.images, "the file is closed"
    indices = np.array([[3, 0, 3], [19, 7, 1]])
    assert torch.equal(there.gather(indices), expected.gather(indices))
    assert there.content_hash == expected.content_hash
    there.close()


def test_images_go_to_the_device_in_chunks(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_store(whole, "noise")
    for chunk in (1, 3 * expected.images[0].nbytes + 1, 10**6):
        monkeypatch.setattr(prepared, "CHUNK_BYTES", chunk)
        there = expected.on(torch.device("cpu"), 10**9)
        assert np.array_equal(there.images.numpy(), expected.images)
