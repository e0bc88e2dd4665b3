"""Dataset plugin → one HDF5 file: decoded on all cores, written beside, checked, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from hidra_cli import __version__
from hidra_cli.api.contract import ContractError, Subject
from hidra_cli.api.contract_data import check_is_class
from hidra_cli.api.data import SPLITS, ArchiveMember, Dataset, ImageClass
from hidra_cli.api.decoding import read_picture
from hidra_cli.api.places import place_raised, summary
from hidra_cli.api.preprocessing import Preprocessing, preprocessing_of
from hidra_cli.errors import DataError, HidraError, PluginError
from hidra_cli.images.cache import StoreKey
from hidra_cli.images.decoding_pool import decoded_classes
from hidra_cli.images.file_format import SEAL_BYTES, ContentHash, SafeFile, write_about
from hidra_cli.images.prepared import PreparedImages, open_store
from hidra_cli.images.writing import locked, write_beside
from hidra_cli.system.console import Advance
from hidra_cli.system.files import writing_to
from hidra_cli.system.signals import StopRequest, stop_requests

_OTHER_PLACE = "another place for prepared images (--cache-dir)"


def prepare(
    dataset: Dataset,
    key: StoreKey,
    path: Path,
    *,
    version: str,
    source: Path | None,
    downloads: Path,
    progress: Advance,
    force: bool = False,
    workers: int | None = None,
    skip_broken: bool = False,
) -> bool:
    """Write the prepared file unless it exists.

    A lock serializes two writers. The second one finds the file written.

    Args:
        dataset: the plugin, built with its options.
        key: the identity of the file, from which its name is made.
        path: the file to write.
        version: the version of the plugin's distribution.
        source: the source, which is recorded in the file.
        downloads: folder for verified downloads.
        progress: is called with the number of images that are done, and of all.
        force: rebuild an existing file.
        workers: decoding processes; one per core by default.
        skip_broken: leave out images that cannot be read, and record their number.

    Returns:
        Whether the file was written now; False if it existed.

    Raises:
        DataError: the source is incomplete or an image is damaged.
        RunError: the file cannot be written (a full disk).
    """
    force = force or is_stale(dataset, key, path, downloads)
    if path.exists() and not force:
        return False
    with locked(path):
        if path.exists() and not force:
            return False
        classes = _checked_classes(dataset, key, downloads)
        attributes = _attributes(dataset, key, version, source)
        attributes["contents"] = _contents(classes)
        if dataset.source_is_identity:
            attributes["listing"] = _listing(classes)
        if skip_broken:
            classes, attributes["skipped"] = _readable(classes, preprocessing_of(dataset))

        def write(beside: Path) -> None:
            _write(beside, dataset, classes, attributes, progress, workers, stop)
            open_store(beside, attributes["dataset"], load=False)

        with writing_to(path, _OTHER_PLACE), stop_requests() as stop:
            write_beside(path, write)
    stop.obey()
    return True


def is_stale(dataset: Dataset, key: StoreKey, path: Path, downloads: Path) -> bool:
    """Whether a folder has other files now than when it was prepared."""
    if not (dataset.source_is_identity and path.is_file()):
        return False
    try:
        with contextlib.closing(open_store(path, key.dataset, load=False)) as images:
            return has_changed(dataset, key, images, downloads)
    except DataError:
        return False  # damaged: opening it will say so


def has_changed(dataset: Dataset, key: StoreKey, images: PreparedImages, downloads: Path) -> bool:
    """Whether a folder has other files now than those that the images came from."""
    if not dataset.source_is_identity:
        return False
    return images.attributes.get("listing") != _listing(_listed(dataset, key, downloads))


def check_source(
    dataset: Dataset, key: StoreKey, images: PreparedImages, source: Path | None, downloads: Path
) -> None:
    """Refuse prepared images that came from another source with other content.

    Raises:
        DataError: names both sources; or the new one cannot be read.
    """
    before = images.attributes.get("source", "")
    if source is None or dataset.source_is_identity:
        return
    if before and Path(before).resolve() == source.resolve():
        return
    classes = _listed(dataset, key, downloads)
    now = [(c.name, SPLITS.index(c.split), len(c.images)) for c in classes]
    counts = np.diff(images.offsets).tolist()
    same = now == list(zip(images.names, images.splits.tolist(), counts, strict=True))
    if not same or images.attributes.get("contents") not in (None, _contents(classes)):
        raise DataError(
            f"{key.dataset} was prepared from {before or 'a download'}, not from {source}",
            why="the two hold other images, and the prepared ones would be used",
            fix=f"hidra prepare {key.dataset} --source {source} --force   (with the same "
            f"--data-opt), or --source {before}",
        )


def _contents(classes: list[ImageClass]) -> str:
    """A digest of the names and sizes of the files, without their folders."""
    digest = hashlib.sha256()
    for image_class in classes:
        digest.update(f"{image_class.split}/{image_class.name}\n".encode())
        for reference in image_class.images:
            if isinstance(reference, Path):
                name, size = reference.name, 0
                with contextlib.suppress(OSError):  # decoding it will say so
                    size = reference.stat().st_size
                digest.update(os.fsencode(name) + f"\0{size}\n".encode())
            elif isinstance(reference, ArchiveMember):
                digest.update(PurePosixPath(reference.name).name.encode(errors="replace") + b"\n")
    return digest.hexdigest()


def _listing(classes: list[ImageClass]) -> str:
    """A digest of names, sizes and times of the files. It is cheap, and any edit changes it."""
    digest = hashlib.sha256()
    for image_class in classes:
        digest.update(f"{image_class.split}/{image_class.name}\n".encode())
        for reference in image_class.images:
            if isinstance(reference, Path):
                try:
                    status = reference.stat()
                except OSError as exc:
                    raise DataError(f"the image {reference} cannot be read", why=str(exc)) from exc
                digest.update(os.fsencode(reference))
                digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _checked_classes(dataset: Dataset, key: StoreKey, downloads: Path) -> list[ImageClass]:
    name = key.dataset
    classes = _listed(dataset, key, downloads)
    seen: set[str] = set()
    for image_class in classes:
        label = ascii(image_class.name)
        if not image_class.name.isprintable():
            raise DataError(f"the class name {label} of {name} cannot be printed", fix="rename it")
        if image_class.name in seen:
            raise DataError(f"{name} has two classes called {label}")
        if image_class.split not in SPLITS:
            raise DataError(
                f"class {label} is in an unknown split",
                why=f"'{image_class.split}' is none of {', '.join(SPLITS)}",
            )
        if image_class.quarter_turns % 2 and dataset.image_shape[1] != dataset.image_shape[2]:
            raise DataError(
                f"class {label} of {name} is turned by 90°, but its images are not square",
                why=f"they are {dataset.image_shape[1]}×{dataset.image_shape[2]}",
            )
        if not len(image_class.images):
            raise DataError(f"class {label} of {name} has no image", fix="add images or remove it")
        seen.add(image_class.name)
    if not classes:
        raise DataError(f"{name} has no class at all", fix="give another --source")
    return classes


def _readable(
    classes: list[ImageClass], preprocessing: Preprocessing
) -> tuple[list[ImageClass], str]:
    """Leave out images that cannot be read. Return the other ones and the number left out."""

    def can_be_read(reference: Any) -> bool:
        try:
            read_picture(reference, preprocessing)
        except DataError:
            return False
        return True

    kept = []
    with ThreadPoolExecutor() as pool:
        for image_class in classes:
            images = list(image_class.images)
            images = list(itertools.compress(images, pool.map(can_be_read, images)))
            if not images:
                raise DataError(
                    f"class {image_class.name!a} has no image that can be read",
                    fix="repair its images, or remove its folder",
                )
            kept.append(replace(image_class, images=images))
    skipped = sum(len(c.images) for c in classes) - sum(len(c.images) for c in kept)
    return kept, str(skipped)


def _listed(dataset: Dataset, key: StoreKey, downloads: Path) -> list[ImageClass]:
    """All classes. An unreadable source and a faulty plugin raise different errors."""
    subject = Subject(type(dataset))
    try:
        classes = list(dataset.classes(downloads))
        for image_class in classes:
            check_is_class(subject, image_class)
        return classes
    except (HidraError, ContractError):
        raise
    except OSError as exc:
        raise DataError(
            f"the source of {key.dataset} cannot be read", why=str(exc), fix="check --source"
        ) from exc
    except Exception as exc:
        raise PluginError(
            f"the dataset '{key.dataset}' of {key.distribution} failed to list its classes",
            why=f"{summary(exc)}\nin {place_raised(exc, subject.package)}",
            fix=f"report it to the authors of {key.distribution}",
        ) from exc


def _attributes(
    dataset: Dataset, key: StoreKey, version: str, source: Path | None
) -> dict[str, str]:
    return {
        "dataset": key.dataset,
        "distribution": f"{key.distribution} {version}",
        "invert": str(dataset.invert),
        "preprocessing": json.dumps(preprocessing_of(dataset).record()),
        "options": json.dumps(dict(key.options), sort_keys=True, default=str),
        "title": dataset.title,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "homepage": dataset.homepage,
        "source": str(source) if source else "",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "written_by": f"hidra-cli {__version__}",
    }


def _write(
    path: Path,
    dataset: Dataset,
    classes: list[ImageClass],
    attributes: dict[str, str],
    progress: Advance,
    workers: int | None,
    stop: StopRequest,
) -> None:
    counts = [len(image_class.images) for image_class in classes]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    splits = np.array([SPLITS.index(c.split) for c in classes], np.uint8)
    names = [c.name for c in classes]
    content = ContentHash(dataset.image_shape, dataset.invert, offsets, splits, names)
    source_hash = hashlib.sha256()
    with SafeFile(path) as target:
        with h5py.File(target, "w", userblock_size=SEAL_BYTES) as file:
            images = file.create_dataset(
                "images", (int(offsets[-1]), *dataset.image_shape), np.uint8
            )
            file["offsets"] = offsets
            file["splits"] = splits
            for index, (decoded, digest) in enumerate(
                decoded_classes(dataset, classes, workers, stop)
            ):
                images[offsets[index] : offsets[index + 1]] = decoded
                target.check()
                content.update(decoded)
                source_hash.update(digest)
                progress(int(offsets[index + 1]), total=int(offsets[-1]))
            attributes["source_hash"] = source_hash.hexdigest()
            attributes["content_hash"] = content.hexdigest()
            write_about(file, {"attributes": attributes, "names": names})
        target.check()
        target.seal()
