"""The wheel, installed in a clean environment, runs from there."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is under version control, as a release would be."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    names = call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    call(sys.executable, "-m", "build", "--wheel", "--outdir", place, source, cwd=place)
    (built,) = place.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_and_the_kernels(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "hidra_cli/app.py", "hidra_cli/py.typed", "hidra_cli/engine/inner_loop.py",
        "hidra_cli/commands/prepare.py", "hidra_plugins/heads.py", "hidra_plugins/py.typed",
        "hidra_data/splits/omniglot-vinyals.json",
        "hidra_data/presets/omniglot-5way.toml",
        "hidra_data/plugin_templates/pyproject.template.toml",
        "hidra_data/plugin_templates/README.template.md",
        "hidra_data/plugin_templates/head.py", "hidra_data/plugin_templates/test_head.py",
    ):  # fmt: skip
        assert needed in names
    assert any(name.startswith("hidra_cli/engine/kernels/_kernels.") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "hidra_cli",
        "hidra_plugins",
        "hidra_data",
    }


def test_it_runs_from_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "env"
    call(sys.executable, "-m", "venv", place, cwd=tmp_path)
    python = place / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are lent by this environment: 5 GB need not be installed for a test.
    site = call(
        python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path
    ).strip()
    (Path(site) / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = call(
        python,
        "-c",
        "import hidra_cli, hidra_plugins, hidra_data;"
        "print(hidra_cli.__file__, hidra_plugins.__file__, hidra_data.__file__)",
        cwd=tmp_path,
    )
    assert all(path.startswith(str(place)) for path in where.split())
    hidra = place / "bin" / "hidra"
    assert "omniglot" in call(hidra, "plugins", "list", cwd=tmp_path)
    assert json.loads(call(hidra, "info", "--json", cwd=tmp_path))["kernels"] is True
    tiny = [
        "--data-opt=alphabets=3",
        "--data-opt=characters=3",
        "--data-opt=drawings=4",
        "--data-opt=size=16",
        f"--cache-dir={tmp_path / 'cache'}",
    ]
    call(hidra, "prepare", "glyphs", *tiny, cwd=tmp_path)
    out = call(
        hidra,
        "meta-train",
        *tiny,
        "--ways=2-3",
        "--queries=2",
        "--iterations=1",
        "--validation-episodes=2",
        "--test-episodes=2",
        "--bb-opt=filters=2",
        cwd=tmp_path,
    )
    assert "Test accuracy of hidra on glyphs" in out
