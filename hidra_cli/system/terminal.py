"""The console of a command: rich tables, colours, and progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hidra_cli.system.console import Advance, Console, printable


def _safe(text: str) -> str:
    """Printable, and no markup of rich's."""
    return escape(printable(text))


class Terminal(Console):
    """A console that is drawn by rich; where there is no terminal, its tables are plain text."""

    def __init__(self, *, json_output: bool = False, verbosity: int = 0) -> None:
        super().__init__(json_output=json_output, verbosity=verbosity)
        self._out = RichConsole(file=self._results, highlight=False, emoji=False)
        self._err = RichConsole(stderr=True, highlight=False, emoji=False)
        if not self._out.is_terminal:
            self._out.width = max(self._out.width, 120)

    def _show(self, text: str, kind: Literal["", "detail", "warning"] = "") -> None:
        if kind == "warning":
            self._err.print(f"[yellow]warning:[/yellow] {_safe(text)}", soft_wrap=True)
        else:
            self._err.print(_safe(text), style="dim" if kind == "detail" else None, soft_wrap=True)

    def _show_result(self, text: str) -> None:
        self._out.print(_safe(text), soft_wrap=True)

    def _show_table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int
    ) -> None:
        self._out.print(f"[bold]{_safe(title)}[/bold]", soft_wrap=True)
        table = Table()
        for index, column in enumerate(columns):
            table.add_column(_safe(column), justify="left" if index < left else "right")
        for row in rows:
            table.add_row(*map(_safe, row))
        self._out.print(table)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Advance]:
        """Progress with ETA: a bar on a terminal, a plain line every few seconds elsewhere."""
        if not self._err.is_terminal or self.verbosity < 0:
            with super().progress(what, total) as advance:
                yield advance
            return
        with self._bar() as bar:
            task = bar.add_task(_safe(what), total=total, remark="")

            def update(done: int, remark: str = "", *, total: int | None = None) -> None:
                bar.update(task, completed=done, total=total, remark=_safe(remark))

            yield update

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            TextColumn("{task.fields[remark]}"),
            console=self._err,
            transient=True,
        )
