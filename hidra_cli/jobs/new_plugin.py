"""The package that `hidra plugins new` writes: complete, tested, and small enough to change.

The texts are templates with `$`-names; the tests install each kind and train with it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 25  # keeps every line of code within 100 columns


def fault_of(name: str) -> str:
    """Why a name cannot be a plugin's, or an empty string."""
    if not _NAME.fullmatch(name):
        return "a name has small letters a-z, digits and single hyphens, and begins with a letter"
    if len(name) > _LONGEST:
        return f"a name has at most {_LONGEST} characters, this one has {len(name)}"
    return ""


@dataclass(frozen=True)
class Skeleton:
    """One plugin package, not yet written."""

    kind: Literal["head", "backbone", "dataset"]
    name: str

    @property
    def distribution(self) -> str:
        """`hidra-NAME-KIND`; a name that ends with its kind does not say it twice."""
        return f"hidra-{self.name.removesuffix(f'-{self.kind}')}-{self.kind}"

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        parts = self.distribution.split("-")[1:]
        return "".join(part.capitalize() for part in parts)

    @property
    def commands(self) -> tuple[str, ...]:
        """What to run in the package, in order."""
        use = {
            "head": f"hidra meta-train --head {self.name}",
            "backbone": f"hidra meta-train --backbone {self.name}",
            "dataset": f"hidra prepare {self.name} --source FOLDER",
        }
        show = f"hidra plugins show {self.kind}:{self.name}"
        return ("pip install -e .", "pytest", show, use[self.kind])

    def files(self) -> dict[str, str]:
        """Path inside the package → text."""
        module, test = _SOURCES[self.kind]
        values = {
            "kind": self.kind,
            "name": self.name,
            "distribution": self.distribution,
            "module": self.module,
            "cls": self.class_name,
            "needs": '"hidra-cli"' if self.kind == "dataset" else '"hidra-cli", "torch"',
            "commands": "\n".join(self.commands),
        }
        texts = {
            "pyproject.toml": _PYPROJECT,
            "README.md": _README,
            f"{self.module}.py": module,
            f"tests/test_{self.module}.py": test,
        }
        return {path: Template(text).substitute(values) for path, text in texts.items()}

    def write(self, folder: Path) -> None:
        """Write the package beside its place and rename it, so that it is there whole or not.

        Args:
            folder: of the package; must not exist.

        Raises:
            OSError: it exists, or cannot be written; nothing is left.
        """
        if os.path.lexists(folder):
            raise FileExistsError(f"{folder} exists")
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            for path, text in self.files().items():
                (beside / path).parent.mkdir(parents=True, exist_ok=True)
                (beside / path).write_text(text, encoding="utf-8")
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "The $kind '$name' for hidra"
readme = "README.md"
requires-python = ">=3.11"
dependencies = [$needs]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."hidra.${kind}s"]
$name = "$module:$cls"

[tool.setuptools]
py-modules = ["$module"]

[tool.ruff]
line-length = 100
"""

_README = """\
# $distribution

The $kind `$name` for `hidra`.

```
$commands
```
"""

_HEAD = '''\
"""The head `$name`.

Shapes: n examples, F features, N ways.
"""

from __future__ import annotations

from typing import Annotated

import torch
from hidra_cli.api import FastWeights, Head
from torch import Tensor, nn


class $cls(Head):
    """Neurons drawn afresh for every task around one that the outer loop learns."""

    api_version = 1
    any_ways = True

    def __init__(
        self,
        features: int,
        max_ways: int,
        *,
        spread: Annotated[float, "standard deviation of a task's neurons"] = 0.01,
    ) -> None:
        super().__init__(features, max_ways)
        if not spread >= 0:
            raise ValueError(f"spread={spread} is negative")
        self.spread = spread
        self.mean = nn.Parameter(torch.zeros(features))  # parameters are learned over all tasks

    def initialize(
        self,
        ways: int,
        support_features: Tensor | None,
        support_labels: Tensor,
        generator: torch.Generator,
    ) -> FastWeights:
        """The weights that adapt within one task: weight (N, F)."""
        noise = torch.randn(ways, self.features, generator=generator).to(self.mean)
        return {"weight": self.mean + self.spread * noise}

    def logits(self, fast_weights: FastWeights, features: Tensor) -> Tensor:
        """Features (n, F) → logits (n, N)."""
        return features @ fast_weights["weight"].T
'''

_HEAD_TEST = '''\
"""The contract, and what makes this head this head."""

from __future__ import annotations

import pytest
import torch
from hidra_cli.api import check_head

from $module import $cls


def test_contract() -> None:
    check_head($cls)


def test_two_tasks_start_from_different_neurons() -> None:
    head = $cls(features=5, max_ways=3)
    labels = torch.arange(3)
    first, second = (
        head.initialize(3, None, labels, torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert not torch.equal(first["weight"], second["weight"])


def test_a_negative_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="is negative"):
        $cls(features=5, max_ways=3, spread=-1.0)
'''

_BACKBONE = '''\
"""The backbone `$name`.

Shapes: n images, C channels, H × W pixels, F features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from hidra_cli.api import Backbone, NormFactory
from torch import Tensor, nn


class $cls(Backbone):
    """Three blocks of 3×3 convolution with stride 2, then the mean over all pixels."""

    api_version = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        norm: NormFactory,
        *,
        filters: Annotated[int, "channels of every block"] = 32,
    ) -> None:
        super().__init__()
        if filters < 1:
            raise ValueError(f"filters={filters} is not positive")
        channels = [image_shape[0], filters, filters, filters]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                    norm(outputs),  # the run's normalization, in place of nn.BatchNorm2d
                    nn.ReLU(),
                )
                for inputs, outputs in pairwise(channels)
            )
        )
        self.features = filters

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1] → features (n, F)."""
        found: Tensor = self.blocks(images)
        return found.mean(dim=(2, 3))
'''

_BACKBONE_TEST = '''\
"""The contract, and what makes this backbone this backbone."""

from __future__ import annotations

import pytest
from hidra_cli.api import check_backbone
from torch import nn

from $module import $cls


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 20)])
def test_contract(image_shape: tuple[int, int, int]) -> None:
    check_backbone($cls, image_shape, filters=4)


def test_every_filter_is_a_feature() -> None:
    assert $cls((1, 28, 28), nn.BatchNorm2d, filters=5).features == 5
'''

_DATASET = '''\
"""The dataset `$name`: images in SOURCE/{train,val,test}/CLASS/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from hidra_cli.api import DataError, Dataset, ImageClass, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SUFFIXES = {".png", ".jpg", ".jpeg"}


class $cls(Dataset):
    """Say here in one line what the images show."""

    api_version = 1
    title = "The dataset $name"
    licence = "unknown"
    homepage = ""
    source_is_identity = True  # two source folders are two datasets

    def __init__(
        self,
        source: Path | None,
        *,
        size: Annotated[int, "height and width of the prepared images, in pixels"] = 28,
        colour: Annotated[bool, "prepare RGB images; otherwise grey ones"] = False,
    ) -> None:
        if size < 1:
            raise ValueError(f"size={size} is not positive")
        self.source = source
        self.image_shape = (3 if colour else 1, size, size)

    def classes(self, downloads: Path) -> Iterator[ImageClass]:
        """Yield every class of every split, in a fixed order."""
        if self.source is None:
            raise DataError(
                "the dataset $name needs a folder of images",
                why="no source was given",
                fix="give --source FOLDER with images in FOLDER/{train,val,test}/CLASS/",
            )
        for split in SPLITS:
            for folder in sorted((self.source / split).glob("*/")):
                images = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
                yield ImageClass(folder.name, split, images)
'''

_DATASET_TEST = '''\
"""The contract, and what makes this dataset this dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
from hidra_cli.api import DataError, check_dataset
from PIL import Image

from $module import $cls


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of two images in each split."""
    for split in ("train", "val", "test"):
        for number in range(2):
            folder = tmp_path / "source" / split / f"{split}{number}"
            folder.mkdir(parents=True)
            for name in ("a.png", "b.png"):
                Image.new("L", (8, 6), 100 * number).save(folder / name)
    return tmp_path / "source"


def test_contract(source: Path, tmp_path: Path) -> None:
    check_dataset($cls, source, tmp_path / "downloads", size=12)


def test_classes_keep_their_split(source: Path, tmp_path: Path) -> None:
    found = {c.name: c.split for c in $cls(source).classes(tmp_path)}
    assert found["val1"] == "val"
    assert len(found) == 6


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a folder of images"):
        list($cls(None).classes(tmp_path))
'''

_SOURCES = {
    "head": (_HEAD, _HEAD_TEST),
    "backbone": (_BACKBONE, _BACKBONE_TEST),
    "dataset": (_DATASET, _DATASET_TEST),
}
