"""The table of wrong plugins: none passes, and each message has the line of the author's code.

`TABLE_OF_WRONG_PLUGINS=FILE` writes what is said of each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hidra_cli.api import registry

from ..api.test_plugin_faults import changed, write_package
from ..conftest import TINY_DATA, Hidra
from .heads import HEADS, LINEAR, PROTOTYPES, Wrong
from .others import BACKBONE, BACKBONES, DATASET, DATASETS, FAMILY

KINDS: dict[registry.Kind, dict[str, Wrong]] = {
    "head": HEADS,
    "backbone": BACKBONES,
    "dataset": DATASETS,
}
RIGHT: dict[str, tuple[registry.Kind, str]] = {
    "right-linear": ("head", LINEAR),
    "right-prototypes": ("head", PROTOTYPES),
    "right-backbone": ("backbone", BACKBONE),
    "right-dataset": ("dataset", DATASET),
    "right-family": ("dataset", FAMILY),
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every wrong plugin and the right ones, each as an installed distribution of its own."""
    site = tmp_path_factory.mktemp("site")
    for kind, table in KINDS.items():
        for name, (source, changes, _) in table.items():
            for old, new in changes.items():
                source = changed(source, old, new)
            write_package(site, kind, name, source)
    for name, (kind, source) in RIGHT.items():
        write_package(site, kind, name, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        registry.plugins.cache_clear()
        yield
    registry.plugins.cache_clear()


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in KINDS.items() for name in table]
)
def test_a_wrong_plugin_is_told_what_and_where(
    hidra: Hidra, kind: registry.Kind, name: str, tmp_path: Path
) -> None:
    done = hidra("plugins", "check", kind, name, f"--cache-dir={tmp_path}")
    record(kind, name, done.err)
    assert done.code == 4, done.err
    told = " ".join(done.err.split())
    assert KINDS[kind][name][2] in told
    assert f"{kind} '{name}' of {name}-dist 1.5" in told
    assert re.search(rf"faulty_{name.replace('-', '_')}\.py:\d+", told), "no line is named"
    assert "fault of hidra" not in told
    assert "Traceback" not in told


def record(kind: str, name: str, err: str) -> None:
    if path := os.environ.get("TABLE_OF_WRONG_PLUGINS"):
        why, _, fix = err.partition("why: ")[2].partition("\nfix: ")
        said = " ".join(re.sub(r"in \S*/(\w+\.py:\d+)", r"(\1)", why).split())
        instead = " ".join(fix.rpartition("in its code: ")[2].split())
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"| {kind} | {name} | {said} | {instead} |\n")


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_ones_pass(hidra: Hidra, name: str, tmp_path: Path) -> None:
    done = hidra("plugins", "check", RIGHT[name][0], name, f"--cache-dir={tmp_path}", "--json")
    assert done.code == 0, done.err
    assert done.json["status"] == "keeps its contract"


@pytest.mark.parametrize("name", ["item", "centred", "always-single", "not-common"])
def test_a_dry_run_finds_what_a_training_start_does_not(
    hidra: Hidra, cache_dir: Path, name: str
) -> None:
    tiny = [*TINY_DATA, "--ways=2-4", "--bb-opt=filters=4", f"--cache-dir={cache_dir}"]
    done = hidra("meta-train", f"--head={name}", *tiny, "--dry-run")
    assert done.code == 4
    assert HEADS[name][2] in " ".join(done.err.split())
    assert "were checked" not in done.out


@pytest.mark.parametrize("kind", ["head", "backbone"])
def test_the_built_in_ones_pass(hidra: Hidra, kind: registry.Kind, tmp_path: Path) -> None:
    for plugin in registry.plugins(kind):
        if plugin.distribution == registry.OWN_DISTRIBUTION:
            done = hidra("plugins", "check", kind, f"hidra-cli:{plugin.name}", "-q")
            assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["glyphs", "sinusoids"])
def test_the_built_in_datasets_pass(hidra: Hidra, name: str, tmp_path: Path) -> None:
    done = hidra("plugins", "check", "dataset", name, f"--cache-dir={tmp_path}")
    assert done.code == 0, done.err
