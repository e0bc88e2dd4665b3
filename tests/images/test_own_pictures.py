"""People's pictures are decoded beside what is done with them, in order, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hidra_cli.api.decoding import Picture, read_picture
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.errors import DataError
from hidra_cli.images import own_pictures
from hidra_cli.images.own_pictures import decoded

AHEAD = 4


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Twelve pictures of growing brightness; the sixth is damaged."""
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        Image.new("L", (5, 5), 20 * i).save(path)
    paths[5].write_bytes(b"no picture")
    return paths


def test_they_come_in_order_and_so_many_are_decoded_before_they_are_used(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noted(path: Path, *args: object, **options: object) -> Picture:
        read.append(path)
        return read_picture(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(own_pictures, "read_picture", noted)
    monkeypatch.setattr(own_pictures, "_AHEAD", AHEAD)
    for index, picture in enumerate(decoded(paths, Preprocessing((1, 5, 5)))):
        assert len(read) <= index + AHEAD
        if index == 5:
            assert isinstance(picture, DataError)
        else:
            assert isinstance(picture, Picture)
            assert int(picture.pixels[0, 0, 0]) == 20 * index
    assert len(read) == len(paths)


def test_who_stops_early_leaves_no_work_behind(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_pictures, "_AHEAD", AHEAD)
    pictures = decoded(paths, Preprocessing((1, 5, 5)))
    assert isinstance(next(pictures), Picture)
    pictures.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(pictures)
