"""A head written as a separate package: found, trained, saved, reloaded, evaluated, missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import TINY_OPTIONS

MODULE = '''
import torch
from typing import Annotated
from hidra_cli.api import Head

class Shifted(Head):
    """Identical neurons of a constant value."""

    api_version = 1

    def __init__(self, features, max_ways, *, value: Annotated[float, "of every weight"] = 0.5):
        super().__init__(features, max_ways)
        self.start = torch.nn.Parameter(torch.full((features,), value))

    def initialize(self, ways, support_features, support_labels, generator):
        return {"weight": self.start.repeat(ways, 1)}

    def logits(self, fast_weights, features):
        return features @ fast_weights["weight"].T
'''


def install(folder: Path) -> None:
    """What pip leaves behind for a one-module package."""
    (folder / "shifted_head.py").write_text(MODULE)
    info = folder / "hidra_shifted-2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hidra-shifted\nVersion: 2.3\n")
    (info / "entry_points.txt").write_text("[hidra.heads]\nshifted = shifted_head:Shifted\n")
    (info / "RECORD").write_text("")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    install(tmp_path / "site")
    return tmp_path / "site"


def hidra(site: Path | None, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    if site is not None:
        environ["PYTHONPATH"] = str(site)
    command = [sys.executable, "-m", "hidra_cli.app", *map(str, arguments)]
    return subprocess.run(command, env=environ, text=True, capture_output=True, check=False)


def test_a_separate_package_goes_the_whole_way(site: Path, cache_dir: Path, tmp_path: Path) -> None:
    listed = hidra(site, "plugins", "list", "--json")
    theirs = {"name": "shifted", "distribution": "hidra-shifted", "version": "2.3"}
    assert {"kind": "head", **theirs} in json.loads(listed.stdout)["plugins"]
    shown = json.loads(hidra(site, "plugins", "show", "head", "shifted", "--json").stdout)
    assert shown["options"] == [
        {"name": "value", "type": "float", "required": False, "default": 0.5,
         "help": "of every weight"}
    ]  # fmt: skip

    places: list[str | Path] = ["--cache-dir", cache_dir, "--json", "-q"]
    options = [f"--data-opt={name}={value}" for name, value in TINY_OPTIONS.items()]
    trained = hidra(
        site, "meta-train", "--head=shifted", "--head-opt=value=0.25", *options, "--ways=2-4",
        "--bb-opt=filters=4", "--iterations=2", "--validation-episodes=2", "--test-episodes=2",
        "--queries=2", "--runs-dir", tmp_path / "runs", "--name=theirs", *places,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    recorded = json.loads(trained.stdout)["environment"]["plugins"]["head"]
    assert recorded == theirs

    run = tmp_path / "runs" / "theirs"
    evaluated = hidra(site, "evaluate", run, "--ways=2,6", "--episodes=3", "--queries=2", *places)
    assert evaluated.returncode == 0, evaluated.stderr
    assert [row["ways"] for row in json.loads(evaluated.stdout)["results"]] == [2, 6]

    assert "when the model was trained" not in evaluated.stderr
    (info,) = site.glob("*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hidra-shifted\nVersion: 2.4\n")
    newer = hidra(site, "evaluate", run, "--ways=2", "--episodes=2", "--queries=2", *places)
    assert newer.returncode == 0, newer.stderr
    assert "hidra-shifted 2.4 here, and was of hidra-shifted 2.3" in newer.stderr

    missing = hidra(None, "evaluate", run, *places)
    assert missing.returncode == 4
    assert "needs the head 'shifted'" in missing.stderr
    assert "fix: pip install hidra-shifted==2.3" in missing.stderr
    assert "Traceback" not in missing.stderr
