"""What a message tells people to type exists: every flag of a hint, in the command it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..conftest import Finished, Hidra, WriteImage

COMMANDS = (
    "prepare", "meta-train", "evaluate", "adapt", "predict", "average", "export", "report", "study",
)  # fmt: skip
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SOURCES = [
    path
    for folder in ("hidra_cli", "plugins")
    for path in sorted((Path(__file__).resolve().parents[2] / folder).rglob("*.py"))
]


@pytest.fixture
def flags_of(hidra: Hidra) -> dict[str, set[str]]:
    return {name: set(FLAG.findall(hidra(name, "--help").out)) for name in COMMANDS}


def hints(done: Finished) -> str:
    return "\n".join(re.findall(r"^(?:fix: |     ).*", done.err, re.MULTILINE))


def assert_hints_exist(command: str, done: Finished, flags_of: dict[str, set[str]]) -> None:
    """Each flag of a hint is one of the command named before it, else of the command that ran."""
    for word in re.finditer(r"hidra ([a-z-]+)|(?<![\w-])(--[a-z][a-z-]+)", hints(done)):
        if word[1] in COMMANDS:
            command = word[1]
        elif word[2]:
            assert word[2] in flags_of[command], (command, word[2], done.err)


def test_every_flag_in_the_program_is_one_of_a_command(
    hidra: Hidra, flags_of: dict[str, set[str]]
) -> None:
    known = set.union(*flags_of.values())
    for words in (["plugins", "new"], ["plugins", "list"], ["plugins", "show"], ["info"]):
        known |= set(FLAG.findall(hidra(*words, "--help").out))
    known |= {"--version", "--force-reinstall", "--last-step"}
    fixes = re.compile(r"fix=(.*?)\n\s*\)", re.DOTALL)
    for path in SOURCES:
        for text in fixes.findall(path.read_text()):
            unknown = set(FLAG.findall(text)) - known
            assert not unknown, (path.name, unknown)


@pytest.fixture
def own(tmp_path: Path, write_image: WriteImage) -> Path:
    for name in ("cat", "dog"):
        for number in range(3):
            write_image(tmp_path / "own" / name / f"{number}.png")
    return tmp_path / "own"


def test_hints_of_commands_that_fail(
    hidra: Hidra,
    runs_dir: Path,
    own: Path,
    tmp_path: Path,
    flags_of: dict[str, set[str]],
    write_image: WriteImage,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    broken = write_image(tmp_path / "broken" / "cat" / "1.png").parent
    (broken / "2.png").write_bytes(b"no picture")
    (broken / "3.png").write_bytes(b"no picture")
    write_image(tmp_path / "broken" / "dog" / "1.png")
    run: list[str | Path] = ["--checkpoint", runs_dir / "hidra"]
    empty = tmp_path / "empty"
    nowhere: list[str | Path] = ["--runs-dir", empty, "--cache-dir", empty]
    cases: list[list[str | Path]] = [
        ["evaluate", *nowhere],
        ["evaluate", runs_dir / "hidra", "--out", tmp_path / "file", *nowhere],
        ["meta-train", "--dataset=folder", "--source", own, *nowhere],
        ["meta-train", "--resume=latest", *nowhere],
        ["meta-train", "--start-from", tmp_path / "none", *nowhere],
        ["prepare", "folder", "--source", tmp_path / "none"],
        ["prepare", "folder", "--source", tmp_path / "broken", "--cache-dir", tmp_path / "empty"],
        ["prepare", "folder", "--source", tmp_path / "empty", "--cache-dir", tmp_path / "file"],
        ["adapt", *run, "--support", tmp_path / "none"],
        ["adapt", *run, "--support", tmp_path / "empty"],
        ["adapt", *run, "--support", own],
        ["adapt", *run, "--support", tmp_path / "broken"],
        ["adapt", *run, "--support", own, "--max-pixels=10"],
        ["adapt", *run, "--support", own, "--out", tmp_path / "file"],
        ["adapt", *run, "--dataset=folder", "--source", own, *nowhere],
        ["adapt", *run, "--support", own, "--background=nothing"],
        ["adapt", *run, "--support", own, "--value-range=9"],
        ["predict", tmp_path / "empty", own],
        ["predict", tmp_path / "file", own],
        ["predict", "omniglot-any", own],
        ["predict", tmp_path / "file", own, "--out=labels.txt"],
        ["export", tmp_path / "file", "--out", "x.txt"],
        ["average", runs_dir / "hidra", runs_dir / "hidra", "--out", "/"],
        ["report", tmp_path / "empty"],
        ["study", tmp_path / "none"],
    ]
    for words in cases:
        done = hidra(*words)
        assert 0 < done.code < 6, (words, done.err)
        assert "fault of hidra" not in done.err, (words, done.err)
        assert_hints_exist(str(words[0]), done, flags_of)


@pytest.mark.parametrize("classes", [2, 4])
def test_few_classes_are_told_what_works(
    hidra: Hidra, tmp_path: Path, write_image: WriteImage, classes: int
) -> None:
    for number in range(classes):
        for image in range(4):
            write_image(tmp_path / "own" / f"c{number}" / f"{image}.png")
    data = ["--source", tmp_path / "own", "--data-opt=size=16", "--cache-dir", tmp_path / "cache"]
    train = [
        "meta-train", "--dataset=folder", *data, "--iterations=1", "--queries=1", "--ways=2",
        "--bb-opt=filters=4", "--validation-episodes=2", "--runs-dir", tmp_path / "runs", "-q",
    ]  # fmt: skip
    assert hidra("prepare", "folder", *data).code == 0
    done = hidra(*train)
    assert done.code == 3
    assert "hidra adapt --support DIR" in done.err
    if classes == 4:
        assert "--data-opt fractions=0.5,0.5,0 --test-episodes 0" in done.err
        works = ["--data-opt=fractions=0.5,0.5,0"]
        assert hidra("prepare", "folder", *data, *works).code == 0
        done = hidra(*train, *works, "--test-episodes=0")
        assert done.code == 0, done.err
