"""`hidra report` as its user, and a browser, meets it."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from hidra_cli.images.open import open_images
from hidra_cli.reports import collect
from hidra_cli.reports.figures import COLOURS

from ..conftest import TINY_RUN, Hidra

STYLE = (resources.files("hidra_cli.reports") / "html" / "page.css").read_text("utf-8")
VOID = {"meta", "img", "br"}
HOSTILE = "</title><script>alert(1)</script>\x1b[31m\u202e&amp;<img src=x>"


class Page(HTMLParser):
    """A page's elements and texts; unbalanced markup is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(path.read_bytes().decode())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def images(self, kind: str) -> list[dict[str, str]]:
        """Photographs are "png", charts and the swatches of their legends are "svg+xml"."""
        beginning = f"data:image/{kind};base64,"
        return [image for image in self.all("img") if image["src"].startswith(beginning)]


@pytest.fixture
def run(runs_dir: Path, tmp_path: Path) -> Path:
    """A finished run of one's own to damage."""
    return Path(shutil.copytree(runs_dir / "hidra", tmp_path / "runs" / "one"))


def made(hidra: Hidra, cache_dir: Path, *arguments: str | Path) -> tuple[Page, Any]:
    done = hidra("report", *arguments, "--cache-dir", cache_dir, "--json")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    path = Path(done.json["report"])
    assert path.stat().st_size == done.json["bytes"] < 2_000_000
    return Page(path), done.json


def alone_and_silent(page: Page) -> None:
    """Nothing is fetched, nothing runs."""
    tags = {name for name, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "use"}
    for name, attributes in page.elements:
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        assert "src" not in attributes or name == "img"
        assert "href" not in attributes or name == "a"
    assert len(page.all("img")) == len(page.images("png")) + len(page.images("svg+xml"))
    for chart in page.images("svg+xml"):
        content = base64.b64decode(chart["src"].partition(",")[2]).decode()
        assert not re.search(r"<(script|image|foreignObject|!)|\son\w+=|url\((?!#)", content)
        assert set(re.findall(r'href="(.)', content)) <= {"#"}
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    policy = next(m for m in page.all("meta") if "http-equiv" in m)["content"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy


def test_a_finished_run(hidra: Hidra, run: Path, cache_dir: Path) -> None:
    page, told = made(hidra, cache_dir, run)
    assert told["report"] == str(run / "report.html")
    assert told["runs"] == [{"name": "one", "path": str(run), "finished": True, "iterations": 4}]
    assert told["measured"] == told["comparisons"] == told["notes"] == []
    alone_and_silent(page)
    for part in (
        "Run one", "✓ Finished: 4 iterations", "Test accuracy", "Learning curves",
        "A task, image by image", "Settings", "Versions, hardware and data",
        "4 episodes of the test split of glyphs, 1 support and 3 query images per class, "
        "support normalization, episodes of seed 0.", "inner.inner_lr", "conv4",
    ):  # fmt: skip
        assert part in page.text, part
    result = json.loads((run / "result.json").read_text())
    for row in result["test"]:
        assert f"{100 * row['accuracy']:.2f} ± {100 * row['interval']:.2f}" in page.text


def test_it_is_readable_without_eyes_and_without_colours(
    hidra: Hidra, run: Path, cache_dir: Path
) -> None:
    page, _ = made(hidra, cache_dir, run)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(attributes["scope"] in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert {attributes["aria-hidden"] for attributes in page.all("svg")} == {"true"}
    described = [attributes["alt"] for attributes in page.images("svg+xml") if attributes["alt"]]
    assert [alt.partition(":")[0] for alt in described] == [
        "Accuracy over ways. At the end of the run", "Training loss", "Accuracy while training",
    ]  # fmt: skip
    assert "validation: from " in described[2]
    assert len(page.all("figure")) == len(described), "a swatch says nothing beside its label"
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    alts = [attributes["alt"] for attributes in page.images("png")]
    assert len(alts) == 5 * (1 + 7) + 10 * (1 + 7)
    assert all(alts)
    wrong = [alt for alt in alts if "labelled wrong, as" in alt]
    assert wrong
    assert len(wrong) == sum(text.startswith("✗ ") for text in page.texts)


def test_the_pictures_are_the_real_images_the_right_way_round(
    hidra: Hidra, run: Path, cache_dir: Path
) -> None:
    import io

    import numpy as np
    from PIL import Image

    from hidra_cli.reports.solved_tasks import _data_uri
    from hidra_cli.system.console import Console
    from hidra_cli.tasks.episodes import EpisodeSampler
    from hidra_cli.tasks.shape import TaskShape

    from ..conftest import TINY

    page, _ = made(hidra, cache_dir, run)
    images = open_images(TINY, cache_dir, Console(verbosity=-1))
    chosen = EpisodeSampler(images.table("test"), (5,), (1,), 7, 0).indices([0], TaskShape(5, 1))
    stored = images.gather(chosen.support[0, :1]).numpy()[0]

    def pixels(uri: str) -> Any:
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
            return np.asarray(image)

    assert (pixels(page.images("png")[0]["src"]) == stored[0]).all()
    assert (pixels(_data_uri(stored, inverted=True)) == 255 - stored[0]).all()


@pytest.mark.parametrize(
    ("room", "shown"), [(12_000, r"the first [1-6] of 7 queries"), (0, "right, %")]
)
def test_where_pictures_are_large_fewer_are_shown(
    hidra: Hidra,
    run: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    shown: str,
) -> None:
    monkeypatch.setattr(collect, "PICTURE_BYTES", room)
    page, _ = made(hidra, cache_dir, run)
    assert re.search(shown, page.text)
    assert sum(len(attributes["src"]) for attributes in page.images("png")) <= room


def test_the_same_run_gives_the_same_bytes(
    hidra: Hidra, run: Path, cache_dir: Path, tmp_path: Path
) -> None:
    pages = []
    for name in ("first.html", "second.html"):
        made(hidra, cache_dir, run, "--episodes=4", "--ways=2,3", "--out", tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_the_latest_run_and_a_place_of_choice(
    hidra: Hidra, run: Path, cache_dir: Path, tmp_path: Path
) -> None:
    _, told = made(hidra, cache_dir, "--runs-dir", run.parent)
    assert told["report"] == str(run / "report.html")
    _, told = made(hidra, cache_dir, run, "--out", tmp_path)
    assert told["report"] == str(tmp_path / "report.html")
    done = hidra("report", run, "--cache-dir", cache_dir, "--out", tmp_path / "new" / "page.html")
    assert done.code == 0, done.err
    assert f"report: {tmp_path / 'new' / 'page.html'}" in done.out
    assert not list(tmp_path.rglob("*.tmp"))


def test_learned_rates_and_another_loss_are_told(
    hidra: Hidra, cache_dir: Path, tmp_path: Path
) -> None:
    flags = ["--ways=2-3", "--rates=learned", "--loss=sigmoid", "--inner-lr=0.1", "--name=mine"]
    place = ["--cache-dir", cache_dir, "--runs-dir", tmp_path, "-q"]
    assert hidra("meta-train", *TINY_RUN, *flags, *place).code == 0
    made(hidra, cache_dir, tmp_path / "mine", "--episodes=4", "--ways=2")
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "rates learned from 0.1" in page
    assert "sigmoid" in page


def test_an_unfinished_run_says_so_and_is_measured_now(
    hidra: Hidra, run: Path, cache_dir: Path
) -> None:
    (run / "result.json").unlink()
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:3]))
    page, told = made(hidra, cache_dir, run, "--episodes=4")
    assert told["runs"][0]["finished"] is False
    assert "Unfinished: 2 of 4 iterations, no result" in page.text
    assert [row["ways"] for row in told["measured"]] == [2, 5, 10]
    assert "Measured for this report" in page.text
    page, told = made(hidra, cache_dir, run, "--episodes=0")
    assert told["measured"] == []
    assert "Test accuracy" not in page.text


def test_a_run_that_was_made_longer_is_unfinished(hidra: Hidra, run: Path, cache_dir: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("iterations = 4", "iterations = 9"))
    page, _ = made(hidra, cache_dir, run)
    assert "Unfinished: 4 of 9 iterations, its result is of fewer" in page.text


def test_several_runs_are_compared_on_the_same_episodes(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path
) -> None:
    runs = [runs_dir / name for name in ("hidra", "zero", "maml3")]
    out = f"--out={tmp_path / 'page.html'}"
    page, told = made(hidra, cache_dir, *runs, "--episodes=6", "--ways=2,3", out)
    alone_and_silent(page)
    accuracies = {(r["model"], r["ways"]): r["accuracy"] for r in told["measured"]}
    assert set(accuracies) == {(n, w) for n in ("hidra", "zero") for w in (2, 3)} | {("maml3", 3)}
    for row in told["comparisons"]:
        assert row["minus"] == "hidra"
        expected = accuracies[row["model"], row["ways"]] - accuracies["hidra", row["ways"]]
        assert row["difference"] == pytest.approx(expected)
    assert "3 runs compared" in page.text
    assert "Difference to hidra" in page.text
    assert "≠ model.head" in page.text
    assert "≠ inner.steps" not in page.text
    (note,) = told["notes"]
    assert note.startswith("maml3: measured at 3 ways")


def test_a_comparison_does_not_replace_a_report_and_equal_names_are_told_apart(
    hidra: Hidra, run: Path, cache_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "elsewhere" / "one"))
    made(hidra, cache_dir, run)
    before = (run / "report.html").read_bytes()
    _, told = made(hidra, cache_dir, run, other, "--episodes=2")
    assert [r["name"] for r in told["runs"]] == ["one #1", "one #2"]
    assert told["report"] == str(run / "comparison.html")
    assert (run / "report.html").read_bytes() == before
    assert told["comparisons"][0]["difference"] == 0


def test_evaluations_of_the_run_are_shown(hidra: Hidra, run: Path, cache_dir: Path) -> None:
    done = hidra(
        "evaluate", run, "--ways=2,3", "--queries=2", "--episodes=6", "--pixels", "--seed=7",
        "--cache-dir", cache_dir,
    )  # fmt: skip
    assert done.code == 0, done.err
    broken = run / "evaluations" / "0-broken" / "result.json"
    broken.parent.mkdir()
    broken.write_text("{")
    page, told = made(hidra, cache_dir, run)
    assert "By hidra evaluate" in page.text
    assert "nearest neighbour on pixels" in page.text
    assert "1 support and 2 query images per class" in page.text
    assert "episodes of seed 7" in page.text
    assert any("0-broken" in note for note in told["notes"])


@pytest.mark.parametrize("command", [[HOSTILE, "\ud800", 7], [HOSTILE, "x" * 5000]])
def test_hostile_names_stay_text(
    hidra: Hidra, run: Path, cache_dir: Path, command: list[str | int]
) -> None:
    run = run.rename(run.with_name(HOSTILE.replace("/", "") + "x" * 60))
    for name in ("result.json", "environment.json"):
        content = json.loads((run / name).read_text())
        facts = content.get("environment", content)
        for entry in content.get("test", []):
            entry["model"] = HOSTILE
        facts["command"] = command
        facts["packages"] = {HOSTILE: HOSTILE}
        facts["dataset"] |= {"title": HOSTILE, "homepage": "javascript:alert(1)"}
        (run / name).write_text(json.dumps(content))
    page, told = made(hidra, cache_dir, run)
    alone_and_silent(page)
    assert ("left out: command.1" in " ".join(told["notes"])) == (7 in command)
    assert len(page.all("title")) == 1
    assert "x" not in {attributes.get("src") for attributes in page.all("img")}
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert "\\x1b[31m" in page.text
    assert "javascript:" not in str(page.all("a"))


def test_hostile_class_names_stay_text(
    hidra: Hidra, run: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    opened = open_images

    def hostile(*arguments: Any) -> Any:
        images = opened(*arguments)
        return replace(images, names=tuple(f"{name} {HOSTILE}" for name in images.names))

    monkeypatch.setattr(collect, "open_images", hostile)
    page, told = made(hidra, cache_dir, run)
    alone_and_silent(page)
    assert told["notes"] == []
    assert sum("<script>alert(1)</script>" in text for text in page.texts) == 2 * (5 + 10)
    assert "\x1b" not in page.text


DAMAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "nested": b"[" * 100_000,
    "list": b"[1, 2]",
    "kinds": json.dumps(
        {
            "iterations": "4",
            "test": [{"model": 1, "ways": -2}, 7, {"ways": 1e999, "accuracy": [0.5]}],
            "best_validation": [1],
            "environment": 3,
            "packages": [1],
            "command": "x",
            "dataset": 5,
            "plugins": {"head": 4},
            "resumed": {"a": 1},
            "cores": True,
            "started": 12,
        }
    ).encode(),
    "numbers": b'{"iterations": ' + b"9" * 4000 + b', "test": {"a": NaN}}',
    "rows": b"iteration,loss,accuracy,validation_accuracy\n1,nan,2\n,,\n99999999999999,1\nx,1\n"
    b"2,1e999,0.5,-1\n3,0.5,0.25,0.5,7,7\n\x00,\xff\n",
}


@pytest.mark.parametrize("file", ["metrics.csv", "result.json", "environment.json", "config.toml"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_left_out_with_a_note(
    hidra: Hidra, run: Path, cache_dir: Path, file: str, damage: str
) -> None:
    (run / file).write_bytes(DAMAGE[damage])
    page, told = made(hidra, cache_dir, run, "--episodes=0")
    alone_and_silent(page)
    assert told["notes"] or (file == "environment.json" and damage in ("kinds", "numbers"))
    assert "Run one" in page.text
    for note in told["notes"]:
        assert note in page.text


@pytest.mark.parametrize("kind", ["missing", "damaged", "pickle"])
def test_a_run_without_a_usable_checkpoint_still_has_its_numbers(
    hidra: Hidra, run: Path, cache_dir: Path, kind: str
) -> None:
    for path in (run / "checkpoints").iterdir():
        if kind == "missing":
            path.unlink()
        else:
            path.write_bytes(b"\x80\x02" if kind == "pickle" else path.read_bytes()[:-9])
    page, told = made(hidra, cache_dir, run)
    assert "no task was solved" in told["notes"][0]
    assert page.images("png") == []
    assert "Learning curves" in page.text


def test_what_is_refused(hidra: Hidra, run: Path, cache_dir: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, code, told in (
        ([empty], 3, "is not a run"),
        ([tmp_path / "none"], 3, "is not a run"),
        ([tmp_path / ("x" * 999)], 3, "is not a run"),
        ([run / "checkpoints" / "best.safetensors"], 3, "is not a run"),
        (["--runs-dir", empty], 3, "there is no run"),
        ([run, "--ways=1"], 2, "at least 2 ways"),
        ([run, "--ways=x"], 2, "--ways x cannot be used"),
        ([run, "--episodes=1"], 2, "--episodes 1 cannot be used"),
        ([run] * 13 , 2, "too many"),
        ([run, "--device=cuda:99"], 5, "cuda:99"),
        ([run, "--out", run / "config.toml" / "page.html"], 1, "could not be written"),
    ):  # fmt: skip
        done = hidra("report", *arguments, "--cache-dir", cache_dir)
        assert done.code == code, (arguments, done.err)
        assert told in done.err
        assert "Traceback" not in done.err


def rgb(text: str) -> tuple[float, ...]:
    return tuple(int(text[i : i + 2], 16) / 255 for i in (0, 2, 4))


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def turned(colour: tuple[float, ...]) -> tuple[float, ...]:
    """A colour of a figure in the dark: `invert(1) hue-rotate(180deg)` of CSS."""
    red, green, blue = (1 - c for c in colour)
    grey = 2 * (0.213 * red + 0.715 * green + 0.072 * blue)
    return tuple(min(max(grey - c, 0), 1) for c in (red, green, blue))


def test_texts_and_lines_stand_out_in_light_and_dark() -> None:
    found = re.findall(r"--(\w+): #([0-9a-f]{6});", STYLE)
    half = len(found) // 2
    for theme in (dict(found[:half]), dict(found[half:])):
        palette = {name: rgb(value) for name, value in theme.items()}
        for name in ("ink", "soft", "right", "wrong", "link"):
            assert contrast(palette[name], palette["paper"]) >= 4.5, name
        assert contrast(palette["ink"], palette["mark"]) >= 4.5
        for hue in ("hit", "miss"):  # the deepest cell of a confusion table
            pairs = zip(palette[hue], palette["paper"], strict=True)
            assert contrast(palette["ink"], tuple(0.38 * a + 0.62 * b for a, b in pairs)) >= 4.5
    light, dark = (rgb(value) for name, value in found if name == "paper")
    for line in COLOURS:
        assert contrast(rgb(line[1:]), light) >= 4.5, line
        assert contrast(turned(rgb(line[1:])), dark) >= 4.5, line


class Browser:
    """Headless Chromium, spoken to over a pipe (Chrome DevTools Protocol)."""

    def __init__(self, program: str, home: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = shlex.split(
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync "
            "--remote-debugging-pipe"
        )
        # It reads from descriptor 3 and writes to 4; ours are out of their way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        script = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
        script += "os.execvp(sys.argv[3], sys.argv[3:])"
        started = [sys.executable, "-c", script, *map(str, ends), program, *flags]
        self.process = subprocess.Popen(
            [*started, f"--user-data-dir={home}", "about:blank"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (*ends, to_browser, from_browser):
            os.close(end)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[Any] = []
        targets = self("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def _read(self) -> Any:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 20)
            assert more, "the browser went away"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def __call__(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path) -> None:
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def show(self, width: int, scheme: str, media: str = "screen") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self("Emulation.setEmulatedMedia", media=media, features=[feature])

    def value(self, expression: str) -> Any:
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser("Browser.close")
    browser.process.wait(20)


A4_WITHIN_MARGINS = 673  # CSS pixels
CHART_FILTER = "getComputedStyle(document.querySelector('.chart')).filter"


def overflowing(browser: Browser, width: int, *, boxes_scroll: bool) -> Any:
    """Elements that reach over the right edge, and are in no box that scrolls."""
    within = "!element.closest('.scroll') &&" if boxes_scroll else ""
    return browser.value(
        f"""[...document.querySelectorAll('body *')].filter(element => {within}
        element.getBoundingClientRect().right > {width} + 0.5
        ).map(element => element.outerHTML.slice(0, 80))"""
    )


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_browser_shows_it_wide_narrow_light_dark_and_printed(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path, browser: Browser, several: bool
) -> None:
    page = tmp_path / "page.html"
    runs = [runs_dir / name for name in ("hidra", "zero", "maml3")[: 3 if several else 1]]
    long = [Path(shutil.copytree(run, tmp_path / (run.name + "x" * 90))) for run in runs]
    made(hidra, cache_dir, *long, "--episodes=2", "--ways=2,3", "--out", page)
    browser.open(page)
    seen = set()
    for width in (1200, 360):
        for scheme in ("light", "dark"):
            browser.show(width, scheme)
            browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert overflowing(browser, width, boxes_scroll=True) == []
            seen.add(browser.value("getComputedStyle(document.documentElement).backgroundColor"))
            filters = {"light": "none", "dark": "invert(1) hue-rotate(180deg)"}
            assert browser.value(CHART_FILTER) == filters[scheme]
            assert base64.b64decode(browser("Page.captureScreenshot")["data"])[:4] == b"\x89PNG"
    assert len(seen) == 2
    # The style came through the policy, and the pictures are there.
    rendering = "getComputedStyle(document.querySelector('.queries img')).imageRendering"
    assert browser.value(rendering) == "pixelated"
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth)") is True
    browser.show(A4_WITHIN_MARGINS, "dark", "print")
    assert overflowing(browser, A4_WITHIN_MARGINS, boxes_scroll=False) == []
    paper = browser.value("getComputedStyle(document.documentElement).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    assert browser.value(CHART_FILTER) == "none"
    browser.value("document.querySelectorAll('details').forEach(d => d.open = false)")
    printed = base64.b64decode(browser("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
    complaints = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
    assert [event for event in browser.events if event.get("method") in complaints] == []
    fetched = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in fetched} <= {"file", "data"}
