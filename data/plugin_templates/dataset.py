"""The dataset `PluginName`: images in SOURCE/{train,val,test}/CLASS/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from hidra_cli.api import DataError, Dataset, ImageClass, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SUFFIXES = {".png", ".jpg", ".jpeg"}


class PluginClass(Dataset):
    """Say here in one line what the images show."""

    api_version = 1
    title = "The dataset PluginName"
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
                "the dataset PluginName needs a folder of images",
                why="no source was given",
                fix="give --source FOLDER with images in FOLDER/{train,val,test}/CLASS/",
            )
        for split in SPLITS:
            for folder in sorted((self.source / split).glob("*/")):
                images = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
                yield ImageClass(folder.name, split, images)
