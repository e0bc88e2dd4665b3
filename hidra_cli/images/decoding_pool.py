"""Images decoded by several processes, in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from hidra_cli.api.data import Dataset, ImageClass
from hidra_cli.api.decoding import all_damaged, decode_class, turned
from hidra_cli.api.places import place_raised, summary
from hidra_cli.api.preprocessing import Preprocessing, UInt8, preprocessing_of
from hidra_cli.errors import DataError, HidraError, PluginError, RunError
from hidra_cli.system.signals import StopRequest, held_back

Decoding = Future[tuple[UInt8, bytes]]


_SECONDS_BETWEEN_LOOKS = 0.1


def decoded_classes(
    dataset: Dataset, classes: list[ImageClass], workers: int | None, stop: StopRequest
) -> Iterator[tuple[UInt8, bytes]]:
    """Decode in order of the classes, a bounded number of them ahead of the writer.

    Raises:
        DataError: images cannot be read; names them all where the images are people's own.
    """
    damaged: list[DataError] = []
    count = max(1, min(workers or os.cpu_count() or 1, len(classes)))
    # Fresh interpreters: forking a process that has threads (torch) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_the_parent)
    ahead: list[tuple[Decoding, int]] = []
    try:
        for before, image_class in zip([None, *classes], classes, strict=False):
            if before is None or image_class.images is not before.images:
                pickled = _pickled(image_class)
                with held_back():  # it may start a process
                    decoding = pool.submit(_decode_pickled, pickled, preprocessing_of(dataset))
            # Turned versions of a class follow each other and are decoded once.
            ahead.append((decoding, image_class.quarter_turns))
            if len(ahead) >= 16 * count:
                yield from _undamaged(*ahead.pop(0), stop, damaged)
            if damaged and not dataset.source_is_identity:
                break
        while ahead and (dataset.source_is_identity or not damaged):
            yield from _undamaged(*ahead.pop(0), stop, damaged)
    except BrokenProcessPool as exc:
        raise RunError(
            "a decoding process was killed",
            why="the system may be out of memory",
            fix="close other programs and run the same command again",
        ) from exc
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if damaged:
        error = all_damaged(damaged)
        if dataset.source_is_identity:
            fix = error.fix or "repair, replace or remove it"
            error = DataError(error.what, why=error.why, fix=f"{fix}; or --skip-broken")
        raise error


def _undamaged(
    decoding: Decoding, quarter_turns: int, stop: StopRequest, damaged: list[DataError]
) -> Iterator[tuple[UInt8, bytes]]:
    """A class, unless it or one before it is damaged."""
    try:
        result = _finished(decoding, quarter_turns, stop)
    except DataError as error:
        damaged.append(error)
        return
    if not damaged:
        yield result


def _pickled(image_class: ImageClass) -> bytes:
    """Done here: where the pool's own pickling fails, its shutdown may wait for ever."""
    try:
        return pickle.dumps(image_class)
    except Exception as exc:
        raise PluginError(
            f"the images of class '{image_class.name}' cannot be handed to a decoding process",
            why=_reason(image_class, exc),
        ) from exc


def _reason(image_class: ImageClass, exc: BaseException) -> str:
    """What its images raised, and in which line of the author's code."""
    where = place_raised(exc, type(image_class.images).__module__.partition(".")[0])
    return summary(exc) + (f"\nin {where}" if where else "")


def _decode_pickled(pickled: bytes, preprocessing: Preprocessing) -> tuple[UInt8, bytes]:
    image_class = pickle.loads(pickled)
    try:
        return decode_class(image_class, preprocessing)
    except HidraError:
        raise
    except Exception as exc:  # said here, where its traceback is
        raise PluginError(
            f"the images of class '{image_class.name}' could not be read",
            why=_reason(image_class, exc),
        ) from exc


def _end_with_the_parent() -> None:
    """Let a decoding process end when the one that started it does, even by SIGKILL.

    What a plugin prints there goes to stderr.
    """
    os.dup2(2, 1)

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _finished(decoding: Decoding, quarter_turns: int, stop: StopRequest) -> tuple[UInt8, bytes]:
    try:
        while True:
            stop.obey()
            with contextlib.suppress(TimeoutError):
                decoded, digest = decoding.result(timeout=_SECONDS_BETWEEN_LOOKS)
                return turned(decoded, quarter_turns), digest
    except (HidraError, BrokenProcessPool):
        raise
    except Exception as exc:
        raise PluginError(
            "the images of a class could not be read from a decoding process",
            why=f"{type(exc).__name__}: {exc}",
            fix="this is a fault of the dataset plugin: report it to its authors",
        ) from exc
