"""Runs: checkpoints that are whole or refused, directories never written over."""

import csv
import io
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hidra_cli.errors import DataError, RunError, UsageError
from hidra_cli.runs.checkpoint import load_checkpoint, optimizer_tensors, save_checkpoint
from hidra_cli.runs.directory import RunDir, create_run, default_run_name
from hidra_cli.runs.locate import find_checkpoint, latest_run
from hidra_cli.runs.metrics import MetricsFile
from hidra_cli.settings.schema import DatasetSettings, ModelSettings, Settings, TaskSettings
from hidra_cli.system.files import write_atomically, write_json

META = {"settings": {"run": {"seed": 3}}, "iteration": 12, "best": None, "list": [1, 2.5, "ü"]}


def example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.weight": torch.randn(5, 7, generator=generator),
        "model.double": torch.randn(3, dtype=torch.float64, generator=generator),
        "model.half": torch.randn(4, generator=generator).bfloat16(),
        "model.odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "optimizer.weight.step": torch.tensor(12.0),
        "count": torch.tensor([2**62, -1]),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def saved(path: Path) -> Path:
    save_checkpoint(path, example(), META)
    return path


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_checkpoint(path)
    assert caught.value.code == 3
    assert str(path) in caught.value.what
    return caught.value


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    found = load_checkpoint(saved(tmp_path / "c.safetensors"))
    expected = example()
    assert set(found.tensors) == set(expected)
    for name, tensor in found.tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert bits(tensor) == bits(expected[name]), name
    assert META.items() <= found.meta.items()
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]),
)
def test_tensors_of_any_shape_and_type_come_back(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], kind: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("any") / "c.safetensors"
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 99).to(kind)
    save_checkpoint(path, {"t": tensor, "turned": tensor.T if len(shape) == 2 else tensor + 1}, {})
    found = load_checkpoint(path).tensors
    assert found["t"].shape == tensor.shape
    assert torch.equal(found["t"], tensor)
    assert found["t"].dtype == kind


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    tensors = {"a": weight, "b": weight, "rows": weight[:3], "wide": weight[:1].expand(4)}
    save_checkpoint(tmp_path / "c.safetensors", tensors, {})
    found = load_checkpoint(tmp_path / "c.safetensors").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_parts_are_cut_by_their_prefix(tmp_path: Path) -> None:
    found = load_checkpoint(saved(tmp_path / "c.safetensors"))
    assert set(found.part("model")) == {"weight", "double", "half", "odd"}
    assert set(found.part("optimizer")) == {"weight.step"}
    assert found.part("mod") == {}


def test_the_optimizer_s_state_gets_the_names_of_its_parameters() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    (parameters[0].sum() + parameters[1].sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    found = optimizer_tensors(optimizer, ["body.a", "head.b"])
    assert set(found) == {
        f"optimizer.{name}.{key}"
        for name in ("body.a", "head.b")
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert found["optimizer.head.b.exp_avg"].shape == (3,)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path / "c.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "damaged" in refused(path).what


def test_a_checkpoint_with_any_bit_flipped_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors")
    content = path.read_bytes()
    undetected = []
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(path)
        except DataError:
            continue
        same = {n: bits(t) for n, t in found.tensors.items()} == {
            n: bits(t) for n, t in example().items()
        }
        if not (same and META.items() <= found.meta.items()):
            undetected.append(place)
    assert undetected == []


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    for content in (buffer.getvalue(), pickle.dumps({"a": 1}), b"text", b"", b"\0" * 99):
        path.write_bytes(content)
        refused(path)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "attacked"),))

    (tmp_path / "c.safetensors").write_bytes(pickle.dumps(Attack()))
    refused(tmp_path / "c.safetensors")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "header", [None, {"format": "pt"}, {"hidra": "null"}, {"hidra": "[1]"}, {"hidra": "{}"}]
)
def test_safetensors_of_others_are_refused(tmp_path: Path, header: dict[str, str] | None) -> None:
    from safetensors.torch import save

    path = tmp_path / "c.safetensors"
    path.write_bytes(save({"a": torch.ones(2)}, header))
    assert refused(path).what.endswith("was not written by hidra")


def test_other_formats_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {}, {"format_version": 0})
    error = refused(path)
    assert "version 0" in error.what
    assert "version 1" in error.why
    save_checkpoint(path, {}, {"format": "hidra-classifier"})
    assert "hidra-classifier" in refused(path).what
    assert load_checkpoint(path, "hidra-classifier").meta["format"] == "hidra-classifier"


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "there is no checkpoint" in refused(tmp_path / "none.safetensors").what
    assert "there is no checkpoint" in refused(tmp_path).what


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new content")
    assert path.read_bytes() == b"new content"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_atomically(path, b"old")
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from hidra_cli.errors import RunError\n"
        "from hidra_cli.runs.checkpoint import save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    save_checkpoint(Path(sys.argv[1]), {'a': torch.zeros(5000)}, {})\n"
        "except RunError as exc:\n"
        "    print(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"error: {path} could not be written\nwhy: File too large\n")
    assert "choose another place" in done.stdout
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not be written") as caught:
        write_atomically(tmp_path / "gone" / "file", b"x")
    assert caught.value.why == "No such file or directory"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not be written"):
        write_atomically(tmp_path / "file" / "x", b"x")


def test_json_is_written_readable_and_without_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": [1, None]})
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == {"a": [1, None]}
    assert text.endswith("\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "r.json", {"a": float("nan")})
    assert (tmp_path / "r.json").read_text() == text


def test_a_run_is_named_after_what_it_does() -> None:
    chosen = Settings(
        dataset=DatasetSettings(name="some-dist:glyphs"),
        tasks=TaskSettings(ways=(2, 3, 4, 9), shots=(1, 5)),
        model=ModelSettings(head="maml"),
    )
    assert re.fullmatch(
        r"\d{8}-\d{6}-some-dist_glyphs-maml-2-4,9w1,5s", default_run_name(chosen)
    ), default_run_name(chosen)


def test_a_run_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    run = create_run(tmp_path / "deep" / "runs", "mine", Settings())
    assert run.path == tmp_path / "deep" / "runs" / "mine"
    assert run.best.parent.is_dir()
    assert run.best.parent == run.last.parent


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    run = create_run(tmp_path, "mine", Settings())
    run.result.write_text("precious")
    with pytest.raises(UsageError, match="exists") as caught:
        create_run(tmp_path, "mine", Settings())
    assert str(run.path) in caught.value.what
    assert "--name" in caught.value.fix
    assert run.result.read_text() == "precious"


def test_runs_of_the_same_second_get_directories_of_their_own(tmp_path: Path) -> None:
    paths = [create_run(tmp_path, None, Settings()).path for _ in range(12)]
    assert len(set(paths)) == 12
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_many_numbers_of_ways_still_make_a_name_that_fits(tmp_path: Path) -> None:
    tasks = TaskSettings(ways=tuple(range(2, 400, 2)), shots=(1,))
    run = create_run(tmp_path, None, Settings(tasks=tasks))
    assert run.path.is_dir()
    assert len(run.path.name.encode()) <= 255


def test_a_place_for_runs_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not be written") as caught:
        create_run(tmp_path / "file", None, Settings())
    assert "--runs-dir" in caught.value.fix


def finished(runs_dir: Path, name: str, when: float, *, best: bool = True) -> RunDir:
    run = create_run(runs_dir, name, Settings())
    chosen = run.best if best else run.last
    chosen.write_bytes(b"x")
    os.utime(chosen, (when, when))
    return run


def test_the_newest_run_with_a_checkpoint_is_found(tmp_path: Path) -> None:
    finished(tmp_path, "z-old", 100)
    newest = finished(tmp_path, "a-new", 300, best=False)
    finished(tmp_path, "m-middle", 200)
    create_run(tmp_path, "without", Settings())
    (tmp_path / "notes.txt").write_text("no run")
    assert latest_run(tmp_path) == newest.path


def test_no_run_at_all_is_told(tmp_path: Path) -> None:
    create_run(tmp_path / "runs", "without", Settings())
    for place in (tmp_path / "runs", tmp_path / "nowhere"):
        with pytest.raises(DataError, match="there is no run under") as caught:
            latest_run(place)
        assert str(place) in caught.value.what
        assert "hidra meta-train" in caught.value.fix


def test_the_best_checkpoint_of_a_run_is_preferred(tmp_path: Path) -> None:
    run = finished(tmp_path, "mine", 100, best=False)
    assert find_checkpoint(run.path) == run.last
    run.best.write_bytes(b"x")
    assert find_checkpoint(run.path) == run.best
    assert find_checkpoint(run.last) == run.last


def test_what_is_no_run_is_told_apart(tmp_path: Path) -> None:
    create_run(tmp_path, "young", Settings())
    for name, why in (("young", "it has no checkpoint yet"), ("gone", "it does not exist")):
        with pytest.raises(DataError) as caught:
            find_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in caught.value.what
        assert caught.value.why == why
        assert "hidra meta-train" in caught.value.fix


def test_rows_of_metrics_are_on_disk_at_once(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv", ("iteration", "loss", "accuracy"))
    metrics.write({"iteration": 1, "loss": "0.5"})
    metrics.write({"iteration": 2, "loss": "0,4", "accuracy": 0.9})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    metrics.close()
    assert rows == [
        {"iteration": "1", "loss": "0.5", "accuracy": ""},
        {"iteration": "2", "loss": "0,4", "accuracy": "0.9"},
    ]


def test_metrics_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics\.csv could not be written"):
        MetricsFile(tmp_path / "gone" / "metrics.csv", ("a",))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", "a/"])
def test_a_name_that_is_no_name_of_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a directory"):
        create_run(tmp_path / "runs", name, Settings())
    assert not (tmp_path / "runs").exists()
