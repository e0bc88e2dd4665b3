"""Wrong backbones, datasets and families of functions: right ones with one mistake each.

Name → (source, what is written in place of what, what is said of it).
"""

from __future__ import annotations

from .heads import Wrong

BACKBONE = """
import torch
import torch.nn.functional as F
from torch import nn
from hidra_cli.api import Backbone


class Plugin(Backbone):
    api_version = 1

    def __init__(self, image_shape, norm, *, filters: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], filters, 3)
        self.norm = norm(filters)
        self.features = filters

    def forward(self, images):
        return self.norm(self.conv(images)).square().mean(dim=(2, 3))
"""
_FORWARD = "return self.norm(self.conv(images)).square().mean(dim=(2, 3))"
_NORM = "self.norm = norm(filters)"

DATASET = """
from pathlib import Path
import numpy as np
from hidra_cli.api import Dataset, ImageClass


class Once(list):
    left = True

    def __iter__(self):
        self.left, left = False, self.left
        return super().__iter__() if left else iter(())


class Plugin(Dataset):
    api_version = 1
    title = "noise"

    def __init__(self, source, *, size: int = 4):
        self.image_shape = (1, size, size)

    def classes(self, downloads):
        image = np.zeros((4, 4), np.uint8)
        for split in ("train", "val", "test"):
            yield ImageClass(f"of-{split}", split, [image] * 3)
"""
_YIELD = 'yield ImageClass(f"of-{split}", split, [image] * 3)'
_SHAPE = "self.image_shape = (1, size, size)"

FAMILY = """
import numpy as np
from hidra_cli.api import FunctionFamily


class Plugin(FunctionFamily):
    api_version = 1
    title = "lines"
    inputs = 1

    def draw(self, generator, outputs, examples):
        of_x, *of_outputs = generator.spawn(1 + outputs)
        x = of_x.random((examples, 1), dtype=np.float32)
        slopes = np.array([each.random() for each in of_outputs], np.float32)
        return x, x * slopes
"""


def _backbone(told: str, old: str, new: str) -> Wrong:
    return BACKBONE, {old: new}, told


def _dataset(told: str, old: str, new: str) -> Wrong:
    return DATASET, {old: new}, told


def _family(told: str, old: str, new: str) -> Wrong:
    return FAMILY, {old: new}, told


BACKBONES: dict[str, Wrong] = {
    "b-no-version": _backbone("declares no api_version", "    api_version = 1\n", "    pass\n"),
    "b-never-norm": _backbone("never calls norm", _NORM, "self.norm = nn.BatchNorm2d(filters)"),
    "b-no-features": _backbone("sets no number of features", "self.features = filters", "pass"),
    "b-wrong-features": _backbone(
        "not features (n, F)", "self.features = filters", "self.features = filters + 1"
    ),
    "b-features-as-tensor": _backbone(
        "not to a whole number", "self.features = filters", "self.features = torch.tensor(filters)"
    ),
    "b-not-flat": _backbone("not features (n, F)", ".mean(dim=(2, 3))", ""),
    "b-own-batch-norm": _backbone(
        "running_mean'",
        _NORM,
        f"{_NORM}\n        self.more = nn.BatchNorm2d(filters)\n        self.conv = "
        "nn.Sequential(self.conv, self.more)",
    ),
    "b-dropout-in-evaluation": _backbone(
        "in evaluation too", _FORWARD, f"return F.dropout({_FORWARD[7:]}, 0.5)"
    ),
    "b-images-see-each-other": _backbone(
        "depends on the other rows",
        _FORWARD,
        f"images = images - images.mean(0)\n        {_FORWARD}",
    ),
    "b-changes-images": _backbone("changes 'images'", _FORWARD, f"images *= 2\n        {_FORWARD}"),
    "b-squeezed": _backbone("for one row", _FORWARD, f"{_FORWARD}.squeeze()"),
    "b-hidden-layers": _backbone(
        "fails for",
        "self.conv = nn.Conv2d",
        "self.conv = lambda x: self.hidden[0](x)\n        "
        "self.hidden = (nn.Conv2d(image_shape[0], filters, 3),)\n        nn.Conv2d",
    ),
    "b-cut": _backbone(
        "does not use the parameter 'conv.weight', or cuts it off",
        "self.norm(self.conv(images))",
        "self.norm(self.conv(images).detach())",
    ),
    "b-keeps-features": _backbone(
        "changes the attribute 'last'", _FORWARD, f"self.last = images.mean()\n        {_FORWARD}"
    ),
}

DATASETS: dict[str, Wrong] = {
    "d-no-version": _dataset("declares no api_version", "    api_version = 1\n", "    pass\n"),
    "d-no-title": _dataset("has no title", '    title = "noise"\n', "    pass\n"),
    "d-no-image-shape": _dataset("sets no image_shape", _SHAPE, "self.size = size"),
    "d-two-channels": _dataset(
        "sets image_shape to (2, 4, 4)", _SHAPE, "self.image_shape = (2, 4, 4)"
    ),
    "d-positional-option": _dataset("takes 'size' by position", "source, *, size", "source, size"),
    "d-no-class": _dataset("gives no class", _YIELD, "pass\n        yield from ()"),
    "d-class-twice": _dataset(
        "gives the class 'one' twice",
        _YIELD,
        'yield from [ImageClass("one", "train", [image])] * 2',
    ),
    "d-class-in-two-splits": _dataset(
        "gives the class 'one' in two splits, train and val",
        _YIELD,
        'yield ImageClass("one", split, [image])',
    ),
    "d-unknown-split": _dataset("the unknown split 'dev'", '("train", "val"', '("train", "dev"'),
    "d-no-length": _dataset("that have no length", "[image] * 3", "(image for _ in range(3))"),
    "d-empty-class": _dataset("without an image", "[image] * 3", "[]"),
    "d-images-once": _dataset("but gives", "[image] * 3", "Once([image] * 3)"),
    "d-lambda": _dataset("cannot be handed to another process", "[image] * 3", "[lambda: image]"),
    "d-tuples": _dataset("not an ImageClass", _YIELD, "yield (split, [image])"),
    "d-text-for-a-path": _dataset("as str", "[image] * 3", '["a.png"]'),
    "d-missing-file": _dataset("that cannot be read", "[image] * 3", '[Path("absent.png")]'),
    "d-floats": _dataset("as float64", "np.uint8", "np.float64"),
    "d-turned": _dataset("turns the class", "[image] * 3)", "[image] * 3, quarter_turns=0.5)"),
    "d-raises": _dataset("KeyError: 'boom'", _YIELD, "raise KeyError('boom')"),
    "f-global-generator": _family("gives another function", "each.random()", "np.random.rand()"),
    "f-one-stream": _family(
        "gives another function",
        "each.random() for each in of_outputs",
        "generator.random(examples)[0] for _ in of_outputs",
    ),
    "f-doubles": _family("gives x as float64", "dtype=np.float32)", "dtype=np.float64)"),
    "f-no-inputs": _family("sets no number of inputs", "    inputs = 1\n", "    pass\n"),
}
