"""Networks of torchvision as backbones, with weights that a test wrote and no network at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from hidra_cli.api import DataError, check_backbone
from hidra_cli.engine.normalization import norm_factory
from hidra_cli.runs.directory import RunDir
from hidra_cli.runs.model import load_model
from hidra_plugins.torchvision_backbone import Torchvision

from ..conftest import Hidra

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
State = dict[str, Tensor]


def built(name: str, shape: tuple[int, int, int] = SHAPE, weights: str = "none") -> Torchvision:
    norm, _ = norm_factory("support")
    backbone = Torchvision(shape, norm, name=name, weights=weights)
    backbone.load_pretrained()
    return backbone


def state_of(name: str, seed: int = 3, **more: Any) -> State:
    """A state dictionary of torchvision's own network, statistics and last layer included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state: State = torchvision.models.get_model(name, weights=None, **more).state_dict()
        return {k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v
                for k, v in state.items()}  # fmt: skip


@pytest.fixture(scope="session")
def state() -> State:
    return state_of("resnet18")


@pytest.fixture(scope="session")
def weights(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every download fails at once; where torch would keep what it downloaded."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "features"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("efficientnet_b0", 1280)],
)
def test_contract(name: str, features: int) -> None:
    check_backbone(Torchvision, SHAPE, name=name)
    assert built(name).features == features


def test_contract_with_weights(weights: Path) -> None:
    check_backbone(Torchvision, SHAPE, weights=str(weights))


def test_one_channel_is_repeated_to_three() -> None:
    torch.manual_seed(0)
    grey = built("resnet18", (1, 32, 32))
    images = torch.rand(4, 1, 32, 32)
    assert torch.equal(grey(images), grey(images.repeat(1, 3, 1, 1)))


def test_second_order_gradients_exist() -> None:
    backbone = built("mobilenet_v3_small")
    parameters = list(backbone.parameters())
    loss = backbone(torch.rand(4, *SHAPE)).square().mean()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    again = torch.autograd.grad(
        torch.stack([g.square().sum() for g in gradients]).sum(), parameters
    )
    assert all(gradient.isfinite().all() for gradient in again)


def test_training_mode_makes_nothing_random() -> None:
    backbone = built("efficientnet_b0").train()
    images = torch.rand(3, *SHAPE)
    assert torch.equal(backbone(images), backbone(images))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_gives_the_weights_of_the_network_and_leaves_its_statistics_out(
    state: State, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save({"model": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    backbone = built("resnet18", weights=str(path))
    found = backbone.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    left_out = {key for key in state if key not in found}
    assert {key.rpartition(".")[2] for key in left_out if not key.startswith("fc.")} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_features_are_those_of_torchvision_on_normalized_images(
    state: State, weights: Path
) -> None:
    theirs = torchvision.models.resnet18(weights=None)
    theirs.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    images = torch.rand(6, *SHAPE)
    normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = theirs.train()(normalize(images))  # training: statistics of the batch, as ours
    found = built("resnet18", weights=str(weights))(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_old_names_of_densenet_are_understood(tmp_path: Path) -> None:
    state = state_of("densenet121")
    numbered = ("norm1", "norm2", "conv1", "conv2")
    old = {}
    for key, value in state.items():
        for part in numbered:
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "layer" in key else key
        old[key] = value
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    found = built("densenet121", weights=str(tmp_path / "old.pth")).model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("options", "shape", "told"),
    [
        ({"name": "resnet81"}, SHAPE, r"did you mean resnet18"),
        ({"name": "vit_b_16"}, SHAPE, "no batch normalization"),
        ({"name": "squeezenet1_0"}, SHAPE, "does not end in a linear layer"),
        ({"name": "resnet18"}, (1, 28, 28), "at least 32×32 pixels, not 28×28"),
        ({"name": "inception_v3"}, SHAPE, "cannot work on images of 32×32"),
        ({"name": "resnet18"}, (4, 32, 32), "1 or 3 channels, not 4"),
        ({"name": "resnet18", "weights": "nowhere.pth"}, SHAPE, "is no file, and none of none, "),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, str], shape: tuple[int, int, int], told: str
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=told):
        built(options["name"], shape, options.get("weights", "none"))


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


@pytest.mark.parametrize("content", ["code", "text", "number", "other"])
def test_a_file_that_holds_no_such_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("no weights")
    else:
        kinds = {"code": Evil(), "number": 1, "other": torch.ones(2)}
        torch.save({"conv1.weight": kinds[content]}, path)
    with pytest.raises(DataError, match="holds no weights") as caught:
        built("resnet18", weights=str(path))
    assert caught.value.why
    assert caught.value.fix
    assert not (tmp_path / "touched").exists()


def test_without_a_network_it_says_which_file_to_put_where(offline: Path, state: State) -> None:
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        built("resnet18", weights="DEFAULT")
    name = Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    assert str(offline / name) in caught.value.fix
    assert torchvision.models.ResNet18_Weights.DEFAULT.url in caught.value.fix
    assert "weights=FILE" in caught.value.fix
    torch.save(state, offline / name)  # what it said
    found = built("resnet18", weights="IMAGENET1K_V1").model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    (offline / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match="could not be read"):
        built("resnet18", weights="DEFAULT")


def test_a_run_needs_the_file_of_weights_only_once(
    hidra: Hidra, tmp_path: Path, state: State
) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    data = ["alphabets=4", "characters=5", "drawings=3", "size=32"]
    places = [f"--cache-dir={tmp_path / 'cache'}", f"--runs-dir={tmp_path / 'runs'}", "-q"]
    begin = [
        *(f"--data-opt={option}" for option in data),
        *("--backbone=torchvision", "--bb-opt=name=resnet18", f"--bb-opt=weights={path}"),
        *("--ways=2", "--queries=1", "--meta-batch=1", "--order=1", "--inner-lr=0.01"),
        *("--validation-episodes=2", "--test-episodes=0", "--name=mine"),
    ]
    done = hidra("meta-train", *begin, "--iterations=1", *places)
    assert done.code == 0, done.err
    path.unlink()
    run = RunDir(tmp_path / "runs" / "mine")
    before = load_model(run.last, CPU).learner.state_dict()
    assert not torch.equal(before["backbone.model.conv1.weight"], state["conv1.weight"])
    resumed = hidra("meta-train", "--resume=mine", "--iterations=2", *places)
    assert resumed.code == 0, resumed.err
    after = load_model(run.last, CPU).learner.state_dict()
    assert not torch.equal(
        before["backbone.model.conv1.weight"], after["backbone.model.conv1.weight"]
    )
    adapted = hidra("adapt", "--checkpoint", run.path, "--ways=2", "--queries=1", *places[:1], "-q")
    assert adapted.code == 0, adapted.err
    again = hidra("meta-train", *begin[:-1], "--name=other", "--iterations=1", *places)
    assert again.code == 2
    assert "is no file" in again.err


def test_its_options_are_shown(hidra: Hidra) -> None:
    shown = hidra("plugins", "show", "backbone", "torchvision", "--json").json
    options = {option["name"]: option["default"] for option in shown["options"]}
    assert options == {"name": "resnet18", "weights": "none"}
