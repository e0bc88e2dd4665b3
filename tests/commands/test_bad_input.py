"""Bad input: a clear error, the documented exit code, no traceback, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ..conftest import TINY_DATA, TINY_RUN, Finished, Hidra, WriteImage


def assert_refused(done: Finished, code: int, *said: str) -> None:
    assert done.code == code, done.err
    assert done.err.startswith("error: ") or "\nerror: " in done.err
    assert "Traceback" not in done.err
    for text in said:
        assert text in done.err, done.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--head=hydra"], ["no head called 'hydra'", "did you mean 'hidra'", "maml"]),
        (["--backbone=conv5"], ["no backbone called 'conv5'", "did you mean 'conv4'"]),
        (["--dataset=omniglott"], ["no dataset called 'omniglott'", "did you mean 'omniglot'"]),
        (
            ["--head=maml", "--ways=2-5"],
            [
                "serves only the number of ways",
                "cosine, hidra, hidra-prototypes, protomaml, random, ridge, zero",
            ],
        ),
        (["--ways=0"], ["tasks.ways = 0 (flag)", "0 is not positive"]),
        (["--ways=-3"], ["tasks.ways", "-3 is not positive"]),
        (["--ways=1"], ["at least 2 ways"]),
        (["--ways=9-2"], ["the range 9-2 is empty"]),
        (["--ways=many"], ["'many' is not a number or a range"]),
        (["--shots=0"], ["tasks.shots", "0 is not positive"]),
        (["--queries=0"], ["tasks.queries"]),
        (["--iterations=-1"], ["outer.iterations"]),
        (["--inner-lr=0"], ["inner.inner_lr"]),
        (["--inner-lr=nan"], ["inner.inner_lr"]),
        (["--order=3"], ["inner.order"]),
        (["--ways=0", "--order=3", "--queries=x"], ["3 settings are wrong", "order", "queries"]),
        (["--bb-opt=filter=3"], ["filter: unknown option. did you mean 'filters'?"]),
        (["--bb-opt=filters=many"], ["filters=many"]),
        (["--bb-opt=filters=0"], ["filters=0 is not positive"]),
        (["--bb-opt=blocks=9"], ["blocks=9", "at most 4 fit"]),
        (["--bb-opt=filters"], ["no name or no '='"]),
        (["--data-opt=alphabets=2"], ["alphabets must be at least 3, not 2"]),
        (["--source=nowhere"], ["the source nowhere does not exist"]),
        (["--adapt=body"], ["only the body adapts"]),
        (["--adapt=body", "--head=cosine"], ["only the body adapts"]),
        (["--preset=nothing"], ["no preset called 'nothing'"]),
        (["--config=nowhere.toml"], ["nowhere.toml cannot be read"]),
    ],
)
def test_meta_train_refuses(
    hidra: Hidra, cache_dir: Path, tmp_path: Path, flags: list[str], said: list[str]
) -> None:
    places = ["--cache-dir", cache_dir, "--runs-dir", tmp_path / "runs"]
    done = hidra("meta-train", *TINY_RUN, "--ways=2-3", *flags, *places)
    assert_refused(done, 3 if "--source=nowhere" in flags else 2, *said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ways=30"], ["too few classes in its train split", "24 classes", "--ways 24 or fewer"]),
        (["--shots=6"], ["has too few images", "it has 8 and needs 9"]),
    ],
)
def test_meta_train_refuses_what_the_data_cannot_give(
    hidra: Hidra, cache_dir: Path, tmp_path: Path, flags: list[str], said: list[str]
) -> None:
    places = ["--cache-dir", cache_dir, "--runs-dir", tmp_path / "runs"]
    assert_refused(hidra("meta-train", *TINY_RUN, "--ways=2-3", *flags, *places), 3, *said)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_in_a_file_names_the_nearest(hidra: Hidra, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[inner]\nstep = 3\n[tusks]\nways = 5\n")
    done = hidra("meta-train", "--config", config)
    assert_refused(done, 2, "inner.step", "did you mean 'inner.steps'?", "tusks.ways", str(config))
    config.write_text("[inner\n")
    assert_refused(hidra("meta-train", "--config", config), 2, "is not valid TOML")


def test_a_dataset_that_is_not_prepared_says_which_command_to_run(
    hidra: Hidra, tmp_path: Path
) -> None:
    done = hidra("meta-train", "--dataset=omniglot", "--cache-dir", tmp_path)
    assert_refused(done, 3, "omniglot is not prepared", "hidra prepare omniglot")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize("command", ["meta-train", "evaluate", "adapt"])
def test_cuda_where_there_is_none(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, command: str
) -> None:
    done = hidra(command, "--device=cuda", "--runs-dir", runs_dir, "--cache-dir", cache_dir)
    assert_refused(done, 5, "the device 'cuda' cannot be used", "--device cpu")
    assert_refused(hidra(command, "--device=abacus", "--runs-dir", runs_dir), 5, "abacus")


def test_a_run_directory_that_exists(hidra: Hidra, runs_dir: Path, cache_dir: Path) -> None:
    before = (runs_dir / "hidra" / "metrics.csv").read_bytes()
    places = ["--cache-dir", cache_dir, "--runs-dir", runs_dir]
    done = hidra("meta-train", *TINY_RUN, "--ways=2-3", "--name=hidra", *places)
    assert_refused(done, 2, "the run directory", "exists", "--name")
    assert (runs_dir / "hidra" / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "foreign", "empty"])
def test_a_damaged_prepared_file(hidra: Hidra, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    prepared = hidra("prepare", "glyphs", *TINY_DATA, "--cache-dir", cache, "--json", "-q")
    path = Path(prepared.json["path"])
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "truncated":
        path.write_bytes(content[:middle])
    elif damage == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif damage == "text":
        path.write_text("not an image in sight")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        with h5py.File(path, "w") as file:
            file["images"] = np.zeros((3, 3))
    done = hidra(
        "meta-train", *TINY_RUN, "--ways=2", "--cache-dir", cache, "--runs-dir", tmp_path / "runs"
    )
    assert_refused(done, 3, path.name, "hidra prepare")
    assert not (tmp_path / "runs").exists()
    repaired = hidra("prepare", "glyphs", *TINY_DATA, "--cache-dir", cache, "--force", "--json")
    assert repaired.code == 0
    assert path.read_bytes()[:middle] != b""
    assert repaired.json["content_hash"] == prepared.json["content_hash"]


def test_a_truncated_picture_is_named_and_nothing_is_left(hidra: Hidra, tmp_path: Path) -> None:
    for name in ("cats", "dogs", "owls"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 255, (40, 30, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "mine" / name / f"{index}.png")
    broken = tmp_path / "mine" / "dogs" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    done = hidra("prepare", "folder", "--source", tmp_path / "mine", "--cache-dir", tmp_path / "c")
    assert_refused(done, 3, str(broken), "cannot be read")
    left = [path for path in (tmp_path / "c").rglob("*") if path.suffix in (".h5", ".tmp")]
    assert left == []


def test_all_pictures_that_cannot_be_prepared_are_named(
    hidra: Hidra, tmp_path: Path, write_image: WriteImage
) -> None:
    broken = []
    for name in ("cats", "dogs", "owls"):
        for number in range(3):
            path = write_image(tmp_path / "mine" / name / f"{number}.png")
            if name != "owls" and number:
                path.write_bytes(b"no picture")
                broken.append(path)
    done = hidra("prepare", "folder", "--source", tmp_path / "mine", "--cache-dir", tmp_path / "c")
    assert_refused(done, 3, *map(str, broken))


def test_broken_pictures_are_left_out_of_a_prepared_file_where_that_is_asked(
    hidra: Hidra, tmp_path: Path, write_image: WriteImage
) -> None:
    for name in ("cats", "dogs", "owls"):
        for number in range(3):
            write_image(tmp_path / "mine" / name / f"{number}.png")
    (tmp_path / "mine" / "dogs" / "1.png").write_bytes(b"no picture")
    prepare = ["prepare", "folder", "--source", tmp_path / "mine", "--cache-dir", tmp_path / "c"]
    assert_refused(hidra(*prepare), 3, "--skip-broken")
    done = hidra(*prepare, "--skip-broken", "--json")
    assert (done.code, done.json["skipped"]) == (0, 1)
    assert sum(done.json["images"].values()) == 8
    assert "1 images that cannot be read are left out" in done.err
    assert hidra(*prepare, "--json").json["prepared_now"] is False
    for number in (0, 2):
        (tmp_path / "mine" / "dogs" / f"{number}.png").write_bytes(b"")
    assert_refused(hidra(*prepare, "--skip-broken"), 3, "'dogs' has no image that can be read")
    done = hidra("prepare", "glyphs", *TINY_DATA, "--cache-dir", tmp_path / "c", "--skip-broken")
    assert_refused(done, 2, "glyphs", "leave --skip-broken out")


def test_ones_own_folder_that_changed_is_noticed(
    hidra: Hidra, tmp_path: Path, write_image: WriteImage
) -> None:
    mine = tmp_path / "mine"
    for number in range(12):
        write_image(mine / f"class{number}" / "one.png")
    prepare = ["prepare", "folder", "--source", mine, "--data-opt=size=16", "--json"]
    cache = ["--cache-dir", tmp_path / "cache"]
    first = hidra(*prepare, *cache).json
    assert hidra(*prepare, *cache).json["prepared_now"] is False
    write_image(mine / "class3" / "two.png")
    done = hidra("meta-train", "--dataset=folder", "--source", mine, "--data-opt=size=16", *cache)
    assert_refused(done, 3, "has changed since it was prepared", f"--source {mine}")
    second = hidra(*prepare, *cache).json
    assert second["prepared_now"] is True
    assert sum(second["images"].values()) == sum(first["images"].values()) + 1


@pytest.mark.parametrize("command", ["evaluate", "adapt"])
def test_a_checkpoint_that_is_none(
    hidra: Hidra, runs_dir: Path, tmp_path: Path, command: str
) -> None:
    flag = [] if command == "evaluate" else ["--checkpoint"]
    assert_refused(hidra(command, *flag, tmp_path / "no"), 3, "is not a run", "does not exist")
    assert_refused(hidra(command, *flag, tmp_path), 3, "is not a run", "no checkpoint")
    if command == "evaluate":  # adapt takes the model that ships with hidra
        assert_refused(hidra(command, "--runs-dir", tmp_path), 3, "there is no run under")
    whole = (runs_dir / "hidra" / "checkpoints" / "best.safetensors").read_bytes()
    for content in (b"", b"hello", whole[:1000], whole[:-7]):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        assert_refused(hidra(command, *flag, path), 3, "broken.safetensors", "damaged")


def test_a_fixed_way_model_asked_for_other_ways(
    hidra: Hidra, runs_dir: Path, cache_dir: Path
) -> None:
    place = ["--cache-dir", cache_dir]
    done = hidra("evaluate", runs_dir / "maml3", "--ways=2,5", *place)
    assert_refused(done, 2, "serves only the number of ways it was trained for (3)", "--ways 3")
    done = hidra("adapt", "--checkpoint", runs_dir / "maml3", "--ways=7", *place)
    assert_refused(done, 2, "cosine, hidra, hidra-prototypes, protomaml, random, ridge, zero")


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--ways=13"], 3, "too few classes in its test split"),
        (["--ways=2", "--shots=20"], 3, "too few images"),
        (["--ways=5-2"], 2, "the range 5-2 is empty"),
        (["--ways=0"], 2, "0 is not positive"),
        (["--ways=1"], 2, "at least 2 ways"),
    ],
)
def test_evaluate_refuses_what_cannot_be_drawn(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, flags: list[str], code: int, said: str
) -> None:
    places = ["--cache-dir", cache_dir, "--episodes=2", "--queries=1"]
    assert_refused(hidra("evaluate", runs_dir / "hidra", *flags, *places), code, said)


@pytest.mark.parametrize("flags", [["--ways=0"], ["--ways=-2"], ["--ways=3", "--shots=0"]])
def test_adapt_refuses_zero_and_negative_numbers(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, flags: list[str]
) -> None:
    done = hidra("adapt", "--checkpoint", runs_dir / "hidra", *flags, "--cache-dir", cache_dir)
    assert_refused(done, 2, "cannot be drawn", "at least 2 ways and 1 shot")


def test_plugins_show_of_something_unknown(hidra: Hidra) -> None:
    assert hidra("plugins", "show", "haed", "hidra").code == 2
    for command in ("show", "check"):
        assert_refused(hidra("plugins", command, "head", "mamml"), 2, "did you mean 'maml'?")


def test_debug_adds_the_traceback(hidra: Hidra) -> None:
    assert "Traceback" in hidra("plugins", "show", "head", "none-such", "--debug").err


@pytest.mark.parametrize("command", ["evaluate", "adapt"])
def test_options_of_a_dataset_that_is_not_named_are_refused(
    hidra: Hidra, runs_dir: Path, cache_dir: Path, command: str
) -> None:
    places = ["--runs-dir", runs_dir, "--cache-dir", cache_dir]
    done = hidra(command, "--data-opt=size=16", *places)
    assert_refused(done, 2, "--dataset names none", "--dataset glyphs")
