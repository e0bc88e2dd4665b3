"""The engine benchmark: the same gradient from all, wrong ones caught, what it writes."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.engine import agreement, engine
from benchmarks.engine.agreement import relative_error
from benchmarks.engine.contenders import CONTENDERS, Contender, ours
from benchmarks.engine.measuring import interleaved, work_of
from benchmarks.engine.peers import Gradients, Run
from benchmarks.engine.workloads import CPU, WORKLOADS, Case, Workload, find_workloads
from hidra_cli.engine.inner_loop import InnerLoop, Outcome
from hidra_cli.engine.strategies.base import Loop
from hidra_cli.engine.task_batch import TaskBatch
from hidra_cli.errors import RunError, UsageError

TINY = Workload(
    "tiny", side=8, channels=1, filters=4, ways=3, shots=1, tasks=2, steps=2, queries=2, blocks=2
)
EVERY = [replace(TINY, order=o, head=h) for o in (1, 2) for h in ("hidra", "maml")]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A workload of the command line that takes milliseconds."""
    monkeypatch.setitem(WORKLOADS, TINY.name, TINY)
    return TINY.name


def run(*arguments: str | Path) -> int:
    """The exit code of a command line of benchmarks/engine/engine.py."""
    with pytest.raises(SystemExit) as ended:
        engine.main([str(argument) for argument in arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def installed(name: str) -> Contender:
    contender = CONTENDERS[name]
    if not contender.installed:
        pytest.skip(f"{contender.package} is not installed: pip install '.[benchmarks]'")
    return contender


EXACT = [
    name
    for name, contender in CONTENDERS.items()
    if contender.precision == "float32" and not contender.on_request
]


@pytest.mark.parametrize("work", EVERY, ids=lambda work: work.name)
@pytest.mark.parametrize("name", [name for name in EXACT if name != "plain"])
def test_every_contender_computes_the_gradient_of_the_plain_loop(name: str, work: Workload) -> None:
    errors = agreement.check({name: installed(name)}, Case(work))[name]
    assert errors["float64"] == pytest.approx(0, abs=1e-12)
    assert errors["float32"] == pytest.approx(0, abs=1e-4), "undecided, or apart"


@pytest.mark.parametrize("name", EXACT)
def test_channels_last_changes_the_peers_layout_not_their_gradient(name: str) -> None:
    case = Case(TINY, peers_channels_last=True)
    error = agreement.check({name: installed(name)}, case)[name]["float64"]
    assert error == pytest.approx(0, abs=1e-12)


def test_the_gradients_that_are_compared_are_of_tasks_that_can_be_learned() -> None:
    """Not degenerate: there is something that the orders, the heads and the tasks change."""
    found = [CONTENDERS["plain"].build(Case(work, dtype=torch.float64))() for work in EVERY]
    first, second = found[0], found[2]
    assert relative_error(first, second) > 0.01
    assert all(torch.stack([g.norm() for g in f.values()]).norm() > 1e-2 for f in found)
    two = Case(replace(TINY, tasks=1), dtype=torch.float64)
    assert relative_error(CONTENDERS["plain"].build(two)(), second) > 0.1


def test_bfloat16_has_the_direction_of_float32() -> None:
    case = Case(replace(TINY, steps=1))
    reference = CONTENDERS["plain"].build(case)()
    for name in ("plain-bfloat16", "hidra-processes-bfloat16"):
        gradients = CONTENDERS[name].build(case)()
        assert agreement.cosine(gradients, reference) > 0.9
        assert relative_error(gradients, reference) > 1e-4, "it is float32, and would be exact"


def first_order(case: Case) -> Run:
    """What a strategy that forgets to differentiate twice computes."""
    return CONTENDERS["plain"].build(replace(case, workload=replace(case.workload, order=1)))


class Coarse(Loop):
    """Right in float64, but of rounded weights in float32."""

    def meta_gradient(self, batch: TaskBatch, inner: InnerLoop) -> Outcome:
        if self.learner.dtype == torch.float32:
            for parameter in self.learner.parameters():
                parameter.data = parameter.data.bfloat16().float()
        return super().meta_gradient(batch, inner)


def accumulating(case: Case) -> Run:
    """What is left over from a meta-step comes into the next."""
    once, total = CONTENDERS["plain"].build(case), dict[str, torch.Tensor]()

    def add() -> Gradients:
        for name, gradient in once().items():
            total[name] = total.get(name, torch.zeros(())) + gradient
        return dict(total)

    return add


@pytest.mark.parametrize(
    ("build", "precision"),
    [(first_order, "float64"), (ours(Coarse), "float32"), (accumulating, "float32")],
)
def test_a_wrong_contender_is_named_with_its_error_and_nothing_is_timed(
    build: Any,
    precision: str,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(CONTENDERS, "wrong", Contender(build, "wrong"))
    code = run("compare", "--workload", tiny, "--contender", "wrong", "--no-memory")
    out, err = capfd.readouterr()
    assert code == 1
    assert "error: wrong computes another meta-gradient than plain" in err
    assert f"{tiny} in {precision}: the relative error is " in err
    number = float(err.split("relative error is ")[1].split(",")[0])
    assert number > agreement.TOLERANCES[getattr(torch, precision)]
    assert out == ""


def test_float32_is_undecided_where_few_draws_are_left_and_none_agrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of so few a right contender may meet a jump on all; float64 is held to all the same."""
    monkeypatch.setattr(agreement, "_SINGLES", agreement._STEADY - agreement._PAIRS - 1)
    errors = agreement.check({"coarse": Contender(ours(Coarse), "")}, Case(TINY))["coarse"]
    assert errors["float64"] == pytest.approx(0, abs=1e-12)
    assert errors["float32"] is None


def test_errors_are_relative_to_each_parameter_and_to_all() -> None:
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}
    assert relative_error(one, one) == 0
    assert relative_error(one | {"b": torch.tensor([0.6])}, one) == pytest.approx(0.2)
    assert relative_error(one | {"a": torch.tensor([3.0, 4.5])}, one) == pytest.approx(0.1)
    with pytest.raises(RunError, match="not a number"):
        relative_error(one | {"b": torch.tensor([torch.nan])}, one)
    with pytest.raises(RunError, match="other parameters"):
        relative_error({"a": one["a"]}, one)


def test_the_json_has_all_that_was_measured(
    tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    big = torch.ones(2**28)  # 1 GiB of this process, which is none of the measured one's
    file = tmp_path / "all.json"
    chosen = [f"--contender={name}" for name in ("plain", "hidra-processes-bfloat16")]
    flags: list[str | Path] = ["--repetitions=2", "--seed=5", "--threads=1", "--json", file]
    assert run("compare", "--workload", tiny, *chosen, *flags) == 0
    found = json.loads(file.read_text())
    assert found["seed"] == 5
    assert (found["threads"], found["repetitions"], found["device"]) == (1, 2, "cpu")
    assert found["processor"]
    assert found["started"]
    assert found["command"]
    assert found["packages"]["torch"] == metadata.version("torch")
    (work,) = found["workloads"]
    assert work["name"] == tiny
    assert Workload(**work["workload"]) == TINY
    assert work["base"] == "plain", "without a library, the plain loop is the measure"
    assert set(work["matrix_rates"]) == {"float32", "bfloat16"}
    assert list(work["contenders"]) == ["plain", "hidra-processes-bfloat16"]
    for row in work["contenders"].values():
        assert len(row["seconds"]) == 2
        assert row["minimum"] <= row["median"] <= row["maximum"]
        assert row["speedup_minimum"] <= row["speedup_maximum"]
        assert row["meta_steps_per_second"] == pytest.approx(1 / row["median"])
        assert row["flops_per_second"] == pytest.approx(work["flops"] / row["median"])
        rate = work["matrix_rates"][row["precision"]]
        assert row["of_matrix_rate"] == pytest.approx(row["flops_per_second"] / rate)
        assert 0 < row["memory"]["growth"] < row["memory"]["peak"] < big.nbytes
    plain, other = work["contenders"].values()
    assert plain["speedup"] == 1
    assert plain["timed_cosine"] == pytest.approx(1)
    assert other["speedup"] == pytest.approx(plain["median"] / other["median"])
    assert other["errors"] is None, "bfloat16 is not held to the tolerance of float32"
    assert 0.5 < other["timed_cosine"] < 1
    out, _ = capfd.readouterr()
    assert tiny in out
    assert "hidra-processes-bfloat16" in out


def test_curves_are_drawn_over_ways_steps_and_tasks(tiny: str, tmp_path: Path) -> None:
    points = ["--ways=3", "--steps=1,2", "--tasks=2"]
    flags: list[str | Path] = [
        "--contender=hidra-loop",
        "--repetitions=1",
        "--out",
        tmp_path / "costs",
    ]
    assert run("curves", "--workload", tiny, *points, *flags) == 0
    found = json.loads((tmp_path / "costs.json").read_text())
    drawn = {axis: [p["workload"][axis] for p in at] for axis, at in found["axes"].items()}
    assert drawn == {"ways": [3], "steps": [1, 2], "tasks": [2]}
    rows = [p["contenders"]["hidra-loop"] for at in found["axes"].values() for p in at]
    assert all(row["median"] > 0 and row["memory"]["growth"] > 0 for row in rows)
    assert all(row["errors"]["float64"] < 1e-9 for row in rows)
    picture = Image.open(io.BytesIO((tmp_path / "costs.png").read_bytes()))
    assert picture.format == "PNG"
    assert picture.width > 1000
    assert len(set(picture.convert("L").tobytes())) > 10, "it is blank"


def test_a_peer_that_is_not_installed_is_named_and_the_others_go_on(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    absent = Contender(first_order, "cannot be built", package="no_such_package")
    monkeypatch.setitem(CONTENDERS, "absent", absent)
    chosen = ["--contender", "absent", "--contender", "plain", "--no-memory"]
    assert run("compare", "--workload", tiny, "--repetitions", "1", *chosen) == 0
    out, err = capfd.readouterr()
    assert "absent is left out: no_such_package is not installed" in err
    assert "pip install '.[benchmarks]'" in err
    assert "plain" in out
    assert run("compare", "--workload", tiny, "--contender", "absent") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compare", "--workload", "nothing-*"], "there is no workload 'nothing-*'"),
        (["compare", "--contender", "nobody"], "there is no contender 'nobody'"),
        (["curves", "--ways", "2,x"], "'2,x' is no list of positive numbers"),
        (["curves", "--workload", "omniglot-*"], "is the name of 20 workloads"),
    ],
)
def test_what_is_mistyped_is_an_error_of_usage(
    arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert told in capfd.readouterr().err


def test_the_workloads_are_those_of_the_plan() -> None:
    assert len(WORKLOADS) == 28
    sizes = {(w.side, w.channels, w.filters, w.ways, w.shots, w.tasks, w.steps) for w in
             WORKLOADS.values()}  # fmt: skip
    assert sizes == {
        *((28, 1, 64, 5, 1, tasks, steps) for tasks in (4, 32) for steps in (1, 5)),
        (28, 1, 64, 20, 1, 16, 5),
        *((84, 3, 32, 5, shots, 4, 5) for shots in (1, 5)),
    }
    assert {w.queries for w in WORKLOADS.values()} == {15}
    assert len(find_workloads(["*-order2-hidra"])) == 7
    with pytest.raises(UsageError):
        find_workloads(["omniglot-5w1s-4tasks-1steps-order2-hidra", "none"])


def test_the_work_is_counted_as_on_paper() -> None:
    """First order, one step: a forward pass and two products of its size for each gradient."""
    work = replace(TINY, order=1, steps=1)
    per_image = 0
    for inputs, side in ((1, 8), (4, 4)):  # both 3×3 convolutions to 4 filters
        product = 2 * 4 * inputs * 9 * side**2
        per_image += product * (2 if inputs == 1 else 3)  # the images need no gradient
    per_image += 3 * 2 * 3 * 16  # 3 neurons of 16 features
    images = work.tasks * work.ways * (work.shots + work.queries)
    assert work_of(Case(work)) == images * per_image


def test_contenders_are_timed_in_turn() -> None:
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        time.sleep(0.02)

    found = interleaved({name: partial(call, name) for name in "abc"}, CPU, repetitions=3, seed=1)
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3, "c": 3}
    turns = [a for a, b in zip(calls, [*calls[1:], ""], strict=True) if a != b]
    assert turns[:3] == ["a", "b", "c"], "warming up"
    assert len(turns) <= 12
    assert all(seconds > 0 for times in found.values() for seconds in times)
