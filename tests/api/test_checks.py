"""The contract checks: built-ins pass, and each way to break a contract is named."""

import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hidra_cli.api import (
    Backbone,
    Dataset,
    FastWeights,
    Head,
    ImageClass,
    NormFactory,
    check_backbone,
    check_dataset,
    check_head,
)
from hidra_plugins.backbones import Conv4, ResNet12
from hidra_plugins.datasets.glyphs import Glyphs
from hidra_plugins.heads import Cosine, Hidra, Maml, ProtoMaml, Random, Zero
from hidra_plugins.ridge import Ridge

Shape = tuple[int, int, int]


def assert_placed(error: AssertionError) -> None:
    """It names a line of the author's file, and says what to write instead."""
    assert re.search(r"^in .*test_checks\.py:\d+$", str(error), re.MULTILINE)
    assert re.search(r"^instead: .", str(error), re.MULTILINE)


class Linear(Head):
    """A correct head that the broken ones differ from in one thing."""

    api_version = 1

    def __init__(self, features: int, max_ways: int) -> None:
        super().__init__(features, max_ways)
        self.master = nn.Parameter(torch.randn(features))

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        return {"weight": self.weight(ways, generator)}

    def weight(self, ways: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(ways, 1, generator=generator).to(self.master)
        return self.master * (1 + 0.1 * noise)

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        return features @ fast_weights["weight"].T


class Prototypes(Linear):
    needs_support = True

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        assert support_features is not None
        one_hot = nn.functional.one_hot(support_labels, ways).to(support_features)
        return {"weight": one_hot.T @ (support_features * self.master)}


class WithoutVersion(Linear):
    api_version = None  # type: ignore[assignment]


class OldVersion(Linear):
    api_version = 0


class GlobalStream(Linear):
    def weight(self, ways: int, generator: torch.Generator) -> Tensor:
        return self.master * torch.rand(ways, 1).to(self.master)


class OtherStream(Linear):
    def weight(self, ways: int, generator: torch.Generator) -> Tensor:
        return self.master * torch.full((ways, 1), random.random()).to(self.master)


class NoWeights(Linear):
    def initialize(self, *args: Any) -> FastWeights:
        return {}


class NumpyWeights(Linear):
    def initialize(self, *args: Any) -> FastWeights:
        return {"weight": np.zeros((args[0], self.features))}  # type: ignore[dict-item]


class AlwaysSingle(Linear):
    def weight(self, ways: int, generator: torch.Generator) -> Tensor:
        return super().weight(ways, generator).float()


class Constant(Linear):
    def weight(self, ways: int, generator: torch.Generator) -> Tensor:
        return super().weight(ways, generator).detach()


class CutFromMeta(Linear):
    """Its weights adapt, but the outer loop can never train its parameters."""

    def weight(self, ways: int, generator: torch.Generator) -> Tensor:
        return super().weight(ways, generator).detach().requires_grad_()


class Transposed(Linear):
    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        return super().logits(fast_weights, features).T


class TooWide(Linear):
    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        found = super().logits(fast_weights, features)
        return torch.cat([found, found[:, :1]], dim=1)


class FixedButSaysAny(Linear):
    def __init__(self, features: int, max_ways: int) -> None:
        super().__init__(features, max_ways)
        self.rows = nn.Parameter(torch.randn(max_ways, features))

    def weight(self, ways: int, generator: torch.Generator) -> Tensor:
        return self.rows[:ways] * self.master.mean()


class UnusedWeight(Linear):
    def initialize(self, *args: Any) -> FastWeights:
        return super().initialize(*args) | {"spare": self.master * 2}


class NotFinite(Linear):
    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        return super().logits(fast_weights, features) / 0


class SaysIdentical(Linear):
    identical_neurons = True


BROKEN_HEADS: dict[type[Head], str] = {
    WithoutVersion: "WithoutVersion declares no api_version",
    OldVersion: "OldVersion declares api_version = 0, and this hidra has 1",
    GlobalStream: "GlobalStream.initialize draws from the global generator of torch",
    OtherStream: "OtherStream.initialize draws from the global generator of random",
    NoWeights: "NoWeights.initialize gives no weights",
    NumpyWeights: "gives 'weight' as an object of type ndarray, not as a tensor",
    AlwaysSingle: "gives 'weight' as torch.float32 in a module of torch.float64",
    Constant: "Constant.initialize gives 'weight' without a gradient",
    CutFromMeta: "CutFromMeta",
    Transposed: "Transposed.logits gives a tensor of shape (2, 4), not logits (n, N) = (4, 2)",
    TooWide: "TooWide.logits gives a tensor of shape (4, 3), not logits (n, N) = (4, 2)",
    FixedButSaysAny: "a tensor of shape (14, 4), not logits (n, N) = (14, 7)",
    UnusedWeight: "'spare'",
    NotFinite: "NotFinite.logits gives values that are not finite",
    SaysIdentical: "SaysIdentical declares identical_neurons, but its starting logits differ",
}


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (Cosine, {}),
        (Cosine, {"scale": 2.0}),
        (Hidra, {}),
        (Hidra, {"master": "tied"}),
        (Hidra, {"master": "slots"}),
        (Hidra, {"normalize": True}),
        (Maml, {}),
        (ProtoMaml, {"scale": 0.1}),
        (Random, {}),
        (Random, {"scale": 0.1}),
        (Ridge, {}),
        (Ridge, {"normalize": False, "penalty": 0.1}),
        (Zero, {}),
        (Linear, {}),
        (Prototypes, {}),
    ],
)
def test_a_correct_head_passes(head: type[Head], options: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    check_head(head, **options)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("head", BROKEN_HEADS, ids=lambda head: head.__name__)
def test_a_broken_head_is_told_what_is_wrong(head: type[Head]) -> None:
    with pytest.raises(AssertionError) as caught:
        check_head(head)
    assert BROKEN_HEADS[head] in str(caught.value)
    assert_placed(caught.value)


def test_the_hooks_of_a_head_are_called() -> None:
    called: list[tuple[str, int]] = []

    class Hooked(Linear):
        def before_outer_step(self, ways: int) -> None:
            called.append(("before", ways))

        def after_outer_step(self, ways: int) -> None:
            called.append(("after", ways))

    check_head(Hooked)
    assert called == [(when, ways) for ways in (2, 4) for when in ("before", "after")]


class Plain(Backbone):
    """A correct backbone that the broken ones differ from in one thing."""

    api_version = 1

    def __init__(self, image_shape: Shape, norm: NormFactory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 4, 3, padding=1)
        self.norm = norm(4)
        self.features = 4

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(images))
        return found.square().mean(dim=(2, 3))


class BackboneOfNoVersion(Plain):
    api_version = None  # type: ignore[assignment]


def never(channels: int, *, pool: int = 1, relu: bool = False) -> nn.Module:
    return nn.BatchNorm2d(channels)


class NeverNorm(Plain):
    def __init__(self, image_shape: Shape, norm: NormFactory) -> None:
        super().__init__(image_shape, never)


class NotFlat(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :, None]


class WrongFeatures(Plain):
    def __init__(self, image_shape: Shape, norm: NormFactory) -> None:
        super().__init__(image_shape, norm)
        self.features = 5


class Counting(Plain):
    calls: Tensor

    def __init__(self, image_shape: Shape, norm: NormFactory) -> None:
        super().__init__(image_shape, norm)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


class CountingInSecret(Plain):
    """Its buffer is not part of the state dictionary."""

    calls: Tensor

    def __init__(self, image_shape: Shape, norm: NormFactory) -> None:
        super().__init__(image_shape, norm)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images)


class OwnBatchNorm(Plain):
    def __init__(self, image_shape: Shape, norm: NormFactory) -> None:
        super().__init__(image_shape, norm)
        self.extra = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        extra: Tensor = self.extra(self.conv(images))
        return super().forward(images) + extra.mean(dim=(2, 3))


class Dropping(Plain):
    """Random in every pass: a stopped and resumed run would not equal an unbroken one."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(images), 0.5, training=True)


class DeafToWeights(Plain):
    """Computes with weights that are no parameters, so that nothing of it adapts."""

    def __init__(self, image_shape: Shape, norm: NormFactory) -> None:
        super().__init__(image_shape, norm)
        self.hidden: list[nn.Module] = [nn.Conv2d(image_shape[0], 4, 3, padding=1)]

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.hidden[0](images)
        return found.square().mean(dim=(2, 3))


BROKEN_BACKBONES: dict[type[Backbone], str] = {
    BackboneOfNoVersion: "BackboneOfNoVersion declares no api_version",
    NeverNorm: "NeverNorm.__init__ never calls norm(channels)",
    NotFlat: "NotFlat.forward gives a tensor of shape (3, 4, 1), not features (n, F) = (3, 4)",
    WrongFeatures: "a tensor of shape (3, 4), not features (n, F) = (3, 5)",
    Counting: "Counting.forward changes its own 'calls'",
    CountingInSecret: "CountingInSecret.forward changes its own 'calls'",
    OwnBatchNorm: "OwnBatchNorm.forward changes its own 'extra.running_mean'",
    Dropping: "Dropping.forward draws from the global generator of torch, in evaluation too",
    DeafToWeights: "DeafToWeights.forward does not depend on its parameters",
}


@pytest.mark.parametrize(
    ("backbone", "shape", "options"),
    [
        (Plain, (1, 28, 28), {}),
        (Conv4, (1, 28, 28), {}),
        (Conv4, (3, 21, 9), {"filters": 3, "blocks": 3}),
        (ResNet12, (3, 32, 32), {"width": 4}),
        (ResNet12, (1, 17, 40), {"width": 2}),
    ],
)
def test_a_correct_backbone_passes(
    backbone: type[Backbone], shape: Shape, options: dict[str, Any]
) -> None:
    before = torch.random.get_rng_state()
    check_backbone(backbone, shape, **options)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("backbone", BROKEN_BACKBONES, ids=lambda backbone: backbone.__name__)
def test_a_broken_backbone_is_told_what_is_wrong(backbone: type[Backbone]) -> None:
    with pytest.raises(AssertionError) as caught:
        check_backbone(backbone)
    assert BROKEN_BACKBONES[backbone] in str(caught.value)
    assert_placed(caught.value)


def picture(value: int = 0) -> np.ndarray:
    return np.full((3, 5), value, np.uint8)


class Pictures(Dataset):
    """A correct dataset that the broken ones differ from in one thing."""

    api_version = 1
    title = "pictures"

    def __init__(self, source: Path | None = None) -> None:
        self.image_shape = (1, 3, 5)

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        yield ImageClass("a", "train", [picture()])
        yield ImageClass("b", "test", [picture(1), picture(2)])


class DatasetOfNoVersion(Pictures):
    api_version = None  # type: ignore[assignment]


class Untitled(Pictures):
    title = ""


class TwoChannels(Pictures):
    def __init__(self, source: Path | None = None) -> None:
        self.image_shape = (2, 3, 5)


class NoPixels(Pictures):
    def __init__(self, source: Path | None = None) -> None:
        self.image_shape = (1, 0, 5)


class NoClasses(Pictures):
    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        return []


class Twice(Pictures):
    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        return [ImageClass("a", "train", [picture()])] * 2


class Shuffled(Pictures):
    turn = False

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        found = list(super().classes(downloads))
        self.turn = not self.turn
        return found[::-1] if self.turn else found


class OtherSplit(Pictures):
    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        yield ImageClass("a", "dev", [picture()])  # type: ignore[arg-type]


class EmptyClass(Pictures):
    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        yield ImageClass("nothing", "train", [])


class Miscounted(Pictures):
    class _Images(list[np.ndarray]):
        def __len__(self) -> int:
            return super().__len__() + 1

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        yield ImageClass("miscounted", "train", self._Images([picture()]))


BROKEN_DATASETS: dict[type[Dataset], str] = {
    DatasetOfNoVersion: "DatasetOfNoVersion declares no api_version",
    Untitled: "Untitled has no title",
    TwoChannels: "TwoChannels.__init__ sets image_shape to (2, 3, 5), not to (C, H, W)",
    NoPixels: "NoPixels.__init__ sets image_shape to (1, 0, 5), not to (C, H, W)",
    NoClasses: "NoClasses.classes gives no class",
    Twice: "Twice.classes gives the class 'a' twice",
    Shuffled: "Shuffled.classes gives another order the second time",
    OtherSplit: "puts the class 'a' into the unknown split 'dev'",
    EmptyClass: "gives the class 'nothing' without an image",
    Miscounted: "says the class 'miscounted' has 2 images, but gives 1",
}


def test_glyphs_pass(tmp_path: Path) -> None:
    check_dataset(Glyphs, None, tmp_path, alphabets=3, characters=2, drawings=2, size=14)
    assert list(tmp_path.iterdir()) == []


def test_a_correct_dataset_passes(tmp_path: Path) -> None:
    check_dataset(Pictures, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dataset", BROKEN_DATASETS, ids=lambda dataset: dataset.__name__)
def test_a_broken_dataset_is_told_what_is_wrong(dataset: type[Dataset], tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        check_dataset(dataset, None, tmp_path)
    assert BROKEN_DATASETS[dataset] in str(caught.value)
    assert_placed(caught.value)
