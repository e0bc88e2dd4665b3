"""Preparing: one whole file or none, whatever the data, the disk and other processes do."""

import io
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from hidra_cli.api import DataError, Dataset, ImageClass
from hidra_cli.api.decoding import decode_image
from hidra_cli.api.preprocessing import Preprocessing, fixed_ranges, preprocessing_of
from hidra_cli.errors import PluginError, RunError
from hidra_cli.images.cache import StoreKey, cache_dir
from hidra_cli.images.prepare import prepare
from hidra_cli.images.prepared import open_store
from hidra_plugins.datasets.folder import Folder

SPLIT_OF = {"ant": "train", "bee": "train", "cat": "val", "dog": "test"}

# What the subprocesses of this file run: prepare the folder argv[1] into the file argv[2].
SCRIPT = """
import resource, sys
from pathlib import Path
from hidra_cli.errors import HidraError
from hidra_cli.images.prepare import prepare
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.images.cache import StoreKey
from hidra_plugins.datasets.folder import Folder

if __name__ == "__main__":
    source, path, size, limit = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    dataset = Folder(source, size=size)
    key = StoreKey("folder", "hidra-cli", {}, Preprocessing(dataset.image_shape), str(source))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        written = prepare(
            dataset, key, path, version="0", source=source, downloads=path.parent,
            progress=lambda *_, **__: None, workers=1,
        )
        print("written" if written else "there")
    except HidraError as exc:
        print(exc)
        sys.exit(exc.code)
"""


class Given(Dataset):
    """Classes handed over by the test."""

    api_version = 1
    title = "given"
    licence = "CC0-1.0"

    def __init__(self, *classes: ImageClass, shape: tuple[int, int, int] = (1, 3, 5)) -> None:
        self.image_shape = shape
        self.given = classes

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        return self.given


class Unreadable(Given):
    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        raise FileNotFoundError(2, "No such file or directory", "/some/where/index.csv")


class Faulty(Given):
    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        raise KeyError("label")


def run(dataset: Dataset, path: Path, **options: Any) -> bool:
    key = StoreKey("toy", "toy-dist", {"b": 1, "a": "x"}, preprocessing_of(dataset), None)
    options = {"workers": 1, "source": None, "downloads": path.parent / "downloads"} | options
    return prepare(dataset, key, path, version="3.2", progress=lambda *_, **__: None, **options)


def images(count: int, start: int = 0) -> list[np.ndarray]:
    return [np.arange(15, dtype=np.uint8).reshape(3, 5) + start + i for i in range(count)]


def left_in(folder: Path) -> set[str]:
    """All files but locks, whose removal would be a race."""
    return {p.name for p in folder.iterdir() if p.suffix != ".lock"} if folder.exists() else set()


@pytest.fixture
def toy() -> Given:
    return Given(
        ImageClass("a", "train", images(3)),
        ImageClass("b/x", "test", images(2, 40)),
        ImageClass("ç", "train", images(4, 80), quarter_turns=2),
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real folder data set: 4 classes of different sizes, formats and image sizes."""
    root = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    for number, (name, split) in enumerate(SPLIT_OF.items()):
        for index in range(number + 2):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (9 + index, 11, 3)).astype(np.uint8)
            suffix = ("png", "bmp", "jpg")[index % 3]
            Image.fromarray(pixels).save(folder / f"{index}.{suffix}")
    return root


def start(tmp_path: Path, source: Path, path: Path, size: int = 8, limit: int = 0) -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(source), str(path), str(size), str(limit)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def test_a_folder_is_prepared_as_decoded_by_hand(source: Path, tmp_path: Path) -> None:
    dataset, path = Folder(source, size=8), tmp_path / "new" / "deep" / "f.h5"
    assert run(dataset, path, source=source) is True
    found = open_store(path, "folder")
    assert found.names == ("ant", "bee", "cat", "dog")
    assert found.image_shape == (3, 8, 8)
    for image_class in dataset.classes(tmp_path):
        table = found.table(image_class.split)
        row = table.names.index(image_class.name)
        assert SPLIT_OF[image_class.name] == image_class.split
        assert table.counts[row] == len(image_class.images)
        for offset, reference in enumerate(image_class.images):
            stored = found.images[table.first[row] + offset]
            assert np.array_equal(stored, decode_image(reference, (3, 8, 8)))
    assert found.offsets.tolist() == [0, 2, 5, 9, 14]
    assert left_in(path.parent) == {"f.h5"}


def test_the_file_says_where_it_comes_from(toy: Given, tmp_path: Path) -> None:
    run(toy, tmp_path / "x.h5", source=tmp_path)
    attributes = open_store(tmp_path / "x.h5", "toy").attributes
    assert attributes["title"] == "given"
    assert attributes["licence"] == "CC0-1.0"
    assert attributes["distribution"] == "toy-dist 3.2"
    assert attributes["options"] == '{"a": "x", "b": 1}'
    assert attributes["source"] == str(tmp_path)
    assert len(attributes["source_hash"]) == 64
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["images"].shape == (9, 1, 3, 5)


def test_a_second_call_leaves_the_file_alone(toy: Given, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    assert run(toy, path) is True
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert run(toy, path) is False
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_force_rebuilds_the_same_content(toy: Given, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    run(toy, path)
    before, node = open_store(path, "toy").content_hash, path.stat().st_ino
    assert run(toy, path, force=True) is True
    assert path.stat().st_ino != node
    assert open_store(path, "toy").content_hash == before


def test_force_replaces_a_damaged_file(toy: Given, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(b"damaged")
    assert run(toy, path) is False
    assert run(toy, path, force=True) is True
    assert open_store(path, "toy").names == ("a", "b/x", "ç")


def test_the_content_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    classes = [ImageClass(f"c{i}", "train", images(1 + i % 3, i)) for i in range(30)]
    found = []
    for workers in (1, 3):
        run(Given(*classes), tmp_path / f"{workers}.h5", workers=workers)
        found.append(open_store(tmp_path / f"{workers}.h5", "toy"))
    assert found[0].content_hash == found[1].content_hash
    assert found[0].attributes["source_hash"] == found[1].attributes["source_hash"]
    assert np.array_equal(found[0].images, found[1].images)


def test_any_change_of_content_changes_the_hash(tmp_path: Path) -> None:
    base = [ImageClass("a", "train", images(2)), ImageClass("b", "test", images(2, 9))]
    variants = {
        "base": base,
        "pixels": [base[0], replace(base[1], images=images(2, 10))],
        "split": [base[0], replace(base[1], split="val")],
        "name": [base[0], replace(base[1], name="c")],
        "order": base[::-1],
        "counts": [
            replace(base[0], images=images(2) + images(1, 9)),
            replace(base[1], images=images(1, 10)),
        ],
    }
    hashes = set()
    for name, classes in variants.items():
        run(Given(*classes), tmp_path / f"{name}.h5")
        hashes.add(open_store(tmp_path / f"{name}.h5", "toy").content_hash)
    assert len(hashes) == len(variants)


def test_progress_ends_with_all_images(toy: Given, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []

    def progress(done: int, remark: str = "", *, total: int | None = None) -> None:
        told.append((done, total))
        assert isinstance(remark, str)

    key = StoreKey("toy", "toy-dist", {}, preprocessing_of(toy), None)
    prepare(
        toy,
        key,
        tmp_path / "x.h5",
        version="1",
        source=None,
        downloads=tmp_path,
        progress=progress,
        workers=1,
    )
    assert told == [(3, 9), (5, 9), (9, 9)]


def test_a_damaged_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    good = tmp_path / "in" / "train" / "a" / "1.png"
    good.parent.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30)).astype(np.uint8)).save(
        buffer, "PNG"
    )
    good.write_bytes(buffer.getvalue())
    bad = good.with_name("2.png")
    bad.write_bytes(buffer.getvalue()[:300])
    with pytest.raises(DataError) as caught:
        run(Folder(tmp_path / "in", size=8), tmp_path / "out" / "f.h5")
    assert caught.value.code == 3
    assert str(bad) in caught.value.what
    assert caught.value.why
    assert "run the same command again" in caught.value.fix
    assert left_in(tmp_path / "out") == set()


def test_a_failed_rebuild_keeps_the_old_file(toy: Given, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    run(toy, path)
    before = path.read_bytes()
    with pytest.raises(DataError):
        run(Given(ImageClass("a", "train", [tmp_path / "gone.png"])), path, force=True)
    assert path.read_bytes() == before
    assert left_in(tmp_path) == {"x.h5"}


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ([], "toy has no class at all"),
        ([ImageClass("a", "train", images(1))] * 2, "two classes called 'a'"),
        ([ImageClass("a", "train", [])], "class 'a' of toy has no image"),
        ([ImageClass("a", "dev", images(1))], "class 'a' is in an unknown split"),  # type: ignore[arg-type]
        ([ImageClass("a", "train", [None])], "cannot be read"),
        ([ImageClass("caf\udce9", "train", images(1))], "caf"),
    ],
)
def test_a_dataset_that_breaks_the_rules_is_refused(
    tmp_path: Path, classes: list[ImageClass], told: str
) -> None:
    with pytest.raises(DataError) as caught:
        run(Given(*classes), tmp_path / "x.h5")
    assert told in caught.value.what
    assert left_in(tmp_path) == set()


def test_a_source_that_cannot_be_read_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises((DataError, PluginError)) as caught:
        run(Unreadable(), tmp_path / "x.h5")
    assert "/some/where/index.csv" in str(caught.value)
    assert "free some space" not in caught.value.fix


def test_a_fault_of_the_plugin_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        run(Faulty(), tmp_path / "x.h5")
    assert "toy" in caught.value.what
    assert "KeyError" in caught.value.why
    assert left_in(tmp_path) == set()


def test_two_processes_at_once_leave_one_whole_file(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "f.h5"
    both = [start(tmp_path, source, path) for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted(out.strip() for out, _ in told) == ["there", "written"]
    assert open_store(path, "folder").names == ("ant", "bee", "cat", "dog")
    assert left_in(path.parent) == {"f.h5"}


def test_what_a_killed_process_left_is_removed(toy: Given, tmp_path: Path) -> None:
    (tmp_path / ".x.h5.99999.tmp").write_bytes(b"half")
    (tmp_path / ".y.h5.99999.tmp").write_bytes(b"of another file")
    run(toy, tmp_path / "x.h5")
    assert left_in(tmp_path) == {"x.h5", ".y.h5.99999.tmp"}


def test_a_killed_process_leaves_no_lock_behind(source: Path, toy: Given, tmp_path: Path) -> None:
    path = tmp_path / "out" / "f.h5"
    first = start(tmp_path, source, path)
    while first.poll() is None and not path.with_suffix(".lock").exists():
        pass
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    run(toy, path, force=True)
    assert open_store(path, "toy").names == ("a", "b/x", "ç")
    assert left_in(path.parent) == {"f.h5"}


def test_a_file_size_limit_is_told_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "f.h5"
    process = start(tmp_path, source, path, size=84, limit=100_000)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert out.startswith(f"error: {path} could not be written")
    assert "fix: free some space" in out
    assert "Traceback" not in err
    assert left_in(path.parent) == set()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_full_disk_is_told_and_nothing_is_left(
    source: Path, tmp_path: Path, small_disk: Path
) -> None:
    path = small_disk / "stores" / "f.h5"
    process = start(tmp_path, source, path, size=84)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert out.startswith(f"error: {path} could not be written")
    assert "space" in out.split("\n")[1]
    assert "Traceback" not in err
    assert left_in(path.parent) == set()


def test_a_read_only_place_is_told(toy: Given, read_only: Path) -> None:
    with pytest.raises(RunError) as caught:
        run(toy, read_only / "stores" / "x.h5")
    assert str(read_only / "stores" / "x.h5") in caught.value.what
    assert "ead-only" in caught.value.why or "denied" in caught.value.why
    assert "--cache-dir" in caught.value.fix


def test_a_place_inside_a_file_is_told(toy: Given, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not be written") as caught:
        run(toy, tmp_path / "file" / "x.h5")
    assert caught.value.why


def test_the_cache_is_where_the_first_answer_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {
        "HIDRA_CACHE_DIR": tmp_path / "one",
        "HIDRA_HOME": tmp_path / "two",
        "XDG_CACHE_HOME": tmp_path / "three",
        "HOME": tmp_path / "four",
    }
    for name, folder in expected.items():
        monkeypatch.setenv(name, str(folder))
    assert cache_dir(Path("~/own")) == tmp_path / "four" / "own"
    assert cache_dir() == tmp_path / "one"
    monkeypatch.setenv("HIDRA_CACHE_DIR", "")
    assert cache_dir() == tmp_path / "two"
    monkeypatch.delenv("HIDRA_HOME")
    assert cache_dir() == tmp_path / "three" / "hidra"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / "four" / ".cache" / "hidra"
    assert list(tmp_path.iterdir()) == []


def test_whatever_changes_the_images_changes_the_name_of_the_file() -> None:
    base = StoreKey("d", "dist", {"a": 1, "b": 2}, Preprocessing((1, 28, 28)), None)
    assert replace(base, options={"b": 2, "a": 1}).file_name == base.file_name
    assert base.file_name.startswith("d-28x28x1-")
    changes: list[dict[str, Any]] = [
        {"image_shape": (3, 28, 28)},
        {"invert": True},
        {"fit": "pad"},
        {"background": "black"},
        {"ranges": fixed_ranges(0, 1)},
    ]
    others = [
        replace(base, distribution="other"),
        replace(base, options={"a": 1, "b": 3}),
        *(replace(base, preprocessing=replace(base.preprocessing, **change)) for change in changes),
        replace(base, source="/data"),
    ]
    assert len({key.file_name for key in [base, *others]}) == 9


class Unpicklable(list[np.ndarray]):
    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("cannot be handed over")


def test_images_that_cannot_be_handed_to_a_worker_are_the_plugin_s_fault(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="handed to a decoding process") as caught:
        run(Given(ImageClass("a", "train", Unpicklable(images(1)))), tmp_path / "x.h5")
    assert "cannot be handed over" in caught.value.why
    assert left_in(tmp_path) == set()


def test_turning_images_that_are_not_square_is_refused(tmp_path: Path) -> None:
    given = Given(ImageClass("a", "train", images(1), quarter_turns=1))
    given.image_shape = (1, 3, 5)
    with pytest.raises(DataError, match="not square"):
        run(given, tmp_path / "x.h5")


def test_turned_versions_of_a_class_are_classes_of_their_own(tmp_path: Path) -> None:
    shared, other = images(3), images(2)
    classes = [ImageClass(f"a{turn}", "train", shared, turn) for turn in range(4)]
    given = Given(*classes, ImageClass("b", "train", other))
    given.image_shape = (1, 4, 4)
    run(given, tmp_path / "x.h5")
    found = open_store(tmp_path / "x.h5", "toy")
    plain = found.gather(np.arange(3))
    for turn in range(4):
        expected = np.rot90(plain.numpy(), turn, axes=(2, 3))
        assert np.array_equal(found.gather(np.arange(3) + 3 * turn).numpy(), expected)
    assert found.table("train").counts.tolist() == [3, 3, 3, 3, 2]
