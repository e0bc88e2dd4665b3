"""The site that MkDocs builds from docs/: every link and anchor leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r'(?:<script[^>]* src|<link[^>]* href|<img[^>]* src)="https?://[^"]*"')


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(config),
        "-d",
        str(out),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=quiet)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_has_every_page_and_the_cards_of_models(site: Path) -> None:
    names = [page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "README"]
    names += ["SECURITY", "data/models/omniglot-any"]
    assert all((site / name / "index.html").is_file() for name in names)


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not OUTSIDE.findall(page.read_text(encoding="utf-8")), page


def test_lists_and_tables_are_read_as_such(site: Path) -> None:
    """Python-Markdown wants an empty line before a list or a table; GitHub does not."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"<p>(?:(?!</p>).)*\n(?:- |\d\. |\|)", text, re.DOTALL), page
        assert not re.search(r"<code>[^<]*\\\|", text), page


def test_a_link_to_a_missing_heading_fails_the_build(site: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("# One\n\n[lost](#nowhere)\n")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = re.sub(r"(?m)^hooks: .*$", "", config)
    (tmp_path / "mkdocs.yml").write_text(config)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere" in done.stderr
