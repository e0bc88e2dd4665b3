"""Sinusoids: what they are, and that a task keeps what it has when it grows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hidra_cli.api import FunctionFamily, check_backbone, check_function_family
from hidra_cli.api.building import resolve
from hidra_cli.api.data import Split
from hidra_cli.errors import PluginError
from hidra_cli.tasks.functions import FunctionTasks
from hidra_cli.tasks.shape import TaskShape
from hidra_cli.tasks.sources import Sampler, functions_of, sampler_of
from hidra_plugins.backbones import Mlp
from hidra_plugins.datasets.sinusoids import Sinusoids

CPU = torch.device("cpu")
few = settings(max_examples=25, deadline=None)


def generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def source(**options: float) -> FunctionTasks:
    tasks = functions_of(resolve("dataset", "sinusoids", options), None)
    assert tasks is not None
    return tasks


def sampler(
    split: Split = "train", seed: int = 0, queries: int = 4, tasks: FunctionTasks | None = None
) -> Sampler:
    tasks = tasks or source()
    return sampler_of(tasks, split, range(1, 9), [5, 9], queries, seed, device=CPU)


def test_contracts() -> None:
    check_function_family(Sinusoids)
    check_function_family(Sinusoids, amplitude=2.0, reach=1.0)
    check_backbone(Mlp, (1, 1, 3), hidden=8, layers=3)
    check_backbone(Mlp, (3, 6, 5))


def test_the_family_of_the_guide_for_plugin_authors() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text()
    (code,) = re.findall(r"^```python\n(class Lines.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"np": np, "FunctionFamily": FunctionFamily}
    exec(code, names)
    check_function_family(names["Lines"])


def wrong_shape(generator: np.random.Generator, n: int, k: int) -> tuple[Any, Any]:
    return generator.random((k, 1)), generator.random((k, n))


def other_inputs(generator: np.random.Generator, n: int, k: int) -> tuple[Any, Any]:
    y = generator.random((n, k), np.float32).T  # before x: more outputs move the inputs
    return generator.random((k, 1), np.float32), y


@pytest.mark.parametrize(
    ("draw", "told"), [(wrong_shape, "gives x as float64"), (other_inputs, "gives other inputs")]
)
def test_a_family_that_breaks_the_contract_is_told(draw: Any, told: str) -> None:
    class Broken(FunctionFamily):
        api_version = 1
        title = "broken"
        inputs = 1

        def draw(
            self, generator: np.random.Generator, outputs: int, examples: int
        ) -> tuple[Any, Any]:
            return draw(generator, outputs, examples)  # type: ignore[no-any-return]

    with pytest.raises(AssertionError, match=told):
        check_function_family(Broken)
    if draw is wrong_shape:
        tasks = replace(source(), family=Broken())
        with pytest.raises(PluginError, match="breaks its contract"):
            sampler(tasks=tasks).batch([0], TaskShape(2, 5))


@few
@given(key=st.integers(0, 2**40), outputs=st.integers(1, 8))
def test_every_output_is_a_sinusoid_of_its_own(key: int, outputs: int) -> None:
    x, y = Sinusoids().draw(generator(key), outputs, 60)
    assert np.abs(x).max() <= 5
    # y = a sin x + b cos x, exactly
    basis = np.concatenate([np.sin(x), np.cos(x)], 1).astype(np.float64)
    found, *_ = np.linalg.lstsq(basis, y.astype(np.float64), rcond=None)
    np.testing.assert_allclose(basis @ found, y, atol=1e-5)
    amplitudes, phases = np.hypot(*found), np.arctan2(found[1], found[0])
    assert ((amplitudes >= 0.099) & (amplitudes <= 5.001)).all()
    assert ((phases >= -1e-4) & (phases <= np.pi + 1e-4)).all()
    assert len({round(float(a), 6) for a in amplitudes}) == outputs


@few
@given(seed=st.integers(0, 2**63 - 1), episode=st.integers(0, 2**63 - 1))
def test_a_task_depends_on_its_key_alone(seed: int, episode: int) -> None:
    one = sampler(seed=seed).batch([episode], TaskShape(3, 5))
    among = sampler(seed=seed).batch([1, episode], TaskShape(3, 5))
    assert torch.equal(one.support.images[0], among.support.images[1])
    assert torch.equal(one.query.labels[0], among.query.labels[1])
    assert one.generator_keys[0] == among.generator_keys[1]
    others = [sampler("val", seed), sampler("test", seed), sampler(seed=seed ^ 1)]
    for other in others:
        found = other.batch([episode], TaskShape(3, 5))
        assert not torch.equal(found.support.images, one.support.images)
        assert not torch.equal(found.query.labels, one.query.labels)


@few
@given(episode=st.integers(0, 1000), fewer=st.integers(1, 7))
def test_more_outputs_and_more_shots_keep_the_first(episode: int, fewer: int) -> None:
    small = sampler().batch([episode], TaskShape(fewer, 5))
    large = sampler().batch([episode], TaskShape(8, 9))
    assert torch.equal(large.query.images, small.query.images)
    assert torch.equal(large.query.labels[..., :fewer], small.query.labels)
    assert torch.equal(large.support.images[:, :5], small.support.images)
    assert torch.equal(large.support.labels[:, :5, :fewer], small.support.labels)


def test_shapes_are_in_all_and_per_task() -> None:
    batch = sampler(queries=7).batch(range(3), TaskShape(2, 9))
    assert batch.support.images.shape == (3, 9, 1, 1, 1)
    assert batch.support.labels.shape == (3, 9, 2)
    assert batch.query.labels.shape == (3, 7, 2)
    assert batch.support.images.dtype == batch.support.labels.dtype == torch.float32
    shapes = {sampler().shape(i) for i in range(300)}
    assert shapes == {(n, k) for n in range(1, 9) for k in (5, 9)}


def test_other_options_are_another_content() -> None:
    assert source().content_hash == source().content_hash == source(amplitude=5.0).content_hash
    assert source().content_hash != source(amplitude=4.0).content_hash


def test_the_mlp_is_finns_where_nothing_is_normalized() -> None:
    from hidra_cli.engine.normalization import norm_factory

    built = Mlp((1, 1, 1), norm_factory("none")[0])
    linear = [tuple(p.shape) for n, p in built.named_parameters() if n.endswith("weight")]
    assert linear == [(40, 1), (40, 40), (40,), (40,)]
    x = torch.randn(6, 1, 1, 1)
    by_hand = x.flatten(1)
    for layer in built.layers:
        by_hand = torch.relu(layer(by_hand))  # the affines start as the identity
    assert torch.allclose(built(x), by_hand)


@pytest.mark.parametrize("options", [{"amplitude": 0.05}, {"reach": 0.0}, {"reach": float("nan")}])
def test_options_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"is not positive|is less than"):
        Sinusoids(**options)
