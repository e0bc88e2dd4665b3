"""What a console prints where there is no terminal, with rich and without."""

from __future__ import annotations

import json

import pytest

from hidra_cli.system.console import Console, Silence
from hidra_cli.system.terminal import Terminal

ESCAPE = "\x1b[31mred"


@pytest.mark.parametrize("kind", [Console, Terminal])
def test_the_time_left_follows_from_what_was_done_since_the_start(
    kind: type[Console], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: clock["now"])
    with kind().progress("work", 30) as advance:
        for now, done, remark in [(0, 10, ""), (100, 10, "a"), (200, 20, "b"), (300, 30, "")]:
            clock["now"] = now
            advance(done, remark)
    assert capsys.readouterr().err.splitlines() == [
        "work: 10/30, a",  # taken up again: nothing is done yet, so nothing is foretold
        "work: 20/30, 200 s left, b",
        "work: 30/30, 0 s left",
    ]


def speak(console: Console) -> None:
    console.note(f"note {ESCAPE}")
    console.detail("detail")
    console.warn("careful [bold]")
    console.print("result")
    console.table("Title", ["name", "value"], [["a", "1"], [ESCAPE, "22"]])
    console.result({"value": 1})


@pytest.mark.parametrize("kind", [Console, Terminal])
def test_results_go_to_stdout_and_the_rest_to_stderr(
    kind: type[Console], capsys: pytest.CaptureFixture[str]
) -> None:
    speak(kind())
    out, err = capsys.readouterr()
    assert err.splitlines() == ["note \\x1b[31mred", "warning: careful [bold]"]
    assert out.splitlines()[:2] == ["result", "Title"]
    assert [text in out for text in ("name", "value", "22", "\\x1b[31mred", "\x1b")] == [
        *[True] * 4,
        False,
    ]
    speak(kind(verbosity=1))
    assert "detail" in capsys.readouterr().err
    speak(kind(verbosity=-1, json_output=True))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"value": 1}
    assert err.splitlines() == ["warning: careful [bold]"], "a warning is never left out"


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    speak(Silence())
    assert capsys.readouterr() == ("", "")


def test_columns_of_a_plain_table_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table("T", ["name", "n", "%"], [["a", "1", "99.5"], ["long name", "200", "5"]])
    assert capsys.readouterr().out == (
        "T\nname         n     %\na            1  99.5\nlong name  200     5\n"
    )
