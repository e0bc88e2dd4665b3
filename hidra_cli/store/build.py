"""Dataset plugin → one HDF5 file: decoded on all cores, written beside, checked, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock

from hidra_cli import __version__
from hidra_cli.api.data import SPLITS, Dataset, ImageClass
from hidra_cli.console import Advance
from hidra_cli.errors import DataError, RunError
from hidra_cli.store.decode import UInt8, decode_class
from hidra_cli.store.paths import StoreKey
from hidra_cli.store.reader import FORMAT, FORMAT_VERSION, ContentHash, open_store


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
) -> bool:
    """Write the prepared file unless it exists.

    Two writers at once are serialized by a lock; the second one finds the work done.

    Args:
        dataset: the plugin, built with its options.
        key: what the file is called after.
        path: the file to write.
        version: of the distribution that brings the plugin.
        source: recorded in the file.
        downloads: folder for verified downloads.
        progress: told the images done and in all.
        force: rebuild an existing file.
        workers: decoding processes; one per core by default.

    Returns:
        Whether the file was written now; False when it was there.

    Raises:
        DataError: the source is incomplete or an image is damaged.
        RunError: the file cannot be written (a full disk).
    """
    if path.exists() and not force:
        return False
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        # Released by the system when its process ends, so that no stale lock can be left.
        with lock:
            if path.exists() and not force:
                return False
            classes = _checked_classes(dataset, key.dataset, downloads)
            for leftover in path.parent.glob(f".{path.name}.*.tmp"):
                leftover.unlink()  # of a process that was killed: the lock is ours
            beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                attributes = _attributes(dataset, key, version, source)
                _write(beside, dataset, classes, attributes, progress, workers)
                open_store(beside, key.dataset, load=False)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Tell a failed write as what it is: the path, the system's reason, what to do."""
    try:
        yield
    except OSError as exc:
        raise RunError(
            f"{path} could not be written",
            why=exc.strerror or str(exc).split("\n")[0],
            fix="free some space or choose another place (--cache-dir for prepared images, "
            "--runs-dir for runs); nothing half-written was left",
        ) from exc


def _checked_classes(dataset: Dataset, name: str, downloads: Path) -> list[ImageClass]:
    classes = list(dataset.classes(downloads))
    seen: set[str] = set()
    for image_class in classes:
        if image_class.name in seen:
            raise DataError(f"{name} has two classes called '{image_class.name}'")
        if image_class.split not in SPLITS:
            raise DataError(
                f"class '{image_class.name}' is in an unknown split",
                why=f"'{image_class.split}' is none of {', '.join(SPLITS)}",
            )
        if not len(image_class.images):
            raise DataError(
                f"class '{image_class.name}' of {name} has no image",
                fix="add images to it or remove it",
            )
        seen.add(image_class.name)
    if not classes:
        raise DataError(f"{name} has no class at all", fix="give another --source")
    return classes


def _attributes(
    dataset: Dataset, key: StoreKey, version: str, source: Path | None
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dataset": key.dataset,
        "distribution": f"{key.distribution} {version}",
        "invert": str(dataset.invert),
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
    attributes: dict[str, Any],
    progress: Advance,
    workers: int | None,
) -> None:
    counts = [len(image_class.images) for image_class in classes]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    splits = np.array([SPLITS.index(c.split) for c in classes], np.uint8)
    names = [c.name for c in classes]
    content = ContentHash(dataset.image_shape, offsets, splits, names)
    source_hash = hashlib.sha256()
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (int(offsets[-1]), *dataset.image_shape), np.uint8)
        file["offsets"] = offsets
        file["splits"] = splits
        file.create_dataset("names", data=names, dtype=h5py.string_dtype())
        for index, (decoded, digest) in enumerate(_decoded(dataset, classes, workers)):
            images[offsets[index] : offsets[index + 1]] = decoded
            content.update(decoded)
            source_hash.update(digest)
            progress(int(offsets[index + 1]), total=int(offsets[-1]))
        file.attrs.update(attributes)
        file.attrs["source_hash"] = source_hash.hexdigest()
        file.attrs["content_hash"] = content.hexdigest()
        file.flush()
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _decoded(
    dataset: Dataset, classes: list[ImageClass], workers: int | None
) -> Iterator[tuple[UInt8, bytes]]:
    """Decode in order of the classes, a bounded number of them ahead of the writer."""
    count = max(1, min(workers or os.cpu_count() or 1, len(classes)))
    # Fresh interpreters: forking a process that has threads (torch) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context)
    ahead: list[Future[tuple[UInt8, bytes]]] = []
    try:
        for image_class in classes:
            ahead.append(
                pool.submit(decode_class, image_class, dataset.image_shape, dataset.invert)
            )
            if len(ahead) >= 8 * count:
                yield ahead.pop(0).result()
        while ahead:
            yield ahead.pop(0).result()
    except BrokenProcessPool as exc:
        raise RunError(
            "a decoding process was killed",
            why="the system may be out of memory",
            fix="close other programs and run the same command again",
        ) from exc
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
