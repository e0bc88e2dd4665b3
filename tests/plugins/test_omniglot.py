"""Omniglot: sources, class splits, rotations, download errors."""

import hashlib
import io
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from hidra_cli.api import DataError, ImageClass
from hidra_plugins.datasets.omniglot import EVALUATION_ALPHABETS, Omniglot, half_of, vinyals_split
from hidra_plugins.datasets.sources import download

BACKGROUND = "images_background"
EVALUATION = "images_evaluation"
HALVES = (BACKGROUND, EVALUATION)
DRAWINGS = ("0001_02.png", "0001_01.png")
CHARACTERS = sorted(name for names in vinyals_split().values() for name in names)
NOWHERE = Path("nowhere")
SplitName = Literal["vinyals", "official"]


def members(half: str) -> list[str]:
    """File names, last one first, of a small copy of a published archive."""
    mine = [name for name in CHARACTERS if half_of(name) == half]
    return [f"{half}/{name}/{drawing}" for name in reversed(mine) for drawing in DRAWINGS]


def write_zip(path: Path, names: list[str], content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/._0001_01.png", b"not an image")
        for name in names:
            archive.writestr(name, content)
    return path


def write_files(root: Path, names: list[str], content: bytes) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory, png: bytes) -> Path:
    root = tmp_path_factory.mktemp("zips")
    for half in HALVES:
        write_zip(root / f"{half}.zip", members(half), png)
    return root


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, png: bytes) -> Path:
    root = tmp_path_factory.mktemp("extracted")
    for half in HALVES:
        write_files(root, members(half), png)
    return root


def classes(source: Path, **options: Any) -> list[ImageClass]:
    return list(Omniglot(source, **options).classes(NOWHERE))


def summary(found: list[ImageClass]) -> list[tuple[str, str, list[str]]]:
    """Name, split and the file name of each image."""
    return [(c.name, c.split, [str(image).split("/")[-1] for image in c.images]) for c in found]


@pytest.mark.parametrize(
    ("split", "train", "val", "test"), [("vinyals", 1028, 172, 423), ("official", 813, 151, 659)]
)
def test_class_counts_of_each_split(
    zips: Path, split: SplitName, train: int, val: int, test: int
) -> None:
    found = classes(zips, split=split)
    assert Counter(c.split for c in found) == {"train": train, "val": val, "test": test}
    assert len({c.name for c in found}) == len(found) == 1623
    assert not NOWHERE.exists()


def test_official_split_separates_alphabets(zips: Path) -> None:
    by_split: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for found in classes(zips, split="official"):
        by_split[found.split].add(found.name.split("/")[0])
    assert by_split["test"] == EVALUATION_ALPHABETS
    assert len(by_split["train"]) == 25
    assert len(by_split["val"]) == 5
    assert max(by_split["train"]) < min(by_split["val"])


def test_every_layout_gives_the_same_classes(
    zips: Path, extracted: Path, tmp_path: Path, png: bytes
) -> None:
    one_zip = write_zip(tmp_path / "all.zip", members(EVALUATION) + members(BACKGROUND), png)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / f"{BACKGROUND}.zip").write_bytes((zips / f"{BACKGROUND}.zip").read_bytes())
    (mixed / EVALUATION).symlink_to(extracted / EVALUATION)
    direct = tmp_path / "direct"
    write_files(direct, [n.split("/", 1)[1] for h in HALVES for n in members(h)], png)

    expected = summary(classes(zips))
    assert all(images == sorted(DRAWINGS) for _, _, images in expected)
    for source in (extracted, one_zip, mixed, direct):
        assert summary(classes(source)) == expected


def test_an_archive_extracted_beside_itself_counts_once(zips: Path, tmp_path: Path) -> None:
    for half in HALVES:
        (tmp_path / f"{half}.zip").write_bytes((zips / f"{half}.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / f"{EVALUATION}.zip") as archive:
        archive.extractall(tmp_path)
    assert {len(c.images) for c in classes(tmp_path)} == {len(DRAWINGS)}


@pytest.mark.parametrize("split", ["vinyals", "official"])
def test_rotations_are_classes_of_the_same_split(zips: Path, split: SplitName) -> None:
    plain = {c.name: c for c in classes(zips, split=split)}
    turned = classes(zips, split=split, rotations=True)
    assert len({c.name for c in turned}) == len(turned) == 4 * len(plain)
    for found in turned:
        name, _, turn = found.name.partition("/rot")
        assert found.quarter_turns == int(turn or 0) // 90
        assert found.split == plain[name].split
        assert found.images == plain[name].images


def test_missing_half_is_named(zips: Path, tmp_path: Path) -> None:
    (tmp_path / f"{BACKGROUND}.zip").write_bytes((zips / f"{BACKGROUND}.zip").read_bytes())
    for source in (tmp_path, tmp_path / f"{BACKGROUND}.zip"):
        with pytest.raises(DataError, match="964 of 1623") as caught:
            classes(source)
        assert EVALUATION in caught.value.why
        assert BACKGROUND not in caught.value.why.replace(str(source), "")
        assert "hidra prepare omniglot --source" in caught.value.fix


def test_one_missing_character_is_named(tmp_path: Path, png: bytes) -> None:
    names = [n for half in HALVES for n in members(half) if "Korean/character07" not in n]
    with pytest.raises(DataError, match=r"1622 of 1623.*Korean/character07"):
        classes(write_zip(tmp_path / "all.zip", names, png))


def test_character_in_two_places_is_refused(tmp_path: Path, png: bytes) -> None:
    names = [*members(BACKGROUND), "copy/Korean/character07/1.png"]
    with pytest.raises(DataError, match="Korean/character07"):
        classes(write_zip(tmp_path / "all.zip", names, png))


@pytest.mark.parametrize("name", ["../a/b/1.png", "/a/b/1.png", "C:/b/1.png", "a/b\n/1.png"])
def test_unsafe_names_in_a_zip_are_refused(tmp_path: Path, png: bytes, name: str) -> None:
    with pytest.raises(DataError) as caught:
        classes(write_zip(tmp_path / "all.zip", [name], png))
    assert repr(name) in caught.value.why


def test_damaged_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / f"{BACKGROUND}.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=f"{BACKGROUND}.zip"):
        classes(tmp_path)


@pytest.mark.parametrize(
    ("options", "value"), [({"size": 0}, "size=0"), ({"split": "lake"}, "'lake'")]
)
def test_bad_options_are_named(options: dict[str, Any], value: str) -> None:
    with pytest.raises(ValueError, match=value):
        Omniglot(None, **options)


def test_size_sets_the_image_shape() -> None:
    assert Omniglot(None).image_shape == (1, 28, 28)
    assert Omniglot(None, size=64).image_shape == (1, 64, 64)


def test_without_network_the_error_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DataError) as caught:
        list(Omniglot(None).classes(tmp_path))
    assert f"{BACKGROUND}.zip" in caught.value.what
    assert str(tmp_path / "omniglot") in caught.value.fix
    assert "68d2efa1b9178cc56df9314c21c6e718" in caught.value.fix
    assert "hidra prepare omniglot --source" in caught.value.fix


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a web server on this machine that serves `published.bin`."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "published.bin").write_bytes(b"content")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/published.bin"
        running.shutdown()
        thread.join()


def test_download_is_checked_and_kept(
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    md5 = hashlib.md5(b"content").hexdigest()
    folder = tmp_path / "downloads"

    with pytest.raises(DataError, match=r"published\.bin"):
        download(server, folder, "published.bin", "0" * 32, dataset="omniglot")
    path = download(server, folder, "published.bin", md5, dataset="omniglot")
    assert path.read_bytes() == b"content"
    (tmp_path / "www" / "published.bin").unlink()
    assert download(server, folder, "published.bin", md5, dataset="omniglot") == path
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("split", ["vinyals", "official"])
def test_real_archives(real_omniglot: Path, split: SplitName) -> None:
    found = classes(real_omniglot, split=split)
    assert len(found) == 1623
    assert {len(c.images) for c in found} == {20}
    drawing = next(iter(found[-1].images))
    with zipfile.ZipFile(drawing.archive) as archive:
        image = Image.open(io.BytesIO(archive.read(drawing.name)))
    assert image.size == (105, 105)
