"""How people's own pictures are read: what is said of them, and what the classifier keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.classifier import load_classifier

from ..conftest import Finished, Hidra
from .conftest import CLASSES
from .test_bad_input import assert_refused

Ink = npt.NDArray[np.uint8]
Save = Callable[[Ink, Path], None]


@pytest.fixture
def draw(tiny_images: PreparedImages, tmp_path: Path) -> Callable[[Save, str], Path]:
    """`draw(save)` makes a folder of four glyphs, each picture saved by `save(ink, path)`."""

    def run(save: Save, place: str = "support", ending: str = ".png") -> Path:
        table = tiny_images.table("test")
        for index, name in enumerate(CLASSES):
            for number in range(3):
                path = tmp_path / place / name / f"{number}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                save(tiny_images.images[table.first[index] + number, 0], path)
        return tmp_path / place

    return run


@pytest.fixture
def learn(hidra: Hidra, runs_dir: Path, tmp_path: Path) -> Callable[..., Finished]:
    def run(support: Path, *flags: str | Path) -> Finished:
        run = ["--checkpoint", runs_dir / "hidra", "--out", tmp_path / "made", "--json"]
        return hidra("adapt", "--support", support, *run, *flags)

    return run


def black_on_white(ink: Ink, path: Path) -> None:
    Image.fromarray(255 - ink).save(path)


def white_on_transparency(ink: Ink, path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    image.putalpha(Image.fromarray(ink))
    image.save(path)


def in_twelve_bits(ink: Ink, path: Path) -> None:
    Image.fromarray((255 - ink).astype(np.uint16) * 16).save(path)


def mask(ink: Ink, path: Path) -> None:
    Image.fromarray((ink < 128).astype(np.uint8)).save(path)


def signed(ink: Ink, path: Path) -> None:
    Image.fromarray(1 - ink.astype(np.float32) / 127.5).save(path)


def at_one_end(ink: Ink, path: Path) -> None:
    sheet = Image.new("L", (48, 16), 255)
    sheet.paste(Image.fromarray(255 - ink))
    sheet.save(path)


def support_of(done: Finished) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(done.json["classifier"])["support.images"]


@pytest.mark.parametrize(
    ("save", "ending", "flags", "said"),
    [
        (in_twelve_bits, ".png", [], "integers: 0 is black and 4095 is white"),
        (mask, ".png", [], "values of 8 bits: 0 is black and 1 is white"),
        (signed, ".tif", [], "floating-point numbers: -1 is black and 1 is white"),
        (in_twelve_bits, ".png", ["--value-range=0:4080"], "0 is black and 4080 is white"),
        (white_on_transparency, ".png", ["--background=black"], ""),
        (at_one_end, ".png", ["--fit=pad"], ""),
        (at_one_end, ".png", ["--fit=stretch"], ""),
    ],
)
def test_pictures_of_every_kind_are_seen(
    draw: Callable[..., Path], learn: Callable[..., Finished], save: Save, ending: str,
    flags: list[str], said: str,
) -> None:  # fmt: skip
    """None of them is learned as one grey, and predictions read others alike."""
    done = learn(draw(save, ending=ending), *flags)
    assert done.code == 0, done.err
    images = support_of(done).flatten(1)
    assert (images.amax(1).int() - images.amin(1).int() > 40).all()
    notes = "\n".join(done.json["audit"]["notes"])
    assert said in notes
    assert "almost one grey" not in notes
    kept = load_classifier(Path(done.json["classifier"]), torch.device("cpu")).preprocessing
    assert [kept.fit] == [flag[6:] for flag in flags if "fit" in flag] or kept.fit == "crop"


@pytest.mark.parametrize(
    ("save", "hint"), [(white_on_transparency, "--background black"), (at_one_end, "--fit pad")]
)
def test_pictures_of_one_grey_are_refused_with_what_helps(
    draw: Callable[..., Path], learn: Callable[..., Finished], save: Save, hint: str
) -> None:
    assert_refused(learn(draw(save)), 3, "all 12 support pictures hold almost one grey", hint)


def test_some_pictures_of_one_grey_are_named(
    draw: Callable[..., Path], learn: Callable[..., Finished]
) -> None:
    support = draw(black_on_white)
    Image.new("L", (20, 20), 200).save(support / "ash" / "blank.png")
    Image.new("L", (20, 20), 210).save(support / "ash" / "grey.png")
    done = learn(support)
    assert "2 pictures (" in done.err
    assert "blank.png" in done.err
    assert "almost one grey" in "\n".join(done.json["audit"]["notes"])


def test_ends_that_are_cut_off_are_told(
    draw: Callable[..., Path], learn: Callable[..., Finished]
) -> None:
    def wide(ink: Ink, path: Path) -> None:
        sheet = Image.new("L", (32, 16), 255)
        sheet.paste(Image.fromarray(255 - ink), (8, 0))
        sheet.save(path)

    notes = "\n".join(learn(draw(wide)).json["audit"]["notes"])
    assert "the ends of 12 of 12 pictures are cut off, up to 50 % of one: --fit pad" in notes


def test_broken_pictures_are_all_named_or_left_out_and_counted(
    draw: Callable[..., Path], learn: Callable[..., Finished], hidra: Hidra
) -> None:
    support = draw(black_on_white)
    for name in ("broken.png", "worse.png"):
        (support / "ash" / name).write_bytes(b"no picture")
    done = learn(support)
    assert_refused(done, 3, "2 of 14 pictures cannot be read", "broken.png", "worse.png")
    done = learn(support, "--skip-broken")
    assert done.code == 0, done.err
    assert done.json["classes"]["ash"] == 3
    assert {Path(path).name for path in done.json["audit"]["damaged"]} == {
        "broken.png",
        "worse.png",
    }
    answers = hidra("predict", done.json["classifier"], support, "--json", "--skip-broken")
    assert answers.code == 0, answers.err
    assert len(answers.json["predictions"]) == 12
    assert len(answers.json["damaged"]) == 2


def test_a_class_with_one_picture_left_is_learned_by_the_expected_model(
    draw: Callable[..., Path], hidra: Hidra, tmp_path: Path
) -> None:
    """Without --checkpoint the shipped models compete on held-out pictures; here none can be."""
    support = draw(black_on_white)
    for name in ("1.png", "2.png"):
        (support / "ash" / name).write_bytes(b"no picture")
    done = hidra("adapt", "--support", support, "--skip-broken", "--out", tmp_path / "m", "--json")
    assert done.code == 0, done.err
    assert done.json["classes"]["ash"] == 1


def test_a_class_whose_pictures_are_all_broken_is_refused(
    draw: Callable[..., Path], learn: Callable[..., Finished]
) -> None:
    support = draw(black_on_white)
    for path in (support / "ash").iterdir():
        path.write_bytes(b"no picture")
    assert_refused(learn(support, "--skip-broken"), 3, "no picture of the class 'ash'")


def test_a_jpeg_that_lacks_its_end_is_used_and_told(
    draw: Callable[..., Path], learn: Callable[..., Finished]
) -> None:
    support = draw(black_on_white)
    path = support / "ash" / "short.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    done = learn(support)
    assert done.code == 0, done.err
    assert "short.jpg) lack the end of their JPEG file" in done.err
    assert done.json["classes"]["ash"] == 4


def test_large_pictures_follow_the_limit(
    draw: Callable[..., Path], learn: Callable[..., Finished], hidra: Hidra
) -> None:
    support = draw(black_on_white)
    done = learn(support, "--max-pixels=200")
    assert_refused(done, 3, "it has 256 pixels, and the limit is 200", "--max-pixels N")
    made = learn(support).json["classifier"]
    done = hidra("predict", made, support, "--max-pixels=200", "--json")
    assert_refused(done, 3, "12 of 12 pictures could not be read")


def test_heic_is_read_where_the_extra_is(
    draw: Callable[..., Path], learn: Callable[..., Finished]
) -> None:
    pytest.importorskip("pillow_heif")
    from hidra_cli.api.folders import add_heic

    add_heic()

    def heic(ink: Ink, path: Path) -> None:
        Image.fromarray(255 - ink).resize((64, 64)).convert("RGB").save(path, "HEIF")

    done = learn(draw(heic, ending=".HEIC"))
    assert done.code == 0, done.err
    assert done.json["classes"] == dict.fromkeys(CLASSES, 3)
    images = support_of(done).flatten(1)
    assert (images.amax(1).int() - images.amin(1).int() > 100).all()


def test_a_query_that_was_learned_is_told(
    draw: Callable[..., Path], learn: Callable[..., Finished]
) -> None:
    support, query = draw(black_on_white), draw(black_on_white, "query")
    for name in ("1.png", "2.png"):
        (query / "ash" / name).unlink()
    done = learn(support, "--query", query)
    assert "10 query pictures are among those learned" in done.err
    pairs: list[dict[str, Any]] = done.json["audit"]["duplicates"]
    assert sum(pair["parts"] == ["support", "query"] for pair in pairs) == 10


def test_an_empty_class_in_the_query_is_no_error_and_labels_may_be_a_file(
    draw: Callable[..., Path], learn: Callable[..., Finished]
) -> None:
    support, query = draw(black_on_white), draw(black_on_white, "query")
    for path in (query / "ash").iterdir():
        path.unlink()
    done = learn(support, "--query", query)
    assert done.code == 0, done.err
    assert done.json["accuracy_per_class"]["ash"] is None
    file = query.parent / "q.tsv"
    lines = [f"{path.relative_to(query)}\tbirch" for path in (query / "birch").iterdir()]
    file.write_text("\n".join(["Picture\tClass", *lines]))
    done = learn(support, "--query", query, "--query-labels", file, "--force")
    assert done.code == 0, done.err
    assert np.sum(done.json["confusion"]) == 3
    assert done.json["audit"]["left_out"]["query"] == {"images without a label": 6}
    assert_refused(learn(support, "--query-labels", file), 2, "--query-labels needs --query")


def test_mislabelled_pictures_are_asked_about(
    draw: Callable[..., Path], hidra: Hidra, tmp_path: Path
) -> None:
    """With the model that ships: one picture in the wrong folder."""
    support = draw(black_on_white)
    for number in range(3):
        path = support / "ash" / f"{number}.png"
        image = Image.open(path)
        for turn in (1, 2):
            image.rotate(3 * turn, fillcolor=255).save(path.with_name(f"{number}{turn}.png"))
    (support / "ash" / "02.png").rename(support / "birch" / "wrong.png")
    done = hidra(
        "adapt", "--support", support, "--checkpoint", "omniglot-any", "--out", tmp_path / "made",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    suspects = done.json["audit"]["mislabelled"]
    assert [(Path(s["picture"]).name, s["class"], s["predicted"]) for s in suspects] == [
        ("wrong.png", "birch", "ash")
    ]


def test_a_classifier_that_does_not_know_its_own_pictures_says_so(
    draw: Callable[..., Path], learn: Callable[..., Finished], runs_dir: Path
) -> None:
    support = draw(black_on_white)
    for name in CLASSES:  # every class holds the same pictures of noise
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(noise).save(support / name / f"{number}.png")
    done = learn(support, "--steps=40")
    losses = done.json["support_loss_per_step"]
    assert ("does not know the pictures" in done.err) == (losses[-1] > np.log(4) + 1e-3)
