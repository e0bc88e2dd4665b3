"""Plugins that do wrong: each is named, with what to do, and no other command suffers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from hidra_cli.api import registry

from ..conftest import TINY_DATA, TINY_RUN, Finished, Hidra
from ..test_examples import hidra as hidra_with

HEAD = """
import sys
import torch
from hidra_cli.api import Head

class Plugin(Head):
    api_version = 1

    def __init__(self, features, max_ways):
        super().__init__(features, max_ways)
        self.start = torch.nn.Parameter(torch.zeros(features))

    def initialize(self, ways, support_features, support_labels, generator):
        return {"weight": self.start.expand(ways, -1)}

    def logits(self, fast_weights, features):
        return features @ fast_weights["weight"].T
"""
_INITIALIZE = 'return {"weight": self.start.expand(ways, -1)}'
_LOGITS = 'return features @ fast_weights["weight"].T'
_SUPER = "super().__init__(features, max_ways)"

# What is written in place of what in HEAD, and what is told of it.
HEADS = {
    "too-few-logits": (_LOGITS, _LOGITS + "[:, :1]", "logits gives a tensor of shape (4, 1), not"),
    "transposed": (_LOGITS, _LOGITS.replace("return ", "return (") + ").T", "shape (2, 4), not"),
    "no-logits": (_LOGITS, "return None", "logits gives None, not logits (n, N) = (4, 2)"),
    "bad-product": (_LOGITS, "return features @ fast_weights['weight']", "RuntimeError: mat1"),
    "raising-logits": (_LOGITS, "raise KeyError('boom')", "KeyError: 'boom'"),
    "a-list": (_INITIALIZE, "return [self.start]", "initialize gives an object of type list, not"),
    "nothing": (_INITIALIZE, "return {}", "initialize gives no weights"),
    "an-array": (
        _INITIALIZE,
        "return {'w': self.start.detach().numpy()}",
        "type ndarray, not as a",
    ),
    "constant": (_INITIALIZE, "return {'w': self.start.detach()}", "gives 'w' without a gradient"),
    "not-a-number": (
        _INITIALIZE,
        "return {'w': self.start / 0}",
        "'w' with values that are not finite before the",
    ),
    "unused": (
        _INITIALIZE,
        _INITIALIZE[:-1] + ", 'w': self.start * 2}",
        "the fast weight 'w': it has no effect on",
    ),
    "raising": (_INITIALIZE, "raise KeyError('boom')", "KeyError: 'boom'"),
    "exiting": (_INITIALIZE, "sys.exit(0)", "SystemExit: 0"),
    "few-arguments": (
        "(self, ways, support_features, support_labels, generator)",
        "(self, ways)",
        "takes 2 positional arguments but 5 were given",
    ),
    "another-constructor": ("(self, features, max_ways)", "(self)", "takes 1 positional argument"),
    "no-super": (_SUPER, "pass", "AttributeError: cannot assign parameters before"),
    "exiting-constructor": (_SUPER, "sys.exit(0)", "SystemExit: 0"),
    "abstract": ("def logits", "def logit", "abstract method"),
    "later": (
        _LOGITS,
        _LOGITS + "\n\n    def after_outer_step(self, ways):\n        raise OSError('in the hook')",
        "OSError: in the hook",
    ),
}

BACKBONE = """
import torch
from torch import nn
from hidra_cli.api import Backbone

class Plugin(Backbone):
    api_version = 1

    def __init__(self, image_shape, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(image_shape[0], 4, 3), norm(4)
        self.features = 4

    def forward(self, images):
        return self.norm(self.conv(images)).mean(dim=(2, 3))
"""
BACKBONES = {
    "too-many-features": ("self.features = 4", "self.features = 5", "features (n, F) = (4, 5)"),
    "no-features": ("self.features = 4", "pass", "sets no number of features"),
    "not-flat": (".mean(dim=(2, 3))", "", "forward gives a tensor of shape (4, 4, 14, 14), not"),
    "infinite": (".mean(dim=(2, 3))", ".mean(dim=(2, 3)) / 0", "are not finite"),
    "raising-forward": ("return self.norm", "raise KeyError('boom')\n        self.norm", "'boom'"),
}

DATASET = """
import numpy as np
from hidra_cli.api import Dataset, ImageClass

class Images(list):
    def __iter__(self):
        return super().__iter__()

class Plugin(Dataset):
    api_version = 1
    title = "noise"

    def __init__(self, source):
        self.image_shape = (1, 4, 4)

    def classes(self, downloads):
        for split in ("train", "val", "test"):
            yield ImageClass(split, split, Images([np.zeros((4, 4), np.uint8)] * 3))
"""
DATASETS = {
    "raising-classes": ("for split in", "raise KeyError('boom')\n        for split in", "'boom'"),
    "raising-images": ("return super().__iter__()", "raise KeyError('boom')", "'boom'"),
}

Install = Callable[[registry.Kind, str, str], None]


def write_package(site: Path, kind: registry.Kind, name: str, source: str) -> None:
    """What pip leaves behind for the distribution `NAME-dist` 1.5 of one module."""
    module = "faulty_" + name.replace("-", "_")
    (site / f"{module}.py").write_text(dedent(source))
    info = site / f"{module}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[hidra.{kind}s]\n{name} = {module}:Plugin\n")
    (info / "RECORD").write_text("")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(kind, name, source)` adds a distribution to this process's path."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(kind: registry.Kind, name: str, source: str) -> None:
        write_package(tmp_path, kind, name, source)
        registry.plugins.cache_clear()

    yield add
    registry.plugins.cache_clear()
    for name in [name for name in sys.modules if name.startswith("faulty_")]:
        del sys.modules[name]


def changed(source: str, old: str, new: str) -> str:
    assert source.count(old) == 1
    return source.replace(old, new)


def assert_blamed(done: Finished, kind: str, name: str, told: str) -> None:
    """The message names the plugin, its distribution and version, and what to do."""
    assert done.code == 4, done.err
    error, why, fix = (
        next(line for line in done.err.splitlines() if line.startswith(start))
        for start in ("error: ", "why: ", "fix: ")
    )
    assert re.search(rf"faulty_{name.replace('-', '_')}\.py:\d+", done.err), "no line is named"
    assert f"{kind} '{name}' of {name}-dist 1.5" in error
    assert told in why
    assert f"pip uninstall {name}-dist" in fix
    assert "HIDRA_PLUGINS=none" in fix
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("name", HEADS)
def test_a_faulty_head_is_named(hidra: Hidra, install: Install, cache_dir: Path, name: str) -> None:
    old, new, told = HEADS[name]
    install("head", name, changed(HEAD, old, new))
    tiny = [*TINY_DATA, "--ways=2-4", "--bb-opt=filters=4", f"--cache-dir={cache_dir}", "--json"]
    done = hidra("meta-train", f"--head={name}", *tiny, "--dry-run")
    assert_blamed(done, "head", name, told)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_faulty_backbone_is_named(
    hidra: Hidra, install: Install, cache_dir: Path, name: str
) -> None:
    old, new, told = BACKBONES[name]
    install("backbone", name, changed(BACKBONE, old, new))
    tiny = [*TINY_DATA, "--ways=2-4", f"--cache-dir={cache_dir}", "--json"]
    done = hidra("meta-train", f"--backbone={name}", *tiny, "--dry-run")
    assert_blamed(done, "backbone", name, told)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_faulty_dataset_is_named(
    hidra: Hidra, install: Install, tmp_path: Path, name: str, workers: int
) -> None:
    old, new, told = DATASETS[name]
    install("dataset", name, changed(DATASET, old, new))
    cache = tmp_path / "cache"
    done = hidra("prepare", name, f"--cache-dir={cache}", f"--workers={workers}", "--json")
    assert_blamed(done, "dataset", name, told)
    assert not list(cache.rglob("*.h5"))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Faulty packages of every kind, installed together with one that prints."""
    (tmp_path / "site").mkdir()
    write_package(tmp_path / "site", "head", "exiting", "raise SystemExit(0)")
    write_package(tmp_path / "site", "head", "wide", changed(HEAD, _LOGITS, _LOGITS + "[:, :1]"))
    write_package(tmp_path / "site", "backbone", "broken", "def broken(:")
    write_package(tmp_path / "site", "dataset", "absent", "import a_package_that_is_missing")
    write_package(
        tmp_path / "site",
        "head",
        "noisy",
        "print('hello')\n" + changed(HEAD, _LOGITS, "print('a call')\n        " + _LOGITS),
    )
    return tmp_path / "site"


def test_commands_that_do_not_use_a_faulty_plugin_go_on(site: Path, cache_dir: Path) -> None:
    listed = json.loads(hidra_with(site, "plugins", "list", "--json").stdout)["plugins"]
    assert {"exiting", "wide", "broken", "absent", "noisy"} <= {p["name"] for p in listed}
    places = [f"--cache-dir={cache_dir}", "--json", "-q"]
    tiny = [*TINY_DATA, "--ways=2-4", "--bb-opt=filters=4", "--dry-run"]
    trained = hidra_with(site, "meta-train", *tiny, *places)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["ways"] == 4


def test_a_faulty_plugin_is_named_in_a_process_of_its_own(site: Path, cache_dir: Path) -> None:
    tiny = [*TINY_DATA, "--ways=2-4", "--bb-opt=filters=4", f"--cache-dir={cache_dir}"]
    for name, told in (("exiting", "SystemExit: 0"), ("wide", "shape (4, 1), not")):
        done = hidra_with(site, "meta-train", f"--head={name}", *tiny)
        assert_blamed(Finished(done.returncode, done.stdout, done.stderr), "head", name, told)


def test_what_a_plugin_prints_is_no_result(site: Path, cache_dir: Path, tmp_path: Path) -> None:
    """It prints where it is imported and in every call, also in worker processes."""
    done = hidra_with(site, "plugins", "show", "head", "noisy", "--json")
    assert json.loads(done.stdout)["name"] == "noisy"
    assert "hello" in done.stderr
    run = [*TINY_RUN, "--ways=2-4", f"--cache-dir={cache_dir}", f"--runs-dir={tmp_path}", "--json"]
    trained = hidra_with(
        site, "meta-train", "--head=noisy", *run, "--name=n", "--strategy=processes"
    )
    assert json.loads(trained.stdout)["iterations"] == 4, trained.stderr
    assert "a call" in trained.stderr
    shown = hidra_with(site, "evaluate", tmp_path / "n", "--episodes=2", "--queries=2", "--ways=2")
    assert "a call" not in shown.stdout
