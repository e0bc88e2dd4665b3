"""HTML and SVG built so that text from files cannot become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hidra_cli.system.console import printable

_VOID = {"meta", "img", "br"}


class Html(str):
    """Markup, safe as it is. Any other text is escaped where it enters a page."""

    __slots__ = ()


def text(value: str) -> Html:
    """Text as markup that shows exactly it, and control characters as what they are."""
    return value if isinstance(value, Html) else Html(escape(printable(value)))


def join(parts: Iterable[str]) -> Html:
    return Html("".join(map(text, parts)))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Html:
    """An element. `class_` is class, `aria_label` is aria-label; None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    marked: Iterable[int] = (),
) -> Html:
    """A table whose first column heads its rows; `left` columns are text, the others numbers.

    On a narrow screen the table scrolls by itself, and the page does not.
    """

    def cell(index: int, value: str) -> Html:
        kind = None if index < left else "number"
        if index == 0:
            return tag("th", value, scope="row", class_=kind)
        return tag("td", value, class_=kind)

    heads = [
        tag("th", column, scope="col", class_=None if index < left else "number")
        for index, column in enumerate(columns)
    ]
    chosen = set(marked)
    body = [
        tag(
            "tr",
            *(cell(i, value) for i, value in enumerate(row)),
            class_="marked" if number in chosen else None,
        )
        for number, row in enumerate(rows)
    ]
    return scrolling(
        caption,
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", *heads)),
            tag("tbody", *body),
        ),
    )


def scrolling(label: str, content: Html) -> Html:
    """A box that scrolls sideways, by keyboard too."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def listed(items: Iterable[str], class_: str | None = None) -> Html:
    return tag("ul", *(tag("li", item) for item in items), class_=class_)


def details(summary: str, *content: str) -> Html:
    return tag("details", tag("summary", summary), *content)


def section(title: str, *content: Html) -> list[Html]:
    return [tag("section", tag("h2", title), *content)] if content else []


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
