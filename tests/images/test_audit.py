"""The audit of pictures: duplicates, exactly and nearly, and where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hidra_cli.api.decoding import read_picture
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.images.audit import AuditedPicture, Part, audit


def noise(seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(blocks).resize((60, 40))


def audited(path: Path, label: str, part: Part = "support") -> AuditedPicture:
    return AuditedPicture(path, label, part, read_picture(path, Preprocessing((3, 28, 28))))


def test_duplicates_are_told_with_where_they_are(tmp_path: Path) -> None:
    for seed in range(4):
        noise(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    noise(1).save(tmp_path / "again.jpg", quality=80)
    noise(2).resize((90, 60)).save(tmp_path / "larger.png")
    pictures = [
        audited(tmp_path / "0.png", "a"),
        audited(tmp_path / "1.png", "a"),
        audited(tmp_path / "2.png", "b"),
        audited(tmp_path / "3.png", "b"),
        audited(tmp_path / "copy.png", "b"),
        audited(tmp_path / "again.jpg", "a"),
        audited(tmp_path / "larger.png", "b", "query"),
    ]
    report = audit(pictures, {}, {}, [])
    told = [(d.kind, d.first.path.name, d.second.path.name, d.exact) for d in report.duplicates]
    assert told == [
        ("in support and query", "2.png", "larger.png", False),
        ("in two classes", "0.png", "copy.png", True),
        ("within a class of support", "1.png", "again.jpg", False),
    ]
    assert report.learned_queries == {tmp_path / "larger.png"}
    assert report.sizes == ((60, 40), (90, 60))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pictures_of_one_grey_are_no_near_duplicates(tmp_path: Path, count: int) -> None:
    for index in range(count):
        Image.new("L", (10, 10), 90 + index).save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.iterdir())
    assert audit([audited(path, "a") for path in paths], {}, {}, []).duplicates == ()
