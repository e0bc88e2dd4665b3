"""Hooks of `mkdocs build`: the navigation comes from docs/README.md, and links may leave docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)[^)#\s]+")
TABLE_CODE = re.compile(r"`[^`\n]*\\\|[^`\n]*`")


def on_config(config: MkDocsConfig) -> None:
    """A section for each bold line of the index, with the pages that its list links to."""
    sections: list[dict[str, list[str]]] = []
    seen: set[str] = set()
    for line in (DOCS / "README.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\*\*(.+)\*\*", line):
            sections.append({heading[1]: []})
        elif (link := re.match(r"- \[.+?\]\(([a-z-]+\.md)\)", line)) and link[1] not in seen:
            seen.add(link[1])
            next(iter(sections[-1].values())).append(link[1])
    config.nav = ["README.md", *sections]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add each file outside docs/ that a page links to, under its path in the repository."""
    pages = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    for page in pages:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target = _target(page, link)
            name = _site_name(target)
            if target.is_file() and files.get_file_from_path(name) is None:
                added = File.generated(config, name, abs_src_path=str(target))
                added.inclusion = added.inclusion.NOT_IN_NAV
                files.append(added)
                if target.suffix == ".md":
                    pages.append(target)  # its links are looked at in turn


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Point links at the places that files have in the site, and write | in the code of tables."""
    source = Path(str(page.file.abs_src_path))
    folder = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        return posixpath.relpath(_site_name(_target(source, match[0])), folder or ".")

    # GitHub needs the backslash; Python-Markdown shows it.
    return TABLE_CODE.sub(lambda code: code[0].replace(r"\|", "|"), LINK.sub(moved, markdown))


def _target(page: Path, link: str) -> Path:
    """The linked file; for a folder its README."""
    target = (page.parent / link).resolve()
    return target / "README.md" if target.is_dir() else target


def _site_name(path: Path) -> str:
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
