"""Completion by the shells' own protocols, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hidra_cli.api.registry import KINDS, plugins
from hidra_cli.settings.presets import preset_names

from ..conftest import Hidra

BIN = Path(sys.executable).parent
HEAVY = ("torch", "numpy", "h5py", "torchvision", "matplotlib", "PIL")
HEADS = [plugin.name for plugin in plugins("head")]

pytestmark = pytest.mark.skipif(not (BIN / "hidra").exists(), reason="hidra is not installed here")


def call(*command: str | Path, place: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HIDRA_", "_HIDRA"))}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    # The shell is the one that is named, not the one that the tests happen to be run from.
    inherited["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    return subprocess.run(
        list(map(str, command)),
        env=inherited | {"HOME": str(place), "PATH": path} | environ,
        cwd=place,
        text=True,
        capture_output=True,
        check=False,
    )


def bash(place: Path, *words: str, **environ: str) -> list[str]:
    """What bash would offer for the last word, by the script that `hidra` itself gives."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    script = call("hidra", "--show-completion", "bash", place=place)
    assert script.returncode == 0, script.stderr
    quoted = " ".join(f"'{word}'" for word in ("hidra", *words))
    code = f"{script.stdout}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words)}\n"
    code += '_hidra_completion hidra; printf "%s\\n" "${COMPREPLY[@]}"'
    done = call("bash", "--norc", "-c", code, place=place, **environ)
    assert done.stderr == ""
    return done.stdout.split()


def test_flags_and_commands_are_completed(tmp_path: Path) -> None:
    assert bash(tmp_path, "pre") == ["prepare", "predict", "presets"]
    assert bash(tmp_path, "meta-train", "--pres") == ["--preset"]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["meta-train", "--head", ""], "head"),
        (["meta-train", "--head", "=", ""], "head"),
        (["meta-train", "--ways", "=", "5", "--backbone", ""], "backbone"),
        (["meta-train", "--dataset", ""], "dataset"),
        (["evaluate", "--dataset", ""], "dataset"),
        (["adapt", "--dataset", ""], "dataset"),
        (["prepare", ""], "dataset"),
        (["plugins", "show", "backbone", ""], "backbone"),
        (["plugins", "check", "head", ""], "head"),
    ],
)
def test_plugins_are_completed_as_bash_splits_words(
    tmp_path: Path, words: list[str], kind: str
) -> None:
    (known,) = (k for k in KINDS if k == kind)
    assert bash(tmp_path, *words) == [plugin.name for plugin in plugins(known)]


def test_a_begun_word_is_finished(tmp_path: Path) -> None:
    assert bash(tmp_path, "plugins", "show", "d") == ["dataset"]
    assert bash(tmp_path, "plugins", "show", "dataset", "gly") == ["glyphs"]
    assert bash(tmp_path, "meta-train", "--head", "=", "ma") == ["maml"]
    assert bash(tmp_path, "meta-train", "--preset", "") == preset_names()
    assert bash(tmp_path, "presets", "show", "") == preset_names()


def test_the_choices_of_a_setting_are_completed(tmp_path: Path) -> None:
    assert bash(tmp_path, "meta-train", "--graphs", "") == ["keep", "recompute"]
    assert bash(tmp_path, "meta-train", "--order", "=", "") == ["1", "2"]
    assert bash(tmp_path, "meta-train", "--normalization", "t") == ["tasknorm", "transductive"]


def test_runs_are_completed_from_the_folder_that_is_meant(tmp_path: Path) -> None:
    for name in ("runs/one", "runs/two", "runs/.hidden", "other/three"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.toml").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    resume = ["meta-train", "--resume", ""]
    assert bash(tmp_path, *resume) == ["latest", "one", "two"]
    assert bash(tmp_path, *resume, HIDRA_RUNS_DIR="other") == ["latest", "three"]
    assert bash(tmp_path, "meta-train", "--runs-dir", "other", "--resume", "t") == ["three"]
    assert bash(tmp_path, "evaluate", "") == ["runs/one", "runs/two"]
    assert bash(tmp_path, "evaluate", "runs/one", "runs/t") == ["runs/two"]
    assert bash(tmp_path, "report", "") == ["runs/one", "runs/two"]
    assert bash(tmp_path, "adapt", "--checkpoint", "runs/o") == ["runs/one"]
    assert bash(tmp_path, *resume, HIDRA_RUNS_DIR="none") == []


def test_zsh_and_fish_are_told_what_each_name_is(tmp_path: Path) -> None:
    zsh = call(
        "hidra",
        place=tmp_path,
        _HIDRA_COMPLETE="complete_zsh",
        _TYPER_COMPLETE_ARGS="hidra plugins show head ",
    )
    for name in HEADS:
        assert f'"{name}":"' in zsh.stdout
    fish = {"_HIDRA_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "hidra meta-train --head "}
    found = call("hidra", place=tmp_path, _TYPER_COMPLETE_FISH_ACTION="get-args", **fish)
    assert [line.split("\t")[0] for line in found.stdout.splitlines()] == HEADS
    asked = call("hidra", place=tmp_path, _TYPER_COMPLETE_FISH_ACTION="is-args", **fish)
    fish["_TYPER_COMPLETE_ARGS"] = "hidra meta-train --config "  # a file: fish completes it
    files = call("hidra", place=tmp_path, _TYPER_COMPLETE_FISH_ACTION="is-args", **fish)
    assert (asked.returncode, files.returncode) == (0, 1)
    assert zsh.stderr + found.stderr + asked.stderr + files.stderr == ""


@pytest.mark.parametrize(
    "environ",
    [
        {"COMP_WORDS": "hidra\nno-command\n--flag\n", "COMP_CWORD": "3"},
        {"COMP_WORDS": "hidra\nmeta-train\n--head\n'", "COMP_CWORD": "3"},
        {"COMP_WORDS": "hidra\nevaluate\n", "COMP_CWORD": "2", "HIDRA_RUNS_DIR": "\x01" * 300},
        {"COMP_WORDS": "hidra", "COMP_CWORD": "many"},
        {},
    ],
)
def test_what_cannot_be_completed_is_no_error(tmp_path: Path, environ: dict[str, str]) -> None:
    done = call("hidra", place=tmp_path, _HIDRA_COMPLETE="complete_bash", **environ)
    assert done.stderr == ""
    assert "rror" not in done.stdout


def test_completion_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
sys.argv = ["hidra"]
from hidra_cli.app import main
try:
    main()
except SystemExit:
    pass
assert not set({HEAVY!r}) & set(sys.modules)
"""
    protocol = {"_HIDRA_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    seconds = []
    for flag in ("--head", "--preset", "--resume") * 2:
        begun = time.perf_counter()
        words = f"hidra\nmeta-train\n{flag}\n"
        done = call(sys.executable, "-c", code, place=tmp_path, COMP_WORDS=words, **protocol)
        seconds.append(time.perf_counter() - begun)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 0.5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_installing_writes_the_script_where_the_shell_reads_it(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    done = call("bash", "--norc", "-c", "hidra --install-completion bash; exit $?", place=tmp_path)
    assert done.returncode == 0, done.stderr
    script = call("hidra", "--show-completion", "bash", place=tmp_path).stdout
    written = tmp_path / ".bash_completions" / "hidra.sh"
    assert written.read_text().strip() == script.strip()
    assert str(written) in (tmp_path / ".bashrc").read_text()


def test_presets_are_listed_and_shown(hidra: Hidra) -> None:
    listed = hidra("presets", "list", "--json").json["presets"]
    assert [preset["name"] for preset in listed] == preset_names()
    for preset in listed:
        shown = hidra("presets", "show", preset["name"], "--json").json
        text = hidra("presets", "show", preset["name"]).out
        assert shown["text"] == text
        assert text.startswith(f"# {preset['summary']}")
        assert preset["summary"] in hidra("presets", "list").out
        assert set(shown["settings"]) <= {"dataset", "tasks", "model", "inner", "outer", "run"}
    unknown = hidra("presets", "show", "omniglot-5wya")
    assert unknown.code == 2
    assert "did you mean" in unknown.err


def test_a_shown_preset_is_a_configuration_file(hidra: Hidra, tmp_path: Path) -> None:
    for name in preset_names():
        config = tmp_path / "own.toml"
        config.write_text(hidra("presets", "show", name).out, encoding="utf-8")
        own = hidra("meta-train", "--config", config, "--print-config", "--json").json
        ready = hidra("meta-train", "--preset", name, "--print-config", "--json").json
        assert {k: v["value"] for k, v in own.items()} == {k: v["value"] for k, v in ready.items()}
