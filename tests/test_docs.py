"""The command lines people copy parse, or run; generated pages are up to date."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from hidra_cli.runs.records import RunResult
from hidra_cli.settings.layers import resolve

from .conftest import Hidra

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*/README.md"))
INDEX = ROOT / "docs" / "README.md"  # has links alone
ARCHITECTURE = ROOT / "docs" / "architecture.md"
# Of the pages whose lines are run, those that are not, and why.
ONLY_PARSED = {
    "hidra meta-train --preset cifar-fs-any": "needs CIFAR-100, and hours",
    "hidra meta-train --dataset folder --source photos --data-opt size=84 --ways 2-5 "
    "--backbone torchvision --bb-opt weights=DEFAULT --inner-lr 0.01": "downloads weights",
    "hidra export adapted/symbols-4w/classifier.safetensors --format onnx": "needs the extra onnx; "
    "tests/commands/test_export.py runs it",
}
SMALL = {
    "DATASET_OPTIONS": "alphabets=3,size=16",
    "MODEL_BACKBONE_OPTIONS": "filters=4",
    "TASKS_WAYS": "2-5",
    "OUTER_ITERATIONS": "3",
    "OUTER_VALIDATION_EPISODES": "2",
    "OUTER_TEST_EPISODES": "2",
}


def command_lines(page: Path) -> list[list[str]]:
    """Every `hidra …` line of the code blocks, without comments."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"\s*hidra ", line)]
    return [words[1:] for words in found]


LINES = [(page.name, words) for page in PAGES for words in command_lines(page)]


def test_there_are_command_lines_to_check() -> None:
    without = {page for page in PAGES if not command_lines(page)}
    assert without == {INDEX, ARCHITECTURE}


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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and settings with which a training takes a second."""
    for key, value in SMALL.items():
        monkeypatch.setenv(f"HIDRA_{key}", value)
    monkeypatch.setenv("HIDRA_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run_lines(hidra: Hidra, page: str) -> list[str]:
    """Run the command lines of a page in order; what each printed."""
    told = []
    for words in command_lines(ROOT / "docs" / page):
        if shlex.join(["hidra", *words]) not in ONLY_PARSED:
            done = hidra(*words)
            assert done.code == 0, (words, done.err)
            told.append(done.out)
    return told


def test_lines_that_are_only_parsed_are_lines_of_the_pages() -> None:
    pages = ("quick-start.md", "own-pictures.md")
    lines = [words for page in pages for words in command_lines(ROOT / "docs" / page)]
    assert set(ONLY_PARSED) <= {shlex.join(["hidra", *words]) for words in lines}


def test_the_quick_start_runs_and_leaves_the_files_it_names(hidra: Hidra, small: Path) -> None:
    run_lines(hidra, "quick-start.md")
    (run,) = (small / "runs").iterdir()
    assert re.fullmatch(r"\d+-\d+-glyphs-hidra-2-5w1s", run.name)
    text = (ROOT / "docs" / "quick-start.md").read_text()
    named = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert {"config.toml", "result.json", "checkpoints/best.safetensors"} <= set(named)
    named += ["adapted/glyphs-7w5s-seed0-episode0/classifier.safetensors", "report.html"]
    assert all(Path(name).name in text for name in named)
    assert all((run / name).is_file() for name in named)
    (tested,) = (run / "evaluations").iterdir()
    assert {path.name for path in tested.iterdir()} == {
        "result.json", "episodes.csv", "accuracy.png",
    }  # fmt: skip


def draw(path: Path, kind: int, number: int, colour: tuple[int, int, int] = (0, 0, 0)) -> None:
    """A simple drawing: a polygon of `kind` + 2 corners, somewhat moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (60, 60), (255, 255, 255))
    circle = (30 + number % 5, 30 - number % 3, 20)
    ImageDraw.Draw(picture).regular_polygon(circle, kind + 2, 9 * number, None, colour, 4)
    picture.save(path)


def folders_of_pictures(place: Path) -> None:
    """The folders that the page on own pictures names."""
    classes = ("arrow", "circle", "cross", "square")
    labels = ["filename,label"]
    for kind, name in enumerate(classes, start=1):
        for number in range(4):
            draw(place / "symbols" / name / f"{number}.png", kind, number)
            draw(place / "symbols-test" / name / f"{number}.png", kind, number + 4)
            draw(place / "scans" / f"{name}{number}.png", kind, number)
            labels.append(f"{name}{number}.png,{name}")
            draw(place / "more-symbols" / "star" / f"{number}.png", 7, number)
            draw(place / "birds" / ("owl", "tit")[kind % 2] / f"{kind}{number}.png", kind, number)
        draw(place / "new" / f"{kind}.png", kind, 9)
    (place / "scans" / "labels.csv").write_text("\n".join(labels))
    pairs = (line.split(",") for line in labels[1:])
    rows = ", ".join(f'"{name}": "{label}"' for name, label in pairs)
    (place / "scans-labels.json").write_text("{" + rows + "}")
    for kind in range(1, 16):
        for number in range(6):
            draw(
                place / "photos" / f"kind{kind}" / f"{number}.jpg", kind, number, (kind * 16, 9, 90)
            )


def test_the_page_on_own_pictures_runs_and_the_shipped_model_serves(
    hidra: Hidra, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders_of_pictures(small)
    told = run_lines(hidra, "own-pictures.md")
    assert "Adapting omniglot-any to 4 classes" in told[0]
    assert "of them right" in told[0]
    assert "Confusion of queries (rows: true class)" in told[0]
    assert "Confusion of held-out support pictures" in told[1]
    for made in ("adapted/symbols-4w", "symbols-5", "symbols-only-weights", "symbols-or-none"):
        assert (small / made / "classifier.safetensors").is_file()
    assert (small / "labels.jsonl").read_text().count("\n") == len(list((small / "new").iterdir()))
    base = small / "symbols-only-weights" / "classifier.safetensors"
    refused = hidra("adapt", "--base", base, "--support", "more-symbols")
    assert refused.code != 0, "what was forgotten cannot grow"


def test_the_page_on_python_runs(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders_of_pictures(small)
    text = (ROOT / "docs" / "python.md").read_text()
    names: dict[str, Any] = {}
    for program in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(program, "python.md", "exec"), names)
        if program.startswith("from pathlib"):
            assert capsys.readouterr() == ("", ""), "jobs are silent"
    printed = capsys.readouterr().out
    assert re.search(r"^ {2}2 ways: \d+\.\d ± \d+\.\d %$", printed, re.MULTILINE)
    assert "the head 'maml' serves only the number of ways it was trained for" in printed
    assert {row.image.name for row in names["labels"].rows} == {"1.png", "2.png", "3.png", "4.png"}
    assert names["symbols"].path.is_file()
    assert names["run"].result.iterations == 20
    assert RunResult.model_validate_json(names["run"].directory.result.read_bytes()) == (
        names["run"].result
    )


def test_the_symmetry_theorem_is_seen_as_the_page_says(hidra: Hidra, small: Path) -> None:
    text = (ROOT / "docs" / "variable-ways.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "variable-ways.md", "exec"), {})
    numbers = [float(line.split()[-1]) for line in printed.getvalue().splitlines()]
    # Of softmax, then of sigmoid: first gradients from a random and a zero master; difference.
    assert len(numbers) == 6
    assert max(numbers[:3]) < 1e-14
    assert min(numbers[3], numbers[5]) > 1e-3

    run_lines(hidra, "variable-ways.md")
    losses = {run.name: column(run / "metrics.csv", "loss") for run in (small / "runs").iterdir()}
    assert len(losses["master"]) == 3
    assert losses["master"] == pytest.approx(losses["zero"], rel=1e-3)
    assert losses["sigmoid-master"] != pytest.approx(losses["sigmoid-zero"], rel=1e-2)


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_the_generated_pages_are_up_to_date() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name, content in written["pages"]().items():
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page == content, f"docs/{name} is stale; renew it: {written['HOW']}"


def test_every_setting_and_command_is_in_the_generated_pages() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text()
    for key, _, _ in resolve({}, environ={}).rows():
        assert f"`HIDRA_{key.replace('.', '_').upper()}`" in settings
    commands = (ROOT / "docs" / "commands.md").read_text()
    for words in {" ".join(w[:2] if w[0] in ("plugins", "presets") else w[:1]) for _, w in LINES}:
        assert f"## hidra {words}\n" in commands


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), (page.name, link)


def test_the_index_names_every_page() -> None:
    index = INDEX.read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page == INDEX or f"({page.name})" in index


GLOSSARY = "quick-start.md#the-words-in-this-table"
INTERVAL = re.compile(r"\d+\.\d+ ± \d+\.\d+")
QUICK_START = ROOT / "docs" / "quick-start.md"
RESULTS = ROOT / "docs" / "results.md"
CARD = ROOT / "data" / "models" / "omniglot-any.md"


def intervals(text: str) -> set[str]:
    """Every `90.90 ± 0.67` of a text."""
    return set(INTERVAL.findall(text))


def test_every_page_links_to_the_glossary() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page == QUICK_START or f"]({GLOSSARY})" in page.read_text(), page.name


def test_the_table_of_the_default_run_stands_on_one_page() -> None:
    rows = re.findall(r"^│ \d+ +│ (.+?) │", QUICK_START.read_text(), re.MULTILINE)
    assert len(rows) == 4
    for page in PAGES:
        if page.name not in ("quick-start.md", "README.md"):
            assert not set(rows) & intervals(page.read_text()), page.name


def test_the_readme_quotes_numbers_of_other_pages() -> None:
    sources = [*(ROOT / "docs").glob("*.md"), *(ROOT / "data" / "models").glob("*.md")]
    known = set().union(*(intervals(page.read_text()) for page in sources))
    assert intervals((ROOT / "README.md").read_text()) <= known


def test_the_numbers_of_omniglot_any_are_those_of_its_record() -> None:
    record = json.loads((ROOT / "docs" / "results" / "omniglot-any.json").read_text())
    measured = {
        f"{100 * row['accuracy']:.2f} ± {100 * row['interval']:.2f}"
        for evaluation in record["evaluations"]
        for row in evaluation["results"]
    }
    assert intervals(CARD.read_text()) == measured
    page = RESULTS.read_text()
    (row,) = re.findall(r"^\| `omniglot-any` .*$", page, re.MULTILINE)
    assert len(intervals(row)) == 5
    assert intervals(row) <= measured
    assert measured <= intervals(page)


def test_pages_on_photos_any_say_what_its_network_has_seen() -> None:
    pages = [*PAGES, *(ROOT / "data" / "models").glob("*.md")]
    pages.remove(ROOT / "docs" / "commands.md")  # quotes no accuracy
    for page in pages:
        text = page.read_text()
        assert "photos-any" not in text or "ImageNet" in text, page.name
