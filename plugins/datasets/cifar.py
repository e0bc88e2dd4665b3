"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 images of 32 × 32 pixels each."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hidra_cli.api import DataError, Dataset, ImageClass, Split, entries, shown

from .archives import tar_members
from .sources import (
    Tree,
    check_choice,
    check_size,
    download,
    folder_tree,
    split_file,
    zip_tree,
)

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PARTS = ("train", "val", "test")
TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")
LARGEST_IMAGES = 1 << 28  # bytes; the largest file that is published has 156 million
LARGEST_NAMES = 1 << 16
# MD5 of train, test and meta in cifar-100-python.tar.gz, as torchvision.datasets.CIFAR100 has them.
PUBLISHED = {
    "16019d7e3df5f24257cddd939b257f8d",
    "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "7973b15100ade9c7d40fb424638fde48",
}
ACCEPTED = (
    "give --source a folder or zip of class folders (apple/*.png, or train/apple/*.png and "
    "test/apple/*.png), or cifar-100-python.tar.gz or cifar-100-binary.tar.gz from "
    "https://www.cs.toronto.edu/~kriz/cifar.html, or a folder that holds one of these archives"
)


class CifarFS(Dataset):
    """CIFAR-100 split by class for few-shot learning; its train and test images are merged.

    The class split is either `cifar-fs` (64/16/20 classes, Bertinetto et al. 2019) or `fc100`
    (60/20/20 classes, no superclass in two splits, Oreshkin et al. 2018).
    """

    api_version = 1
    downloadable = True
    title = "CIFAR-100 for few-shot learning (CIFAR-FS, FC100)"
    licence = "none stated by the authors of CIFAR-100"
    citation = (
        "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images; "
        "Bertinetto, Henriques, Torr and Vedaldi 2019, Meta-learning with differentiable "
        "closed-form solvers (CIFAR-FS); Oreshkin, Rodriguez and Lacoste 2018, TADAM (FC100)"
    )
    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def __init__(
        self,
        source: Path | None,
        *,
        size: Annotated[int, "height and width of the prepared images, in pixels"] = SIDE,
        split: Annotated[
            Literal["cifar-fs", "fc100"],
            "class split: cifar-fs (by class) or fc100 (by superclass)",
        ] = "cifar-fs",
    ) -> None:
        check_choice("split", split, ("cifar-fs", "fc100"))
        self.image_shape = (3, check_size(size), size)
        self.source = source
        self.split = split

    def classes(self, downloads: Path) -> Iterable[ImageClass]:
        """Return the 100 classes.

        Raises:
            DataError: classes are missing, an archive is damaged or unsafe, the download failed.
        """
        home = class_split(self.split)
        place = self.source or download_archive(downloads / "cifar-100")
        content = find_content(place)
        if isinstance(content, Path):
            return classes_from_arrays(*read_tar(content), home, content)
        return classes_from_tree(content, home, place)


def class_split(name: str) -> dict[str, Split]:
    """Return the split of each fine label, sorted by split and label."""
    home: dict[str, Split] = {}
    for split, labels in split_file(name).items():
        # FC100 lists its labels below their superclasses.
        fine = labels if isinstance(labels, list) else chain.from_iterable(labels.values())
        home |= dict.fromkeys(sorted(fine), split)
    return home


def find_content(place: Path) -> Tree | Path:
    """Return the class folders of a folder or zip, or the path of an official archive.

    Raises:
        DataError: neither is there, or there are several archives.
    """
    if place.is_file():
        return zip_tree(place) if zipfile.is_zipfile(place) else place
    tree = folder_tree(place)
    if any(tree):  # an image that lies beside an archive is no class
        return tree
    archives = [
        Path(entry.path)
        for entry in entries(place)
        if entry.is_file() and entry.name.lower().endswith((".zip", *TAR_SUFFIXES))
    ]
    if len(archives) != 1:
        names = ", ".join(shown(archive.name) for archive in archives)
        why = f"it holds several archives: {names}" if archives else "it has no class folders"
        why += "" if archives else f" and no archive ({', '.join(('.zip', *TAR_SUFFIXES))})"
        raise DataError(f"cannot find CIFAR-100 in {place}", why=why, fix=ACCEPTED)
    return find_content(archives[0])


def classes_from_tree(tree: Tree, home: dict[str, Split], origin: Path) -> list[ImageClass]:
    """Return the classes whose images are files, each named by the folder it lies in.

    Raises:
        DataError: a class is missing, or class folders lie neither in one place nor in train/
            and test/ together.
    """
    images: dict[str, list[Any]] = {}
    places = set()
    for folder in sorted(tree):
        if folder and folder[-1] in home:
            places.add(folder[:-1])
            images.setdefault(folder[-1], []).extend(tree[folder])
    # A class is called "train" too, so only the folder above a class can be a part.
    parts = {place[-1] if place and place[-1] in PARTS else "" for place in places}
    roots = {place[:-1] if place and place[-1] in PARTS else place for place in places}
    if len(roots) > 1 or parts not in (set(), {""}, {"train", "test"}, set(PARTS)):
        holders = ", ".join(sorted(shown("/".join(place) or ".") for place in places)[:5])
        holders += f" and {len(places) - 5} more places" if len(places) > 5 else ""
        raise DataError(
            f"cannot tell which images of {origin} to use",
            why=f"it holds class folders in: {holders}",
            fix=ACCEPTED,
        )
    check_complete(images.keys(), home, origin)
    return [ImageClass(name, split, images[name]) for name, split in home.items()]


def classes_from_arrays(
    names: list[str],
    pixels: Pixels,
    labels: np.ndarray[Any, Any],
    home: dict[str, Split],
    archive: Path,
) -> Iterator[ImageClass]:
    """Return the classes of an official archive, made one by one.

    Args:
        names: name of each label.
        pixels: (n, 3072), red, green and blue planes.
        labels: (n,), indices into `names`.

    Raises:
        DataError: a class is missing.
    """
    present = {names[label] for label in set(labels.tolist())}
    check_complete(present, home, archive)

    def images_of(name: str) -> list[Pixels]:
        of_class = pixels[labels == names.index(name)].reshape(-1, 3, SIDE, SIDE)
        return [image.transpose(1, 2, 0).copy() for image in of_class]

    return (ImageClass(name, split, images_of(name)) for name, split in home.items())


def check_complete(classes: Iterable[str], home: dict[str, Split], place: Path) -> None:
    """Raise DataError unless every class of the split is there."""
    missing = sorted(home.keys() - set(classes))
    if missing:
        raise DataError(
            f"CIFAR-100 in {place} is incomplete",
            why=f"{len(home) - len(missing)} of {len(home)} classes found; "
            f"the first missing is {missing[0]!r}",
            fix=ACCEPTED,
        )


def read_tar(archive: Path) -> tuple[list[str], Pixels, np.ndarray[Any, Any]]:
    """Read an official archive, in its Python or binary version, without extracting it.

    Returns:
        Names of the labels, pixels (n, 3072) and labels (n,), the training images first.

    Raises:
        DataError: not such an archive, damaged, or with a pickle that was not published.
    """
    import numpy as np

    try:
        parts = read_members(archive)
    except DataError:
        raise
    except Exception as error:  # a damaged archive can raise nearly anything
        reason = shown(str(error).split("\n")[0].rstrip(":"))
        raise damaged(archive, f"it is not a tar archive, or damaged: {reason}") from error
    for train, test, names in (
        ("train", "test", "meta"),
        ("train.bin", "test.bin", "fine_label_names.txt"),
    ):
        if {train, test, names} <= parts.keys():
            break
    else:
        raise damaged(archive, "it holds neither the Python nor the binary version of CIFAR-100")
    pixels = np.concatenate([parts[train][0], parts[test][0]])
    labels = np.concatenate([parts[train][1], parts[test][1]])
    if labels.size and not 0 <= labels.min() <= labels.max() < len(parts[names]):
        raise damaged(archive, f"it has labels outside 0 to {len(parts[names]) - 1}")
    return parts[names], pixels, labels


def read_members(archive: Path) -> dict[str, Any]:
    """Read the regular files of a tar archive that CIFAR-100 consists of, in one pass."""
    readers = {
        "train": (read_pickled_images, LARGEST_IMAGES),
        "test": (read_pickled_images, LARGEST_IMAGES),
        "meta": (read_pickled_names, LARGEST_NAMES),
        "train.bin": (read_binary_images, LARGEST_IMAGES),
        "test.bin": (read_binary_images, LARGEST_IMAGES),
        "fine_label_names.txt": (read_text_names, LARGEST_NAMES),
    }
    parts: dict[str, Any] = {}
    for name, content in tar_members(archive, {name: most for name, (_, most) in readers.items()}):
        if name in parts:
            raise damaged(archive, f"it holds {name} twice")
        parts[name] = readers[name][0](content, archive)
    return parts


def read_binary_images(content: bytes, archive: Path) -> tuple[Pixels, np.ndarray[Any, Any]]:
    """Read records of a coarse label, a fine label and 3072 bytes of pixels."""
    import numpy as np

    values = np.frombuffer(content, dtype=np.uint8)
    if values.size == 0 or values.size % (PIXELS + 2):
        raise damaged(archive, f"its images are not records of {PIXELS + 2} bytes")
    records = values.reshape(-1, PIXELS + 2)
    return records[:, 2:], records[:, 1].astype(np.int64)


def read_text_names(content: bytes, archive: Path) -> list[str]:
    """Read one label name per line."""
    try:
        return content.decode("ascii").split()
    except UnicodeDecodeError as error:
        raise damaged(archive, f"its label names are not text: {error}") from error


def read_pickled_images(content: bytes, archive: Path) -> tuple[Pixels, np.ndarray[Any, Any]]:
    """Read a pickled dictionary with `data`, uint8 (n, 3072), and `fine_labels`, n integers."""
    import numpy as np

    entries = load_published(content, archive)
    return entries["data"], np.array(entries["fine_labels"], dtype=np.int64)


def read_pickled_names(content: bytes, archive: Path) -> list[str]:
    """Read the list `fine_label_names` of a pickled dictionary."""
    names: list[str] = load_published(content, archive)["fine_label_names"]
    return names


def load_published(content: bytes, archive: Path) -> dict[str, Any]:
    """Unpickle a file of the published archive, and nothing else.

    Raises:
        DataError: its checksum is not that of a published file; it was not unpickled.
    """
    checksum = hashlib.md5(content).hexdigest()
    if checksum not in PUBLISHED:
        raise DataError(
            f"refused to load a pickle in {archive}",
            why=f"a pickle may hold code, and this one (MD5 {checksum}) is not one of those that "
            "the authors of CIFAR-100 published",
            fix=ACCEPTED,
        )
    entries: dict[str, Any] = pickle.loads(content, encoding="latin1")  # Python 2 wrote it
    return entries


def damaged(archive: Path, why: str) -> DataError:
    """Return the error for an archive that cannot be read as CIFAR-100."""
    return DataError(f"cannot read CIFAR-100 from {archive}", why=why, fix=ACCEPTED)


def download_archive(folder: Path) -> Path:
    """Download the official archive into `folder`; raise DataError if that fails."""
    from torchvision.datasets import CIFAR100

    archive: Path = download(
        CIFAR100.url, folder, CIFAR100.filename, CIFAR100.tgz_md5, dataset="cifar-fs"
    )
    return archive
