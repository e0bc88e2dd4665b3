"""The command lines people copy are ones that parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from .conftest import Hidra

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*/README.md"))


def command_lines(page: Path) -> list[list[str]]:
    """Every `hidra …` line of the code blocks, without comments."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"\s*hidra ", line)]
    return [words[1:] for words in found]


LINES = [(page.name, words) for page in PAGES for words in command_lines(page)]


def test_there_are_command_lines_to_check() -> None:
    assert {name for name, _ in LINES} == {page.name for page in PAGES}


@pytest.mark.parametrize(("page", "words"), LINES, ids=lambda value: " ".join(value)[:60])
def test_every_command_line_is_understood(hidra: Hidra, page: str, words: list[str]) -> None:
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    # Subcommands first: `plugins show` has flags of its own.
    command = words[:2] if words[0] in ("plugins", "presets") else words[:1]
    done = hidra(*command, "--help")
    assert done.code == 0, (page, words)
    offered = set(re.findall(r"--[a-z][a-z-]*", done.out))
    assert flags <= offered, (page, words, flags - offered)


def test_the_settings_of_the_training_lines_are_valid(hidra: Hidra, runs_dir: Path) -> None:
    trainings = [words for _, words in LINES if words[0] == "meta-train"]
    assert trainings
    for words in trainings:
        done = hidra(*words, "--print-config", "--runs-dir", runs_dir)
        assert done.code == 0, (words, done.err)


def test_readme_has_the_two_lines_that_set_up_and_go() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("pip install") == 2
    assert "pip install . && hidra meta-train" in text
    assert "pip install '.[test]' && pytest" in text
    assert "pip install --quiet '.[test]'" in (ROOT / ".ci" / "run").read_text()
