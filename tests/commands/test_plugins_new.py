"""`hidra plugins new`: what it writes installs, passes its own test and trains; what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hidra_cli.jobs.new_plugin import Skeleton, fault_of

from ..conftest import TINY_RUN, Hidra, WriteImage
from ..test_examples import hidra as hidra_with
from ..test_examples import pip_install, python, run_tests
from .test_start import HEAVY

NAMES = {
    "head": "my-2nd",
    "backbone": "my-backbone",
    "dataset": "birds",
    "functions": "straight-lines",
}
FOLDERS = {
    "head": "hidra-my-2nd-head",
    "backbone": "hidra-my-backbone",
    "dataset": "hidra-birds-dataset",
    "functions": "hidra-straight-lines-functions",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of each kind, as the command writes it."""
    place = tmp_path_factory.mktemp("new")
    for kind, name in NAMES.items():
        done = python(place, "-m", "hidra_cli.app", "plugins", "new", kind, name, cwd=place)
        assert done.returncode == 0, done.stderr
    return {kind: place / name for kind, name in FOLDERS.items()}


@pytest.fixture(scope="module")
def site(packages: dict[str, Path]) -> Path:
    """All four, installed."""
    folder = packages["head"].parent / "site"
    pip_install(folder, *packages.values())
    return folder


def test_the_tests_of_the_new_packages_pass(site: Path, packages: dict[str, Path]) -> None:
    run_tests(site, *packages.values())


def test_the_new_packages_are_listed_and_shown_with_their_options(site: Path) -> None:
    listed = json.loads(hidra_with(site, "plugins", "list", "--json").stdout)["plugins"]
    found = {p["distribution"]: (p["kind"], p["name"]) for p in listed if p["version"] == "0.1.0"
             and p["distribution"] != "hidra-cli"}  # fmt: skip
    assert found == {FOLDERS[kind]: (kind.replace("functions", "dataset"), NAMES[kind])
                     for kind in NAMES}  # fmt: skip
    shown = json.loads(hidra_with(site, "plugins", "show", "head", "my-2nd", "--json").stdout)
    assert [(o["name"], bool(o["help"])) for o in shown["options"]] == [("spread", True)]


def test_the_new_head_and_backbone_train(site: Path, cache_dir: Path, tmp_path: Path) -> None:
    choice = ["--head=my-2nd", "--backbone=my-backbone", "--bb-opt=filters=4", "--ways=2-4"]
    options = [option for option in TINY_RUN if not option.startswith("--bb-opt")]
    places = [f"--cache-dir={cache_dir}", f"--runs-dir={tmp_path}", "--json", "-q"]
    done = hidra_with(site, "meta-train", *options, *choice, *places)
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)["environment"]["plugins"]
    assert {kind: used[kind]["distribution"] for kind in ("head", "backbone")} == {
        kind: FOLDERS[kind] for kind in ("head", "backbone")
    }


def test_the_new_dataset_is_prepared(site: Path, tmp_path: Path, write_image: WriteImage) -> None:
    for split, classes in (("train", 3), ("val", 1), ("test", 2)):
        for number in range(classes):
            write_image(tmp_path / "source" / split / f"{split}{number}" / "a.png")
    wanted = [f"--source={tmp_path}/source", "--data-opt=size=10", "--workers=1"]
    done = hidra_with(site, "prepare", "birds", *wanted, f"--cache-dir={tmp_path}/c", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == {"train": 3, "val": 1, "test": 2}
    assert json.loads(done.stdout)["image_shape"] == [1, 10, 10]


def test_the_new_packages_are_clean(packages: dict[str, Path]) -> None:
    place = packages["head"].parent
    for command in (["check", "--extend-select=I,UP,B"], ["format", "--check"]):
        done = python(place, "-m", "ruff", *command, *packages.values(), cwd=place)
        if "No module named ruff" in done.stderr:
            pytest.skip("ruff is not in this environment")
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_new_plugins_keep_their_contracts(
    site: Path, tmp_path: Path, write_image: WriteImage
) -> None:
    for split in ("train", "test"):
        write_image(tmp_path / "source" / split / split / "a.png")
    for kind, name in NAMES.items():
        registered = "dataset" if kind == "functions" else kind
        source = [f"--source={tmp_path}/source"] if kind == "dataset" else []
        done = hidra_with(site, "plugins", "check", registered, name, *source, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "keeps its contract"


def test_the_new_family_is_learned(site: Path, tmp_path: Path) -> None:
    lines = ["--dataset=straight-lines", "--backbone=mlp", "--loss=mse", "--inner-lr=0.01"]
    run = ["--ways=1-2", "--shots=5", "--queries=5", "--iterations=2", "--meta-batch=2"]
    episodes = ["--validation-episodes=2", "--test-episodes=2", f"--runs-dir={tmp_path}"]
    done = hidra_with(site, "meta-train", *lines, *run, *episodes, "--json", "-q")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", NAMES)
def test_the_code_of_the_longest_name_fits(kind: Any) -> None:
    name = "a" * 25
    assert not fault_of(name)
    texts = [text for path, text in Skeleton(kind, name).files().items() if path.endswith(".py")]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 100


def test_it_says_what_it_wrote_and_what_to_do_next(hidra: Hidra, tmp_path: Path) -> None:
    place = tmp_path / "of mine" / "pack"
    done = hidra("plugins", "new", "head", "mine", "--out", place, "--json")
    assert done.code == 0
    assert done.json["distribution"] == "hidra-mine-head"
    assert done.json["class"] == "hidra_mine_head:MineHead"
    assert sorted(done.json["files"]) == sorted(
        str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()
    )
    assert done.json["next"][0] == f"cd '{place}'"
    assert done.json["next"][-1] == "hidra meta-train --head mine"
    assert "hidra meta-train --head mine" in done.err
    assert [path.name for path in place.parent.iterdir()] == ["pack"]
    assert "Example" in hidra("plugins", "new", "--help").out


@pytest.mark.parametrize(
    "name",
    ["Mine", "2nd", "-x", "a--b", "a-", "a_b", "a.b", "a b", "../a", "é", "a:b", "a" * 26],
)
def test_a_name_that_cannot_be_one_is_refused(hidra: Hidra, tmp_path: Path, name: str) -> None:
    done = hidra("plugins", "new", "head", f"--out={tmp_path}/p", "--", name)
    assert done.code == 2
    assert f"error: '{name}' cannot be the name of a head" in done.err
    assert f"why: {fault_of(name)}" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(hidra: Hidra, tmp_path: Path) -> None:
    done = hidra("plugins", "new", "head", "maml", f"--out={tmp_path}/p")
    assert done.code == 2
    assert "there is a head called 'maml' already" in done.err
    assert "hidra-cli" in done.err
    assert list(tmp_path.iterdir()) == []
    # A head is not a dataset.
    assert hidra("plugins", "new", "dataset", "maml", f"--out={tmp_path}/p").code == 0


def test_an_unknown_kind_is_refused(hidra: Hidra, tmp_path: Path) -> None:
    assert hidra("plugins", "new", "tail", "x", f"--out={tmp_path}/p").code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "link to nowhere"])
def test_nothing_is_written_over(hidra: Hidra, tmp_path: Path, there: str) -> None:
    place = tmp_path / "p"
    if there.endswith("folder"):
        place.mkdir()
    if there == "folder":
        (place / "kept.txt").write_text("kept")
    if there == "file":
        place.write_text("kept")
    if there == "link to nowhere":
        place.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    done = hidra("plugins", "new", "head", "mine", "--out", place)
    assert done.code == 2
    assert f"error: {place} exists already" in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_told(hidra: Hidra, read_only: Path) -> None:
    done = hidra("plugins", "new", "head", "mine", "--out", read_only / "p")
    assert done.code == 1
    assert f"error: {read_only / 'p'} could not be written" in done.err
    assert "choose another place with --out" in done.err


def test_a_write_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = Skeleton("head", "mine")
    texts = skeleton.files() | {"tests": "a file where a folder is"}
    monkeypatch.setattr(Skeleton, "files", lambda _: texts)
    with pytest.raises(OSError, match="tests"):
        skeleton.write(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_it_needs_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
sys.argv = ["hidra", "plugins", "new", "head", "mine", "--out={tmp_path}/p"]
from hidra_cli.app import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print("heavy:", sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert "heavy: []" in done.stdout, done.stderr
