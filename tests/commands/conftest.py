"""Four classes of drawn pictures, and the classifier of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hidra_cli.images.prepared import PreparedImages

from ..conftest import Hidra

CLASSES = ("ash", "birch", "cedar", "dogwood")


@pytest.fixture(scope="module")
def pictures(tiny_images: PreparedImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """support/ and query/ with four glyphs, as dark ink on white paper in several formats."""
    folder = tmp_path_factory.mktemp("pictures")
    table = tiny_images.table("test")
    for index, name in enumerate(CLASSES):
        for number in range(8):
            ink = 255 - tiny_images.images[table.first[index] + number, 0]
            part = "support" if number < 3 + index % 2 else "query"
            suffix = (".png", ".bmp", ".PNG", ".tif")[number % 4]
            nested = folder / part / name / ("deeper" if number == 1 else "")
            nested.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ink).convert("RGB" if number % 2 else "L").save(
                nested / f"{number}{suffix}"
            )
    return folder


@pytest.fixture
def adapted(hidra: Hidra, runs_dir: Path, pictures: Path, tmp_path: Path) -> Any:
    done = hidra(
        "adapt", "--support", pictures / "support", "--query", pictures / "query",
        "--checkpoint", runs_dir / "hidra", "--out", tmp_path / "made", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    return done.json
