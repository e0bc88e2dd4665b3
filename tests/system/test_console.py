"""What a command says of its progress where there is no terminal."""

from __future__ import annotations

import pytest

from hidra_cli.system.console import Console


def test_the_time_left_follows_from_what_was_done_since_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: clock["now"])
    with Console().progress("work", 30) as advance:
        for now, done, remark in [(0, 10, ""), (100, 10, "a"), (200, 20, "b"), (300, 30, "")]:
            clock["now"] = now
            advance(done, remark)
    assert capsys.readouterr().err.splitlines() == [
        "work: 10/30, a",  # taken up again: nothing is done yet, so nothing is foretold
        "work: 20/30, 200 s left, b",
        "work: 30/30, 0 s left",
    ]
