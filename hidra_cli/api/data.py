"""The contracts of datasets: images, and families of functions.

Needs neither torch nor h5py: `hidra prepare` starts without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "val", "test"]
Fit = Literal["crop", "pad", "stretch"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class ArchiveMember:
    """One image inside a zip archive."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


ImageRef = "Path | ArchiveMember | np.ndarray[Any, Any]"


@dataclass(frozen=True)
class ImageClass:
    """One class and its images.

    Attributes:
        name: unique within the dataset; several levels are joined with "/".
        split: the part of the class split it belongs to.
        images: a picklable collection of references, iterated in a worker process: a path of any
            image format that Pillow reads, a member of a zip archive, or a uint8 array
            (H, W) or (H, W, 3) that needs no decoding.
        quarter_turns: counter-clockwise rotation by 90° × this, for rotations used as classes.
    """

    name: str
    split: Split
    images: Collection[Any]
    quarter_turns: int = 0


class Dataset(ABC):
    """A source of labelled images with a class split.

    Built as `Dataset(source, **options)`: `source` is what the user gave with `--source`
    (a folder or file that exists) or None. Raise `ValueError` for a bad option value.

    Class attributes:
        api_version: the `API_VERSION` the plugin was written for.
        title, licence, citation, homepage: recorded in every prepared file.
        embedded: made by the program itself, needs neither source nor download; `meta-train`
            then prepares it without being asked.
        downloadable: can be had without a source.
        source_is_identity: two sources are two datasets, as folders of a user are. The source is
            then part of the name of the prepared file.

    Attributes:
        image_shape: (C, H, W) of the prepared images; C is 1 (grey) or 3 (RGB).
        invert: store 255 − value, for dark strokes on white paper: zero padding of the
            convolutions then continues the background.
        fit: how images of another shape are fitted (`Preprocessing.fit`).
        background: the colour behind transparent pixels.
        value_range: the stored values that mean black and white; None for those of the format.
        notes: lines about the source that people should read, such as what was left out; `classes`
            may set it.
    """

    api_version: ClassVar[int]
    title: ClassVar[str]
    licence: ClassVar[str] = "unknown"
    citation: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    embedded: ClassVar[bool] = False
    source_is_identity: ClassVar[bool] = False
    downloadable: ClassVar[bool] = False

    image_shape: tuple[int, int, int]
    invert: bool = False
    fit: Fit = "crop"
    background: str = "white"
    value_range: tuple[float, float] | None = None
    notes: Sequence[str] = ()

    @abstractmethod
    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        """Yield every class of every split, in a fixed order.

        Args:
            downloads: folder for verified downloads; create it only when downloading.

        Raises:
            DataError: the source lacks what is needed; says what to put where.
        """


class FunctionFamily(ABC):
    """A family of functions of D numbers, of which every task is one: regression.

    Registered under `hidra.datasets`, as a `Dataset` is, and built as `FunctionFamily(**options)`.
    Tasks are drawn as they are needed: there is no source and nothing to prepare. The splits are
    independent streams of the same family. Raise `ValueError` for a bad option value.

    Class attributes:
        api_version: the `API_VERSION` the plugin was written for.
        title, licence, citation, homepage: recorded with every run.

    Attributes:
        inputs: D, of the class or set by `__init__`. Backbones see (n, 1, 1, D).
    """

    api_version: ClassVar[int]
    title: ClassVar[str]
    licence: ClassVar[str] = "unknown"
    citation: ClassVar[str] = ""
    homepage: ClassVar[str] = ""

    inputs: int

    @abstractmethod
    def draw(
        self, generator: np.random.Generator, outputs: int, examples: int
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Draw one task: n examples of one function with N outputs.

        With more outputs or more examples, the same generator gives the same first ones. So draw
        the inputs and each output from a generator of its own:
        `of_inputs, *of_outputs = generator.spawn(1 + outputs)`.

        Args:
            generator: keyed by the task; the only allowed source of randomness.
            outputs: N, 1 or more.
            examples: n.

        Returns:
            x (n, D) and y (n, N), both finite and float32.
        """
