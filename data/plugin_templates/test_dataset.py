"""The contract, and what makes this dataset this dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
from hidra_cli.api import DataError, check_dataset
from PIL import Image

from PluginModule import PluginClass


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
    check_dataset(PluginClass, source, tmp_path / "downloads", size=12)


def test_classes_keep_their_split(source: Path, tmp_path: Path) -> None:
    found = {c.name: c.split for c in PluginClass(source).classes(tmp_path)}
    assert found["val1"] == "val"
    assert len(found) == 6


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a folder of images"):
        list(PluginClass(None).classes(tmp_path))
