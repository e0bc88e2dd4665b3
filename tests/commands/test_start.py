"""Starting: quick, light, and writing nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hidra_cli import __version__
from hidra_cli.engine.kernels import pooled_moments

from ..conftest import Hidra

HEAVY = ("torch", "numpy", "h5py", "torchvision", "matplotlib", "PIL")


def run_python(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, text=True, capture_output=True, env=environ, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["plugins", "list"], ["presets", "list"]]
)
def test_light_commands_import_nothing_heavy_and_write_nothing(
    tmp_path: Path, arguments: list[str]
) -> None:
    code = f"""
import sys
sys.argv = ["hidra", *{arguments!r}]
from hidra_cli.app import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print("heavy:", sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_is_declared_without_pydantic(tmp_path: Path) -> None:
    code = "import hidra_cli.app, sys; print('pydantic' in sys.modules)"
    assert run_python(code, tmp_path).stdout == "False\n"


def test_preparing_images_needs_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
if __name__ == "__main__":
    sys.argv = ["hidra", "prepare", "glyphs", "--data-opt=alphabets=3", "--workers=1",
                "--data-opt=characters=2", "--cache-dir={tmp_path}/c"]
    from hidra_cli.app import main
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
    print("torch" in sys.modules)
"""
    done = run_python(code, tmp_path)
    assert done.stdout.endswith("False\n"), done.stderr


def test_help_comes_in_a_third_of_a_second(tmp_path: Path) -> None:
    seconds = []
    for _ in range(7):
        begun = time.perf_counter()
        run_python(
            "import sys; sys.argv=['hidra','--help']; import hidra_cli.app as a; a.main()", tmp_path
        )
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.3 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_every_command_has_help_with_an_example_or_a_next_step(hidra: Hidra) -> None:
    for command in (["prepare"], ["meta-train"], ["evaluate"], ["adapt"], ["plugins", "show"]):
        done = hidra(*command, "--help")
        assert done.code == 0
        assert "Example" in done.out
    assert "Next" in hidra("plugins", "list", "--help").out


def test_version_info_and_plugins(hidra: Hidra, tmp_path: Path) -> None:
    assert hidra("--version").out == f"hidra {__version__}\n"
    facts = hidra("info", "--json", "--cache-dir", tmp_path).json
    assert facts["hidra-cli"] == __version__
    assert facts["cache"] == str(tmp_path)
    found = {(p["kind"], p["name"]) for p in hidra("plugins", "list", "--json").json["plugins"]}
    assert {("head", "hidra"), ("head", "maml"), ("head", "random"), ("head", "zero"),
            ("head", "protomaml"), ("head", "cosine"), ("head", "ridge"),
            ("backbone", "conv4"), ("backbone", "resnet12"), ("dataset", "glyphs"),
            ("dataset", "omniglot"), ("dataset", "cifar-fs"), ("dataset", "miniimagenet"),
            ("dataset", "folder"), ("dataset", "sinusoids"),
            ("backbone", "mlp"), ("backbone", "timm")} <= found  # fmt: skip


def test_plugins_show_tells_options_with_types_and_defaults(hidra: Hidra) -> None:
    shown = hidra("plugins", "show", "head", "hidra", "--json").json
    assert shown["distribution"] == "hidra-cli"
    assert shown["version"] == __version__
    assert shown["status"] == "loads"
    assert set(shown["abilities"]) == {
        "ways",
        "neurons",
        "hooks",
    }  # what it does not declare is not shown
    assert shown["abilities"]["ways"] == "any number"
    option, *others = shown["options"]
    assert [other["name"] for other in others] == ["start", "prior", "normalize", "scale"]
    assert (option["name"], option["type"], option["default"]) == ("master", "tied | slots", "tied")
    assert "slot" in option["help"]
    text = hidra("plugins", "show", "backbone", "conv4").out
    assert "filters" in text
    assert "64" in text


def test_info_says_whether_the_kernels_are_there_and_how_to_get_them(
    hidra: Hidra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = hidra("info", "--json", "--cache-dir", tmp_path).json
    assert facts["kernels"] == pooled_moments.compiled()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    find = importlib.util.find_spec

    def as_not_built(name: str) -> Any:
        return None if "_kernels" in name else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", as_not_built)
    pooled_moments._library.cache_clear()
    try:
        done = hidra("info", "--cache-dir", tmp_path)
        assert not hidra("info", "--json", "--cache-dir", tmp_path).json["kernels"]
    finally:
        pooled_moments._library.cache_clear()
    assert re.search(r"compiled kernels\W+no", done.out)
    assert "C++ compiler" in done.err
