"""The packages in examples/, installed as an author's would be, and used in real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from .conftest import TINY_RUN

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "hidra-prototype-head"
OLDEST_SETUPTOOLS = 77


def python(site: Path, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` with the packages installed in `site`."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environ, cwd=cwd, text=True, capture_output=True, check=False
    )


def hidra(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command line of hidra with the packages installed in `site`."""
    return python(site, "-m", "hidra_cli.app", *arguments, cwd=site)


def pip_install(site: Path, *packages: Path) -> None:
    """Install packages into a new folder; what setuptools leaves in their sources is not theirs."""
    try:
        found = metadata.version("setuptools")
        metadata.version("pip")
    except metadata.PackageNotFoundError as exc:
        pytest.skip(f"{exc.name} is not in this environment")
    if int(found.partition(".")[0]) < OLDEST_SETUPTOOLS:
        pytest.skip(f"setuptools {found} is older than {OLDEST_SETUPTOOLS}")
    copies = [site.parent / f"building-{package.name}" for package in packages]
    for package, copy in zip(packages, copies, strict=True):
        shutil.copytree(package, copy)
    site.mkdir()
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = python(site, "-m", "pip", "install", *offline, "--target", site, *copies, cwd=site)
    assert done.returncode == 0, done.stdout + done.stderr


def run_tests(site: Path, *packages: Path) -> None:
    """Run the tests of installed packages, from a folder where their sources are not."""
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    tests = [package / "tests" for package in packages]
    done = python(site, "-m", "pytest", *options, f"--rootdir={site}", *tests, cwd=site)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed."""
    folder = tmp_path_factory.mktemp("example") / "site"
    pip_install(folder, EXAMPLE)
    return folder


def test_its_own_tests_pass_and_it_is_listed(site: Path) -> None:
    run_tests(site, EXAMPLE)
    listed = json.loads(hidra(site, "plugins", "list", "--json").stdout)["plugins"]
    assert {
        "kind": "head",
        "name": "prototype",
        "distribution": "hidra-prototype-head",
        "version": "0.1.0",
    } in listed


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_trained_saved_reloaded_and_evaluated_at_other_ways(
    site: Path, cache_dir: Path, tmp_path: Path, order: int
) -> None:
    places = [f"--cache-dir={cache_dir}", "--json", "-q"]
    choice = ["--head=prototype", "--head-opt=scale=0.5", f"--order={order}", "--ways=2-4"]
    trained = hidra(
        site, "meta-train", *TINY_RUN, *choice, f"--runs-dir={tmp_path}", "--name=p", *places
    )
    assert trained.returncode == 0, trained.stderr
    head = json.loads(trained.stdout)["environment"]["plugins"]["head"]
    assert head["distribution"] == "hidra-prototype-head"
    if order == 1:  # the same file is read whatever the order was
        return
    wanted = ["--ways=2,7", "--episodes=3", "--queries=2"]
    evaluated = hidra(site, "evaluate", tmp_path / "p", *wanted, *places)
    assert evaluated.returncode == 0, evaluated.stderr
    assert [row["ways"] for row in json.loads(evaluated.stdout)["results"]] == [2, 7]


def test_the_page_for_authors_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    shown = set(re.findall(r"^```(?:python|toml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    for name in ("hidra_prototype_head.py", "tests/test_prototype_head.py", "pyproject.toml"):
        assert (EXAMPLE / name).read_text() in shown, f"docs/plugins.md shows another {name}"
