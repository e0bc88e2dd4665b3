"""What the Tab key offers: names from packaging metadata and folders; nothing heavy is imported.

Typer's protocol: the shell runs `hidra` with `_HIDRA_COMPLETE` set, and the words in variables.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from hidra_cli.settings.setting import Completion, Setting

VARIABLE = "_HIDRA_COMPLETE"

Offer = tuple[str, str]
"""A value, and what it is, for shells that show that."""


def heads() -> list[Offer]:
    return _plugins("head")


def backbones() -> list[Offer]:
    return _plugins("backbone")


def datasets() -> list[Offer]:
    return _plugins("dataset")


def plugins_of_the_kind(ctx: typer.Context) -> list[Offer]:
    """Plugins of the kind that was typed before."""
    return _plugins(str(ctx.params.get("kind")))


def presets() -> list[Offer]:
    from hidra_cli.settings.presets import preset_names, preset_text, summary_of

    return [(name, summary_of(preset_text(name))) for name in preset_names()]


def runs_to_resume(ctx: typer.Context) -> list[Offer]:
    """Names of runs, and latest."""
    names = [path.name for path in _runs(ctx)]
    return [("latest", "the run that was last at work")] * bool(names) + [(n, "") for n in names]


def run_paths(ctx: typer.Context) -> list[Offer]:
    """Paths of run directories."""
    return [(str(path), "") for path in _runs(ctx)]


def of_setting(setting: Setting) -> Callable[..., list[Offer]] | None:
    """What offers the values of a setting; None where any text may be one."""
    if setting.about.completion is not None:
        return _OF[setting.about.completion]
    offers = [(choice, "") for choice in setting.choices]
    return (lambda: offers) if offers else None


_OF: dict[Completion, Callable[..., list[Offer]]] = {
    "datasets": datasets,
    "backbones": backbones,
    "heads": heads,
    "runs": run_paths,
}


def _plugins(kind: str) -> list[Offer]:
    """Names; where two distributions share one, with the distribution."""
    from hidra_cli.api.registry import KINDS, plugins

    offered = [plugin for known in KINDS if known == kind for plugin in plugins(known)]
    shared = Counter(plugin.name for plugin in offered)
    return [
        (
            p.name if shared[p.name] == 1 else f"{p.distribution}:{p.name}",
            f"{p.distribution} {p.version}",
        )
        for p in offered
    ]


def _runs(ctx: typer.Context) -> list[Path]:
    from hidra_cli.runs.locate import runs_dir_of

    typed = ctx.params.get("runs_dir")
    place = runs_dir_of(Path(typed) if typed else None)
    runs = [path.parent for path in place.glob("*/config.toml")]
    return sorted(path for path in runs if not path.name.startswith("."))


def complete(app: Callable[[], object]) -> NoReturn:
    """Answer the shell. Faults are silent: a message would land in the line that is being typed."""
    answer, code, typed = io.StringIO(), 1, ""
    with (
        contextlib.suppress(Exception),
        contextlib.redirect_stdout(answer),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        if os.environ[VARIABLE] == "complete_bash":
            typed = _join_words()
        try:
            app()
        except SystemExit as ended:  # fish asks by the exit code
            code = ended.code if isinstance(ended.code, int) else 1
    lines = answer.getvalue().splitlines()
    sys.stdout.write("".join(f"{line.removeprefix(typed)}\n" for line in lines))
    sys.exit(code)


def _join_words() -> str:
    """Put together what bash took apart at `=`.

    Returns:
        The part of the word being typed that bash leaves as it is.
    """
    words = os.environ["COMP_WORDS"].split("\n")
    last = int(os.environ["COMP_CWORD"])
    words = [*words[: last + 1], *[""] * (last + 1 - len(words))]
    joined: list[str] = []
    glue = False
    for word in words:
        parts = bool(re.fullmatch("=+", word)) and bool(joined)
        if parts or glue:
            joined[-1] += word
        else:
            joined.append(word)
        glue = parts
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(len(joined) - 1)
    kept = joined[-1] if glue else joined[-1].removesuffix(words[-1])
    return re.sub(r"^--[^=]*=", "", kept)  # --head=hi is answered with hidra, without the flag
