"""`hidra average`: the mean of models that were trained on from one start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hidra_cli.jobs.average import _mean, average_models
from hidra_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from hidra_cli.runs.model import load_model

from ..conftest import TINY_RUN, Hidra
from .test_bad_input import assert_refused


def changed(model: Path, to: Path, **entries: object) -> Path:
    """A copy of a checkpoint with other weights, and with other entries."""
    old = load_checkpoint(model)
    meta = {name: of for name, of in old.meta.items() if not name.startswith("format")}
    tensors = {name: tensor + 1 for name, tensor in old.tensors.items()}
    save_checkpoint(to, tensors, meta | entries)
    return to


@pytest.fixture
def best(runs_dir: Path) -> Path:
    return runs_dir / "hidra" / "checkpoints" / "best.safetensors"


def test_runs_from_one_start(hidra: Hidra, runs_dir: Path, cache_dir: Path, tmp_path: Path) -> None:
    start, places = runs_dir / "hidra", ["--runs-dir", tmp_path, "--cache-dir", cache_dir]
    for seed, ways in ((1, "2-4"), (2, "2-6")):
        on = [f"--start-from={start}", f"--seed={seed}", f"--name=on{seed}", f"--ways={ways}"]
        assert hidra("meta-train", *TINY_RUN, *places, *on, "-q").code == 0
    out = tmp_path / "mean.safetensors"
    runs = [tmp_path / "on2", tmp_path / "on1", start]
    done = hidra("average", *runs, "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.json["averaged"] == str(out)
    of = [load_checkpoint(Path(model["checkpoint"])) for model in done.json["models"]]
    assert [model["sha256"] for model in done.json["models"]] == [one.sha256 for one in of]

    mean = load_checkpoint(out)
    assert mean.tensors.keys() == {name for name in of[0].tensors if name.startswith("model.")}
    for name, tensor in mean.tensors.items():
        exact = torch.stack([one.tensors[name].double() for one in of]).sum(0) / 3
        torch.testing.assert_close(tensor, exact.float(), rtol=1e-7, atol=0)
        assert tensor.dtype == of[0].tensors[name].dtype
    assert mean.meta["settings"] == of[0].meta["settings"], "of the one with the most classes"
    assert mean.meta["max_ways"] == 6
    assert [one["sha256"] for one in mean.meta["average_of"]] == [one.sha256 for one in of]

    compare = ["--ways=3", "--episodes=4", "--queries=2", "--out", tmp_path / "compared"]
    tested = hidra("evaluate", out, start, *compare, "--cache-dir", cache_dir, "--json")
    assert tested.code == 0, tested.err
    assert [row["model"] for row in tested.json["results"]] == ["mean", "hidra"]
    again = [*TINY_RUN, *places, f"--start-from={out}", "--ways=2-6", "--name=again", "-q"]
    assert hidra("meta-train", *again).code == 0


def test_the_order_does_not_matter(best: Path, tmp_path: Path) -> None:
    other = changed(best, tmp_path / "other.safetensors")
    there, _, _ = average_models([best, other])
    back, _, _ = average_models([other, best])
    start = load_checkpoint(best).tensors
    for name, tensor in there.items():
        assert torch.equal(tensor, back[name])
        torch.testing.assert_close(tensor, start[name] + 0.5)


def test_rates_are_averaged_as_logarithms(hidra: Hidra, cache_dir: Path, tmp_path: Path) -> None:
    places = ["--runs-dir", tmp_path, "--cache-dir", cache_dir]
    learned = ["--rates=learned", "--ways=2-5", "--name=learned", "-q"]
    assert hidra("meta-train", *TINY_RUN, *places, *learned).code == 0
    run, out = tmp_path / "learned", tmp_path / "mean.safetensors"
    other = changed(run / "checkpoints" / "best.safetensors", tmp_path / "other.safetensors")
    assert hidra("average", run, other, "--out", out).code == 0
    rates = []
    for path in (run, other, out):
        learner = load_model(path, torch.device("cpu")).learner
        assert learner.rates is not None
        rates.append(torch.as_tensor(learner.rates.at(0).head))
    torch.testing.assert_close(rates[2], (rates[0] * rates[1]).sqrt())


def test_counters_are_of_one_model() -> None:
    """A backbone's BatchNorm may count its batches: half a batch is none."""
    weights = [{"seen": torch.tensor(count), "w": torch.tensor(float(count))} for count in (3, 4)]
    assert _mean(weights, last=1) == {"model.seen": torch.tensor(4), "model.w": torch.tensor(3.5)}


def test_what_has_no_mean(hidra: Hidra, runs_dir: Path, best: Path, tmp_path: Path) -> None:
    run, out = runs_dir / "hidra", tmp_path / "mean.safetensors"
    elsewhere = changed(best, tmp_path / "elsewhere.safetensors", dataset_hash="0" * 64)
    settings = load_checkpoint(best).meta["settings"]
    settings["model"]["normalization"] = "transductive"
    leaking = changed(best, tmp_path / "leaking.safetensors", settings=settings)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(best.read_bytes()[:-1])
    copy = shutil.copy(best, tmp_path / "copy.safetensors")
    for code, models, said in (
        (2, [run], ["the mean of 1 model", "hidra average runs/one runs/two"]),
        (2, [run, copy], ["are the same model", "name each model once"]),
        (2, [run, runs_dir / "zero"], ["model.head is hidra and zero"]),
        (2, [run, elsewhere], ["dataset_hash is", "trained on the same data"]),
        (2, [run, leaking], ["model.normalization is support and transductive"]),
        (3, [run, tmp_path / "none"], ["is not a run"]),
        (3, [run, damaged], ["is damaged"]),
    ):
        assert_refused(hidra("average", *models, "--out", out), code, *said)
        assert not out.exists()


def test_where_it_cannot_be_written(hidra: Hidra, best: Path, tmp_path: Path) -> None:
    other = changed(best, tmp_path / "other.safetensors")
    before = other.read_bytes()
    assert_refused(hidra("average", best, other, "--out", other), 2, "would be overwritten")
    assert other.read_bytes() == before
    (tmp_path / "file").write_text("in the way")
    nowhere = tmp_path / "file" / "mean.safetensors"
    assert_refused(hidra("average", best, other, "--out", nowhere), 1, str(nowhere))
