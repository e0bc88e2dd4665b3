"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from hidra_cli.api import DataError, Dataset, ImageClass, Split

from .sources import (
    SPLITS,
    Tree,
    check_choice,
    check_size,
    download,
    folder_tree,
    image_tree,
    split_file,
    zip_tree,
)

BACKGROUND = "images_background"
EVALUATION = "images_evaluation"
EVALUATION_ALPHABETS = frozenset(
    {
        "Angelic",
        "Atemayar_Qelisayer",
        "Atlantean",
        "Aurek-Besh",
        "Avesta",
        "Ge_ez",
        "Glagolitic",
        "Gurmukhi",
        "Kannada",
        "Keble",
        "Malayalam",
        "Manipuri",
        "Mongolian",
        "Old_Church_Slavonic_(Cyrillic)",
        "Oriya",
        "Sylheti",
        "Syriac_(Serto)",
        "Tengwar",
        "Tibetan",
        "ULOG",
    }
)
OFFICIAL_VAL_ALPHABETS = 5


class Omniglot(Dataset):
    """Omniglot from its two zip archives, as they are or extracted.

    The class split is either
    - `vinyals`: by character, 1028 train, 172 val and 423 test classes (Vinyals et al. 2016);
    - `official`: by alphabet. The 20 alphabets of images_evaluation are the test classes (659).
      Lake et al. define no validation part, so the last 5 of the 30 alphabets of
      images_background, sorted by name, are val (151 classes) and the other 25 train (813).
    """

    api_version = 1
    downloadable = True
    title = "Omniglot"
    licence = "MIT"
    citation = (
        "Lake, Salakhutdinov and Tenenbaum 2015, Human-level concept learning through "
        "probabilistic program induction, Science 350 (6266), 1332-1338"
    )
    homepage = "https://github.com/brendenlake/omniglot"

    invert = True

    def __init__(
        self,
        source: Path | None,
        *,
        size: Annotated[int, "height and width of the prepared images, in pixels"] = 28,
        split: Annotated[
            Literal["vinyals", "official"],
            "class split: vinyals (by character) or official (by alphabet)",
        ] = "vinyals",
        rotations: Annotated[
            bool, "also use each class turned by 90, 180 and 270 degrees as a class of its own"
        ] = False,
    ) -> None:
        check_choice("split", split, ("vinyals", "official"))
        self.image_shape = (1, check_size(size), size)
        self.source = source
        self.split = split
        self.rotations = rotations

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        """Return every character, and with `rotations` its three turned versions.

        Raises:
            DataError: characters are missing, or the download failed.
        """
        names = vinyals_split() if self.split == "vinyals" else official_split()
        images = self._images(downloads, {name for split in SPLITS for name in names[split]})
        return [
            ImageClass(f"{name}/rot{90 * turn:03}" if turn else name, split, images[name], turn)
            for split in SPLITS
            for name in names[split]
            for turn in range(4 if self.rotations else 1)
        ]

    def _images(self, downloads: Path, expected: set[str]) -> dict[str, list[Any]]:
        """Return the drawings of every expected character."""
        images: dict[str, list[Any]] = {}
        for tree in self._trees(downloads):
            for folder, drawings in sorted(tree.items()):
                name = "/".join(folder[-2:])
                if name in images:
                    raise DataError(
                        f"cannot tell which drawings of {name} to use",
                        why=f"{self.source} holds this character twice",
                        fix=f"give a folder with one {BACKGROUND} and one {EVALUATION}",
                    )
                if name in expected:
                    images[name] = drawings
        missing = sorted(expected - images.keys())
        if missing:
            halves = sorted({half_of(name) for name in missing})
            raise DataError(
                "Omniglot is incomplete",
                why=f"{len(images)} of {len(expected)} characters found in "
                f"{self.source or downloads}; missing from {' and '.join(halves)}: "
                f"{missing[0]}{' and others' if len(missing) > 1 else ''}",
                fix=f"put {BACKGROUND}.zip and {EVALUATION}.zip (from {self.homepage}, folder "
                "python) into one folder DIR and run: hidra prepare omniglot --source DIR",
            )
        return images

    def _trees(self, downloads: Path) -> list[Tree]:
        """Return the images of each half, or of the one place that holds both."""
        if self.source is None:
            return [zip_tree(archive) for archive in download_zips(downloads / "omniglot")]
        if self.source.is_file():
            return [zip_tree(self.source)]
        halves = []
        for half in (BACKGROUND, EVALUATION):
            # A zip that was extracted in place must not count twice.
            places = (self.source / f"{half}.zip", self.source / half)
            halves += [place for place in places if place.exists()][:1]
        return [image_tree(half) for half in halves] or [folder_tree(self.source)]


def half_of(name: str) -> str:
    """Return the published archive that holds a character."""
    return EVALUATION if name.split("/")[0] in EVALUATION_ALPHABETS else BACKGROUND


def vinyals_split() -> dict[Split, list[str]]:
    """Return the classes `Alphabet/characterNN` of each split of Vinyals et al. 2016."""
    return {
        split: [
            f"{alphabet}/character{number:02}"
            for alphabet, (first, last) in sorted(alphabets.items())
            for number in range(first, last + 1)
        ]
        for split, alphabets in split_file("omniglot-vinyals").items()
    }


def official_split() -> dict[Split, list[str]]:
    """Return the classes of each split by alphabet; see `Omniglot`."""
    characters = sorted(name for names in vinyals_split().values() for name in names)
    alphabets = sorted({name.split("/")[0] for name in characters} - EVALUATION_ALPHABETS)
    home: dict[str, Split] = dict.fromkeys(alphabets, "train")
    home |= dict.fromkeys(alphabets[-OFFICIAL_VAL_ALPHABETS:], "val")
    home |= dict.fromkeys(EVALUATION_ALPHABETS, "test")
    return {
        split: [name for name in characters if home[name.split("/")[0]] == split]
        for split in SPLITS
    }


def download_zips(folder: Path) -> list[Path]:
    """Download the two archives into `folder`; raise DataError if that fails."""
    from torchvision.datasets import Omniglot as Published

    return [
        download(
            f"{Published.download_url_prefix}/{half}.zip",
            folder,
            f"{half}.zip",
            Published.zips_md5[half],
            dataset="omniglot",
        )
        for half in (BACKGROUND, EVALUATION)
    ]
