"""Trees of folders, label files and pictures as people have them, made by chance.

Each is learned, or refused with one error and a documented exit code; and no picture is left out
that is not counted.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from hidra_cli.api.folders import is_hidden, is_image
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.errors import HidraError
from hidra_cli.images.own_pictures import PictureOptions
from hidra_cli.jobs.own_data import OwnData, OwnPictures, read_own

from ..conftest import Hidra

CPU = torch.device("cpu")


def stored(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """Pictures of every kind, small ones."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    colour = Image.fromarray(noise)
    clear = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    clear.putalpha(Image.fromarray(noise[:20, :20, 0]))
    jpeg = stored(colour, "JPEG")
    return {
        "png": stored(colour, "PNG"),
        "grey": stored(colour.convert("L"), "PNG"),
        "wide": stored(colour.resize((200, 20)), "PNG"),
        "clear": stored(clear, "PNG"),
        "deep": stored(Image.fromarray(noise[..., 0].astype(np.uint16) * 16), "PNG"),
        "float": stored(Image.fromarray(noise[..., 0].astype(np.float32) / 255), "TIFF"),
        "mask": stored(Image.fromarray(noise[..., 0] % 2), "PNG"),
        "blank": stored(Image.new("L", (9, 9), 7), "PNG"),
        "jpeg": jpeg,
        "short": jpeg[:-40],
        "cut": jpeg[: len(jpeg) // 3],
        "text": b"no picture",
        "empty": b"",
    }


CONTENTS = pictures()
CAFES = [unicodedata.normalize(form, "Café") for form in ("NFC", "NFD")]
FOLDERS = ["cat", "dog", "Dog", "owl", "train", "val", "Training", "__MACOSX", "@eaDir", ".git"]
FOLDERS += [*CAFES, "a b", "x\x1b[2J", "[bold]", "lost+found", "-f", "a\nb"]
NAMES = ["1.png", "2.PNG", "3.jpg", "4.tif", "1", "notes.txt", "5.HEIC", "Thumbs.db", ".6.png"]
NAMES += ["ü.png", "7.png\x1b", "8 .png", "labels.txt", "9.webp", "a\nb.png", "10.xyz"]
LABELS = ["cat", "dog", "Dog", "", "3", " owl ", CAFES[1], "x\x1b", "cat"]
HEADERS = ["filename,label", "Image;Class", "path\tcategory", "id,breed", "a,b", ""]
HEADERS += ["\ufefffile,label"]


@dataclass(frozen=True)
class Tree:
    """What is written: files of (path, content), links of (path, target), and a label file."""

    files: dict[str, str]
    links: dict[str, str]
    header: str
    rows: list[tuple[str, str]]
    labels: str
    skip_broken: bool
    query: bool


PATHS = st.builds(
    lambda folders, name: "/".join([*folders, name]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(NAMES),
)
# Mostly what can be learned, so that results are looked at and not refusals alone.
USUAL = st.builds(
    lambda folder, number: f"{folder}/{number}.png",
    st.sampled_from(["cat", "dog", CAFES[0]]),
    st.integers(1, 3),
)
FILES = st.dictionaries(
    USUAL | USUAL | USUAL | PATHS,
    st.sampled_from(["png"] * 12 + sorted(CONTENTS)),
    min_size=1,
    max_size=10,
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    files = draw(FILES)
    named = st.sampled_from(sorted(files)) | PATHS
    return Tree(
        files,
        draw(st.dictionaries(PATHS, st.sampled_from([".", "cat", "..", "none"]), max_size=1))
        if draw(st.integers(0, 4)) == 0
        else {},
        draw(st.sampled_from(HEADERS)),
        draw(st.lists(st.tuples(named, st.sampled_from(LABELS)), max_size=8)),
        draw(st.sampled_from(["", "", "", "labels.csv", "labels.json", "elsewhere.csv"])),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def write(tree: Tree, root: Path) -> OwnPictures:
    place = root / "support"
    place.mkdir()
    for name, content in tree.files.items():
        path = place / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENTS[content])
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a file is where this one needs a folder
    for name, target in tree.links.items():
        path = place / name
        if not path.exists() and path.parent.is_dir():
            path.symlink_to(place / target)
    labels = None
    if tree.labels:
        file = (root if tree.labels == "elsewhere.csv" else place) / tree.labels
        mark = next((m for m in (";", "\t") if m in tree.header), ",")
        text = "\n".join([tree.header, *(f'"{name}"{mark}"{label}"' for name, label in tree.rows)])
        if file.suffix == ".json":
            text = "{" + ", ".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in tree.rows) + "}"
        if not file.exists():
            file.write_text(text, encoding="utf-8")
        labels = file if tree.labels == "elsewhere.csv" else None
    query = place if tree.query and not tree.labels else None
    return OwnPictures(place, query, labels, options=PictureOptions(skip_broken=tree.skip_broken))


def visible_pictures(place: Path) -> int:
    """The pictures below a folder, counted without the program's own walk."""
    count = 0
    for path in place.rglob("*"):
        parts = PurePosixPath(path.relative_to(place)).parts
        if path.is_file() and is_image(path.name) and not any(map(is_hidden, parts)):
            count += 1
    return count


def check(data: OwnData, pictures: OwnPictures, linked: bool) -> None:
    """Every picture is learned, or counted with the reason."""
    assert len(data.paths) == len(data.labels) == len(data.images)
    assert len(data.classes) == len(set(data.classes))
    assert all(data.counts.values())
    assert torch.isfinite(data.images).all()
    inside = pictures.support.resolve()
    left_out = data.audit.left_out["support"]
    damaged = [path for path in data.audit.damaged if path.resolve().is_relative_to(inside)]
    named = [*data.paths, *damaged]  # a label file may name what is hidden
    seen = {path for path in named if not any(map(is_hidden, path.parts[len(inside.parts) :]))}
    counted = len(seen) + sum(
        left_out.get(what, 0) for what in ("images in no class folder", "images without a label")
    )
    learned = sum(is_image(path.name) for path in data.paths)
    if not linked and learned == len(data.paths):
        assert counted == visible_pictures(pictures.support)
    text = json.dumps(data.audit.to_json())
    assert text.isprintable()


def outcome(pictures: OwnPictures) -> OwnData | HidraError:
    try:
        return read_own(pictures, Preprocessing((1, 16, 16)), CPU)
    except HidraError as error:
        return error


def try_tree(tree: Tree) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        pictures = write(tree, root)
        result = outcome(pictures)
        if isinstance(result, HidraError):
            event(f"refused: {result.what.replace(str(root), '')[:40]}")
            assert result.code in (2, 3), result
            assert str(result).replace("\n", "").isprintable()
            assert "\nerror: " not in str(result)
        else:
            event("learned")
            check(result, pictures, bool(tree.links))
    finally:
        shutil.rmtree(root)


@given(trees())
@settings(max_examples=150, deadline=None)
def test_trees_are_learned_or_refused(tree: Tree) -> None:
    try_tree(tree)


@pytest.mark.slow
@given(trees())
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_trees_are_learned_or_refused(tree: Tree) -> None:
    try_tree(tree)


@given(trees())
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_command_ends_in_a_documented_code(hidra: Hidra, runs_dir: Path, tree: Tree) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        pictures = write(tree, root)
        flags: list[str | Path] = ["--checkpoint", runs_dir / "hidra", "--out", root / "made"]
        flags += ["--json", *(["--skip-broken"] if tree.skip_broken else [])]
        flags += ["--query", pictures.query] if pictures.query else []
        flags += ["--labels", pictures.labels] if pictures.labels else []
        done = hidra("adapt", "--support", pictures.support, *flags)
        assert done.code in (0, 2, 3), done.err
        assert "Traceback" not in done.err
        assert "fault of hidra" not in done.err
        assert (done.out.replace("\n", "") + done.err.replace("\n", "")).isprintable()
        if done.code == 0:
            asked = hidra("predict", done.json["classifier"], pictures.support, "--json")
            assert asked.code in (0, 3), asked.err
            assert len(asked.json["predictions"]) > 0
    finally:
        shutil.rmtree(root)
