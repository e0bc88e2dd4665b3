"""Names from files reach a terminal escaped, in every command and format."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from hidra_cli.system.console import Console

from ..conftest import Finished, Hidra

# Clears the screen, reverses the line, ends it with a line like ours, and is markup of rich's.
EVIL = "a\x1b[2J\u202e[bold]\nerror: no"
EVIL_BYTES = os.fsdecode(b"caf\xe9.png")


def assert_harmless(done: Finished) -> None:
    for text in (done.out, done.err):
        assert text.replace("\r\n", "").replace("\n", "").isprintable(), text
        assert "\nerror: no" not in text, text
        assert "Traceback" not in text, text
    assert "fault of hidra" not in done.err, done.err


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder of classes whose files and own name are evil; one of them is broken."""
    folder = tmp_path / EVIL
    for kind, name in enumerate(("cat", "dog"), start=1):
        for number in range(2):
            path = folder / name / f"{number}{EVIL}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("L", (20, 20), 255)
            ImageDraw.Draw(picture).regular_polygon((10, 10, 8), kind + 2, 9 * number, None, 0, 2)
            picture.save(path)
        (folder / name / f"{EVIL}.txt").write_text("no picture")
        (folder / name / f"x.{EVIL}").write_text("no picture")
    return folder


@pytest.fixture
def classifier(hidra: Hidra, evil: Path, runs_dir: Path) -> Path:
    run = ["--checkpoint", runs_dir / "hidra"]
    done = hidra("adapt", "--support", evil, "--query", evil, *run, "--out", evil / "made")
    assert done.code == 0, done.err
    assert_harmless(done)
    return evil / "made" / "classifier.safetensors"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--top-k=2"],
        ["--format=csv"],
        ["--format=jsonl"],
        ["--json"],
        ["--out={evil}/x.csv"],
        ["--out={evil}/x.jsonl", "--gallery={evil}/x.png"],
    ],
)
@pytest.mark.parametrize("broken", [False, True])
def test_predictions(
    hidra: Hidra, evil: Path, classifier: Path, flags: list[str], broken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "--format=csv" in flags or "--format=jsonl" in flags:  # rich would colour the tables
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    if broken:
        (evil / "cat" / f"broken{EVIL}.png").write_bytes(b"no picture")
    flags = [flag.format(evil=evil) for flag in flags]
    done = hidra("predict", classifier, evil / "cat", evil / "dog", *flags)
    assert done.code == (3 if broken else 0)
    assert_harmless(done)


def test_a_name_that_is_not_text_is_predicted(
    hidra: Hidra, evil: Path, classifier: Path, tmp_path: Path
) -> None:
    picture = tmp_path / EVIL_BYTES
    shutil.copy(next((evil / "cat").glob("*.png")), picture)
    for flags in ([], ["--format=csv"], ["--format=jsonl"], ["--json"]):
        done = hidra("predict", classifier, picture, *flags)
        assert done.code == 0, done.err
        assert_harmless(done)
    done = hidra("predict", classifier, picture, "--out", tmp_path / "x.csv")
    assert done.code == 0, done.err
    assert b"caf\xe9.png" in (tmp_path / "x.csv").read_bytes()


def commands(evil: Path, classifier: Path, run: Path, cache: Path) -> list[list[str | Path]]:
    labels = evil / f"{EVIL}.csv"
    labels.write_text(f'filename,label\n"{EVIL}.png",cat\n')
    config = evil / f"{EVIL}.toml"
    config.write_text("[inner]\nstep = 3\n")
    place: list[str | Path] = ["--cache-dir", cache]
    other = evil / "broken"
    for name in ("cat", "dog"):
        (other / name).mkdir(parents=True)
        (other / name / f"{EVIL}.png").write_bytes(b"no picture")
    support: list[str | Path] = ["--checkpoint", run, "--out", evil / "other", "--support"]
    return [
        ["adapt", *support, other],
        ["adapt", *support, evil / "none"],
        ["adapt", *support, evil / "cat", "--labels", labels],
        ["adapt", "--checkpoint", evil / "none", "--ways=2"],
        ["adapt", "--base", classifier, "--support", evil, "--out", evil / "made"],
        ["adapt", "--checkpoint", run, "--ways=2", "--queries=2", *place, "--out", evil / "drawn"],
        ["export", classifier, "--format=pt2"],
        ["export", evil / "none"],
        ["export", classifier, "--format=pt2", "--out", evil],
        ["average", run, evil / "none"],
        ["average", run, run, "--out", evil / "x.safetensors"],
        ["evaluate", run, "--episodes=2", "--queries=1", "--ways=2", *place],
        ["evaluate", evil / "none"],
        ["report", run, "--episodes=0", *place],
        ["report", evil / "none"],
        ["prepare", "folder", "--source", evil, "--data-opt=size=8", *place],
        ["prepare", "folder", "--source", other, "--data-opt=size=8", *place],
        ["prepare", "folder", "--source", evil / "none"],
        ["prepare", EVIL],
        ["meta-train", "--config", config],
        ["meta-train", "--dataset=folder", "--source", evil, "--data-opt=size=8", *place],
        ["meta-train", "--resume", evil / "none"],
        ["meta-train", "--start-from", classifier],
        ["meta-train", f"--head={EVIL}"],
        ["meta-train", f"--preset={EVIL}"],
        ["study", config],
        ["study", evil / "none"],
        ["plugins", "show", EVIL],
        ["presets", "show", EVIL],
        ["info", "--json"],
    ]


def test_every_command(
    hidra: Hidra, evil: Path, classifier: Path, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """Where names are part of results, notes and errors; most of these commands are refused."""
    run = tmp_path / EVIL / "runs" / EVIL
    shutil.copytree(runs_dir / "hidra", run)
    for words in commands(evil, classifier, run, cache_dir):
        for more in ([], ["--json"]):
            if "--json" not in words:
                assert_harmless(hidra(*words, *more))


def test_what_is_written_for_programs_is_escaped_for_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    written: list[Any] = []
    for stream in (Screen(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        Console().raw("image,label\r\n\x1b[2J,cat\r\n")
        written.append(stream.getvalue())
    assert written == ["image,label\n\\x1b[2J,cat\n", "image,label\r\n\x1b[2J,cat\r\n"]
