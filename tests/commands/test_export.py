"""`hidra export`: a classifier as a program of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hidra_cli.api.data import Fit
from hidra_cli.api.decoding import read_picture
from hidra_cli.api.preprocessing import FITS, Preprocessing, ValueRanges, fixed_ranges
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.jobs.classifier import Classifier, load_classifier, save_classifier
from hidra_cli.jobs.export import in_float32
from hidra_cli.jobs.one_task import adapt_task
from hidra_cli.runs.model import load_model
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.shape import TaskShape

from ..api.test_plugin_faults import HEAD, Install, changed
from ..api.test_plugin_faults import install as install  # a fixture
from ..conftest import TINY_DATA, TINY_MODEL, TINY_OPTIONS, Hidra
from .test_bad_input import assert_refused

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CLASSES = ("ash", "birch\n", "ça", "d")
FORMATS = ("onnx", "pt2")
_LOGITS = 'return features @ fast_weights["weight"].T'
_SHAPE = (1, TINY_OPTIONS["size"], TINY_OPTIONS["size"])


def need(form: str) -> None:
    if form == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"ONNX needs {name}: pip install '.[onnx]'")


@pytest.fixture
def saved(tiny_images: PreparedImages, tmp_path: Path) -> Callable[[Path], Path]:
    """`saved(run)` adapts the model of a run to four classes and gives the classifier's file."""

    def save(run: Path) -> Path:
        model = load_model(run, CPU, steps=2)
        sampler = ImageSampler(tiny_images, "test", (4,), (3,), 2, seed=0, device=CPU)
        task = sampler.batch([0], TaskShape(4, 3)).task(0)
        path = tmp_path / "made" / "classifier.safetensors"
        path.parent.mkdir()
        save_classifier(path, model, adapt_task(model, task).weights, task, CLASSES)
        return path

    return save


@pytest.fixture
def classifier(saved: Callable[[Path], Path], runs_dir: Path) -> Path:
    return saved(runs_dir / "hidra")


@pytest.fixture(scope="session")
def hundred(tiny_images: PreparedImages) -> Tensor:
    """One hundred images, of which 60 are drawings and 40 noise."""
    drawings = torch.from_numpy(np.ascontiguousarray(tiny_images.images[:60])).float() / 255
    return torch.cat([drawings, torch.rand(40, *_SHAPE, generator=torch.Generator())])


def opened(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """An exported file as its user opens it: the program, and its metadata."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        facts = session.get_modelmeta().custom_metadata_map

        def run(images: Tensor) -> Tensor:
            (found,) = session.run(["probabilities"], {"images": images.numpy()})
            return torch.from_numpy(found)
    else:
        names = (
            "classes",
            "image_shape",
            "invert",
            "normalization",
            "smallest_batch",
            "preprocessing",
        )
        facts = dict.fromkeys((*names, "provenance", "hidra_export"), "")
        run = torch.export.load(path, extra_files=facts).module()
    return run, {name: json.loads(value) for name, value in facts.items()}


def assert_same(path: Path, classifier: Classifier, images: Tensor) -> None:
    run, facts = opened(path)
    sizes = (2, 5, 93) if facts["normalization"] == "transductive" else (1, 3, 96)
    for batch in torch.split(images, list(sizes)):
        found = run(batch)
        assert found.shape == (len(batch), len(CLASSES))
        assert torch.allclose(found, classifier.probabilities(batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_the_program_predicts_as_the_classifier(
    hidra: Hidra, classifier: Path, hundred: Tensor, form: str
) -> None:
    need(form)
    done = hidra("export", classifier, "--format", form, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    path = classifier.with_suffix(f".{form}")
    assert done.json["exported"] == str(path)
    assert done.json["bytes"] == path.stat().st_size
    assert 0 <= done.json["largest_difference"] <= 1e-4
    assert done.json["batch_sizes"][0] == 1
    original = load_classifier(classifier, CPU)
    assert_same(path, original, hundred)
    run, _ = opened(path)
    alone = torch.cat([run(image[None]) for image in hundred[:9]])
    assert torch.allclose(alone, run(hundred)[:9], atol=1e-5), "the statistics are constants"


@pytest.mark.parametrize("flag", ["--normalization=transductive", "--precision=bfloat16"])
def test_what_differs_from_the_classifier_is_told(
    hidra: Hidra, saved: Callable[[Path], Path], cache_dir: Path, hundred: Tensor, tmp_path: Path,
    flag: str,
) -> None:  # fmt: skip
    done = hidra(
        "meta-train", *TINY_DATA, *TINY_MODEL, "--ways=3", "--iterations=2", "--test-episodes=0",
        "--validation-episodes=2", flag, "--name=run", "-q", "--cache-dir", cache_dir,
        "--runs-dir", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    path = saved(tmp_path / "run")
    original = in_float32(load_classifier(path, CPU))
    for form in FORMATS:
        need(form)
        done = hidra("export", path, "--format", form, "--json")
        assert done.code == 0, done.err
        assert_same(path.with_suffix(f".{form}"), original, hundred)
        _, facts = opened(path.with_suffix(f".{form}"))
        if "transductive" in flag:
            assert "depend on which images are predicted together" in done.err
            assert min(done.json["batch_sizes"]) == facts["smallest_batch"] == 2
        else:
            assert "it predicts in bfloat16; the program does in float32" in done.err
            assert min(done.json["batch_sizes"]) == facts["smallest_batch"] == 1


@pytest.mark.parametrize("form", FORMATS)
def test_the_file_explains_itself(hidra: Hidra, classifier: Path, form: str) -> None:
    need(form)
    path = classifier.with_name(f"other.{form}")
    assert hidra("export", classifier, "--out", path, "--format", form).code == 0
    _, facts = opened(path)
    provenance = facts.pop("provenance")
    assert facts == {
        "classes": list(CLASSES), "image_shape": list(_SHAPE), "invert": False,
        "preprocessing": json.loads(json.dumps(Preprocessing(_SHAPE).record())),
        "normalization": "support", "smallest_batch": 1, "hidra_export": 2,
    }  # fmt: skip
    assert provenance["classifier"] == "classifier.safetensors"
    assert provenance["plugins"]["head"]["name"] == "hidra"
    content = path.read_bytes()
    assert str(ROOT).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content
    assert hidra("export", classifier, "--out", path, "--format", form).code == 0
    assert path.read_bytes() == content


def test_an_onnx_file_is_valid_for_any_number_of_images(hidra: Hidra, classifier: Path) -> None:
    need("onnx")
    import onnx

    assert hidra("export", classifier).code == 0
    model = onnx.load(classifier.with_suffix(".onnx"))
    onnx.checker.check_model(model, full_check=True)
    for value, name in ((model.graph.input, "images"), (model.graph.output, "probabilities")):
        assert [v.name for v in value] == [name]
        assert value[0].type.tensor_type.shape.dim[0].dim_param == "n"


def test_a_missing_extra_is_named(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxscript.py").write_text("raise ImportError('No module named onnxscript')")
    environ = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hidra_cli.app", "export", str(classifier)]
    done = subprocess.run(command, env=environ, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "fix: pip install 'hidra-cli[onnx]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(classifier.parent.iterdir()) == [classifier]


# What a head does with its features, the format, and what is told of it.
UNFIT = {
    "looping": (
        "torch.stack([row for row in features])",
        "pt2",
        ["head 'looping' of looping-dist 1.5 cannot be exported", "torch.export cannot trace"],
    ),
    "gamma": (
        "torch.lgamma(features.abs() + 1)",
        "onnx",
        ["head 'gamma' of gamma-dist 1.5 cannot be written as ONNX", "lgamma", "--format pt2"],
    ),
    # Another function while it is exported: a head that keeps a memory is refused before training.
    "two-faced": (
        "features * (2 if torch.compiler.is_exporting() else 1)",
        "pt2",
        ["the exported program is not the classifier: they differ by", "keeps a memory"],
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_head_that_cannot_be_exported_is_named(
    hidra: Hidra,
    install: Install,
    saved: Callable[[Path], Path],
    cache_dir: Path,
    tmp_path: Path,
    name: str,
) -> None:
    code, form, told = UNFIT[name]
    need(form)
    install("head", name, changed(HEAD, _LOGITS, _LOGITS.replace("features", code)))
    done = hidra(
        "meta-train", *TINY_DATA, *TINY_MODEL, f"--head={name}", "--ways=2-4", "--iterations=1",
        "--test-episodes=0", "--validation-episodes=2", "--name=run", "-q",
        "--cache-dir", cache_dir, "--runs-dir", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    path = saved(tmp_path / "run")
    target = path.with_suffix(f".{form}")
    target.write_text("older")
    done = hidra("export", path, "--out", target, "--format", form, "--json")
    assert_refused(done, 1, *told)
    assert done.out == ""
    assert target.read_text() == "older"
    assert sorted(path.parent.iterdir()) == sorted([path, target])


def test_bad_files_are_refused(
    hidra: Hidra, classifier: Path, runs_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.safetensors").write_text("no classifier")
    pt2 = "--format=pt2"
    assert_refused(hidra("export", tmp_path / "text.safetensors", pt2), 3, "is damaged")
    assert_refused(hidra("export", tmp_path / "none.safetensors", pt2), 3, "there is no")
    run = runs_dir / "hidra" / "checkpoints" / "last.safetensors"
    assert_refused(hidra("export", run, pt2, "--out", tmp_path / "a.pt2"), 3, "hidra-classifier")
    assert_refused(hidra("export", classifier, pt2, "--out", classifier), 2, "is the classifier")
    lost = tmp_path / "text.safetensors" / "a.pt2"
    assert_refused(hidra("export", classifier, "--out", lost), 1, "could not be written")
    assert not list(tmp_path.rglob("*.pt2"))


def test_a_full_disk_leaves_nothing(hidra: Hidra, classifier: Path, small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(250_000))
    done = hidra("export", classifier, "--out", small_disk / "a.pt2")
    assert_refused(done, 1, "could not be written", "No space left")
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def programs_of_the_page() -> list[str]:
    """The Python of docs/export.md: with onnxruntime, and with PyTorch."""
    page = (ROOT / "docs" / "export.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def odd_pictures(folder: Path) -> list[Path]:
    """Pictures that are stored in other ways than as 8-bit values, upright and square."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    soft = Image.fromarray(generator.integers(0, 256, (6, 9), np.uint8)).resize((45, 30))
    grey = np.asarray(soft)
    clear = Image.merge("LA", [soft, soft.rotate(180)])
    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = grey.astype(np.uint16) * 257
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.png": (soft, {}),
        "clear.png": (clear, {}),
        "ink.png": (clear.convert("RGBA"), {}),
        "palette.png": (soft.convert("P"), {"transparency": 3}),
        "sixteen.png": (Image.fromarray(sixteen), {}),
        "sixteen-clear.png": (Image.fromarray(sixteen), {"transparency": int(sixteen[9, 9])}),
        "big-endian.tif": (Image.fromarray(sixteen.astype(">u2")), {}),
        "signed.tif": (Image.fromarray(sixteen.astype(np.int32) - 9000), {}),
        "float.tif": (Image.fromarray(grey.astype(np.float32) / 200), {}),
        "mask.png": (Image.fromarray(grey // 128), {}),
        "turned.jpg": (soft.convert("RGB"), {"exif": exif}),
        "cmyk.jpg": (soft.convert("CMYK"), {}),
        "wide.png": (soft.convert("RGB").resize((300, 20)), {}),
        "small.gif": (soft.resize((3, 5)), {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    with Image.open(folder / "big-endian.tif") as image:
        assert image.mode == "I;16B"
    return [folder / name for name in made]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_reads_a_picture_as_hidra_does(tmp_path: Path, fit: Fit, channels: int) -> None:
    need("onnx")
    definitions, _, _ = programs_of_the_page()[0].partition("session = ")
    page: dict[str, Any] = {}
    exec(compile(definitions, "export.md", "exec"), page)
    ranges = ValueRanges(integer=(-500, 60_000), floating=(0.1, 1.2))
    records = [
        Preprocessing((channels, 20, 24), fit=fit),
        Preprocessing((channels, 20, 24), True, fit, "black", ranges),
        Preprocessing((channels, 20, 24), True, fit, "#336699", fixed_ranges(0, 1)),
    ]
    for path in odd_pictures(tmp_path / "pictures"):
        for wanted in records:
            found = page["read"](path, json.loads(json.dumps(wanted.record())))
            expected = read_picture(path, wanted).pixels
            assert found.dtype == np.float32
            assert np.array_equal(np.rint(found * 255), expected), (path.name, wanted)


def test_the_examples_of_the_documentation_run(
    hidra: Hidra, classifier: Path, tmp_path: Path
) -> None:
    need("onnx")
    pictures = odd_pictures(tmp_path / "pictures")
    for form in FORMATS:
        assert hidra("export", classifier, "--format", form).code == 0
    shown = hidra("predict", classifier, *pictures, "--json").json["predictions"]
    for code in programs_of_the_page():
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, pictures)], cwd=classifier.parent, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if "onnxruntime" not in code:
            assert len(eval(done.stdout)) == 5
            continue
        # A class may have a line break in its name.
        told = re.findall(r"^(/.*)\t([^\t]*)\t(\S+)$", done.stdout, re.MULTILINE)
        for row, (path, label, probability) in zip(shown, told, strict=True):
            assert (path, label) == (row["image"], row["label"])
            assert float(probability) == pytest.approx(row["probability"], abs=1e-5)
