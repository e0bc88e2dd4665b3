"""A setting is declared in one line; what follows from it agrees with the models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import hidra_cli
from hidra_cli.settings.declarations import SECTIONS, SETTINGS
from hidra_cli.settings.layers import resolve
from hidra_cli.settings.schema import Settings
from hidra_cli.settings.setting import Setting

from ..conftest import Hidra

ROOT = Path(__file__).resolve().parents[2]
PAGES = "import runpy; print(runpy.run_path('{}')['pages']()['settings.md'])"


@pytest.fixture
def wide_help(hidra: Hidra, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Flag → its line in the help of meta-train, on a terminal so wide that none is wrapped."""
    monkeypatch.setenv("COLUMNS", "300")
    lines = hidra("meta-train", "--help").out.splitlines()
    return {line.split()[1]: line for line in lines if line.startswith("│ --")}


def test_every_setting_has_a_flag_and_its_section_is_a_panel(
    hidra: Hidra, wide_help: dict[str, str]
) -> None:
    assert {setting.flag for setting in SETTINGS} <= wide_help.keys()
    assert len({setting.flag for setting in SETTINGS}) == len(SETTINGS)
    panels = re.findall(r"^╭─ (.*?) ─", hidra("meta-train", "--help").out, re.MULTILINE)
    assert panels == ["Options", *dict.fromkeys(setting.title for setting in SETTINGS)]


def test_help_shows_the_defaults_of_the_models(wide_help: dict[str, str]) -> None:
    defaults = {key: value for key, value, _ in resolve({}, environ={}).rows()}
    assert defaults.keys() == {setting.key for setting in SETTINGS}
    for setting in SETTINGS:
        shown = re.search(r"\[default: (.*?)\]", wide_help[setting.flag])
        value = defaults[setting.key]
        expected = setting.about.unset if value in ("–", "{}") else value
        assert (shown[1] if shown else "") == expected, setting.key


def test_help_shows_the_choices_of_the_models(wide_help: dict[str, str]) -> None:
    counted = 0
    for setting in SETTINGS:
        kind = Settings.model_fields[setting.section].annotation
        field = getattr(kind, "__pydantic_fields__")[setting.name]  # noqa: B009, it has no type
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        words = re.findall(r"[\w-]+", wide_help[setting.flag].replace("|", " "))
        assert {str(choice) for choice in choices} <= set(words), setting.key
        counted += len(choices)
    assert counted > 30


def test_the_sections_are_those_of_the_models() -> None:
    assert list(SECTIONS) == list(Settings.model_fields)
    for name, declarations in SECTIONS.items():
        section = getattr(Settings(), name)
        assert isinstance(section, declarations)
        assert list(section.__dict__) == [s.name for s in SETTINGS if s.section == name]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_help_texts_are_one_sentence_each_and_name_no_default(setting: Setting) -> None:
    assert setting.about.help
    assert "\n" not in setting.about.help
    assert "[" not in setting.about.help  # rich would take it for markup
    assert "default" not in setting.about.help


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the program, and one line more in its declarations."""
    package = Path(hidra_cli.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    shutil.copytree(package, tmp_path / "copy" / "hidra_cli", ignore=ignored)
    path = tmp_path / "copy" / "hidra_cli" / "settings" / "declarations.py"
    before = '    seed: int = setting(0, "One seed'
    lines = (
        '    patience: int = setting(7, "Validations without a gain.", ge=1)\n'
        '    pace: Literal["fast", "slow"] = setting("fast", "How fast.", may_change=True)\n'
    )
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, lines + before), encoding="utf-8")
    return tmp_path / "copy"


def run(copy: Path, *arguments: str, code: str = "", **environ: str) -> str:
    """What a program prints that uses the copy; for no code, `hidra` with these arguments."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HIDRA_", "_HIDRA"))}
    what = ["-c", code] if code else ["-m", "hidra_cli.app"]
    done = subprocess.run(
        [sys.executable, *what, *arguments],
        env=inherited | {"PYTHONPATH": str(copy), "COLUMNS": "120"} | environ,
        cwd=copy,
        text=True,
        encoding="utf-8",
        capture_output=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_one_line_makes_a_setting_everywhere(copy: Path) -> None:
    assert str(copy) in run(copy, code="import hidra_cli; print(hidra_cli.__file__)")
    text = run(copy, "meta-train", "--help")
    assert re.search(r"--patience +<int> +Validations without a gain\. \[default: 7\]", text)
    assert re.search(r"--pace +fast\|slow +How fast\. \[default: fast\]", text)

    (copy / "own.toml").write_text("[run]\npatience = 6\n")
    layers = ("meta-train", "--print-config", "--json", "--config=own.toml")
    for more, environ, value, origin in [
        ([], {}, "6", "own.toml"),
        ([], {"HIDRA_RUN_PATIENCE": "8"}, "8", "environment"),
        (["--patience=9"], {"HIDRA_RUN_PATIENCE": "8"}, "9", "flag"),
    ]:
        shown = json.loads(run(copy, *layers, *more, **environ))
        assert shown["run.patience"] == {"value": value, "from": origin}
        assert shown["run.pace"] == {"value": "fast", "from": "default"}
    refused = run(copy, *layers, "--patience=0")
    assert "run.patience = 0 (flag): Input should be greater than or equal to 1" in refused

    page = run(copy, code=PAGES.format(ROOT / "docs" / "generate.py"))
    assert "| `patience` | `--patience`, `HIDRA_RUN_PATIENCE` | `<int>` | `7` |" in page
    assert "`run.pace`" in page  # may change when a run is resumed
    toml = "from hidra_cli.settings.schema import Settings; print(Settings().to_toml())"
    assert 'patience = 7\npace = "fast"\nseed = 0\n' in run(copy, code=toml)


@pytest.mark.parametrize(
    ("words", "offered"),
    [(["--pati"], ["--patience"]), (["--pace", ""], ["fast", "slow"])],
)
def test_one_line_makes_a_setting_for_the_tab_key(
    copy: Path, words: list[str], offered: list[str]
) -> None:
    typed = ["hidra", "meta-train", *words]
    protocol = {"_HIDRA_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(typed)}
    code = "import sys; sys.argv[0] = 'hidra'; from hidra_cli.app import main; main()"
    assert run(copy, code=code, COMP_CWORD=str(len(typed) - 1), **protocol).split() == offered
