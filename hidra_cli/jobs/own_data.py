"""People's own pictures of a task: found, read, audited, and put beside those that were kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.errors import DataError, UsageError
from hidra_cli.images.audit import Audit, AuditedPicture, Part, audit
from hidra_cli.images.labelled import LabelledPictures, labelled_pictures
from hidra_cli.images.own_pictures import (
    PictureOptions,
    ReadPictures,
    is_blank,
    ranges_of,
    read_pictures,
)
from hidra_cli.jobs.classifier import KeptSupport


@dataclass(frozen=True)
class OwnPictures:
    """Where the pictures are.

    Attributes:
        support: folder of the pictures to learn.
        query: folder of the pictures to test on.
        labels, query_labels: label files, where they are not in the folders.
        base: a classifier that grows by the support pictures.
        options: how they are read.
    """

    support: Path
    query: Path | None = None
    labels: Path | None = None
    query_labels: Path | None = None
    base: Path | None = None
    options: PictureOptions = field(default_factory=PictureOptions)


@dataclass(frozen=True)
class OwnData:
    """The pictures of a task as a model sees them.

    Attributes:
        classes: N names.
        images: (n, C, H, W) of the support set in [0, 1]; those that a classifier kept come first.
        labels: (n,).
        paths: of the new support pictures, the last of the n.
        query: images and labels of the query set.
        preprocessing: how they were read, and how others have to be.
        audit: what is noteworthy.
    """

    classes: tuple[str, ...]
    images: Tensor
    labels: Tensor
    paths: tuple[Path, ...]
    query: tuple[Tensor, Tensor] | None
    preprocessing: Preprocessing
    audit: Audit

    @property
    def counts(self) -> dict[str, int]:
        """Support pictures of each class."""
        numbers = self.labels.bincount(minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, numbers, strict=True))


def read_own(
    pictures: OwnPictures,
    preprocessing: Preprocessing,
    device: torch.device,
    kept: KeptSupport | None = None,
) -> OwnData:
    """Find and read the pictures of a task.

    Args:
        pictures: where they are.
        preprocessing: of the model or of the classifier that grows.
        device: where the images go.
        kept: what the classifier kept.

    Raises:
        DataError: pictures or labels are missing, damaged, of one grey, or do not fit.
        UsageError: folders or options cannot be right.
    """
    options = pictures.options
    support = labelled_pictures(pictures.support, pictures.labels)
    if kept is not None:
        support = support.called_as(kept.classes)
    read = read_support(support.paths, preprocessing, options, keep_ranges=kept is not None)
    wanted = read.preprocessing
    support = support.without(set(read.damaged))
    _check_seen(support, read)
    classes, images, labels = _together(support, read.images.to(device), kept)
    query = asked = query_read = None
    if pictures.query is not None:
        asked = labelled_pictures(pictures.query, pictures.query_labels, may_be_empty=True)
        asked = asked.within(classes, pictures.query)
        query_read = _read(asked.paths, wanted, options)
        asked = asked.without(set(query_read.damaged))
        if asked.paths:
            query = (query_read.images.to(device), labels.new_tensor(asked.labels))
    parts: list[tuple[Part, LabelledPictures, ReadPictures]] = [("support", support, read)]
    if asked is not None and query_read is not None:
        parts.append(("query", asked, query_read))
    return OwnData(tuple(classes), images, labels, read.paths, query, wanted, _audit(parts))


def read_support(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    options: PictureOptions,
    *,
    keep_ranges: bool = False,
) -> ReadPictures:
    """Read the pictures to learn; their values say which range means black and white.

    Args:
        paths: of the pictures.
        preprocessing: of the model.
        options: what of it is changed.
        keep_ranges: take the ranges of `preprocessing`, whatever the pictures hold.

    Raises:
        DataError: one cannot be read.
        UsageError: options cannot be right.
    """
    try:
        wanted = options.applied_to(preprocessing)
    except ValueError as exc:
        raise UsageError(
            "pictures cannot be read like that",
            why=str(exc),
            fix="--background white or '#ffffff'; --value-range 0:4095",
        ) from exc
    read = _read(paths, wanted, options)
    if not keep_ranges and (ranges := ranges_of(read.pictures, wanted.ranges)) != wanted.ranges:
        read = _read(paths, replace(wanted, ranges=ranges), options)
    return read


def _read(
    paths: Sequence[Path], preprocessing: Preprocessing, options: PictureOptions
) -> ReadPictures:
    return read_pictures(
        paths, preprocessing, max_pixels=options.max_pixels, skip_broken=options.skip_broken
    )


def _check_seen(support: LabelledPictures, read: ReadPictures) -> None:
    """Refuse pictures that show nothing, and classes that lost all of theirs."""
    if read.pictures and all(map(is_blank, read.pictures)):
        raise DataError(
            f"all {len(read.pictures)} support pictures hold almost one grey",
            why="\n".join(read.remarks),
            fix="look at one of them, then choose --background, --fit or --value-range",
        )
    counts = Counter(support.labels)
    for index, name in enumerate(support.classes):
        if not counts[index]:
            raise DataError(
                f"no picture of the class {name!r} could be read",
                why=next(iter(read.damaged.values())).what,
                fix="repair or replace its pictures, or remove the class",
            )


def _together(
    support: LabelledPictures, images: Tensor, kept: KeptSupport | None
) -> tuple[list[str], Tensor, Tensor]:
    """Classes, images and labels: those a classifier kept, then the new ones."""
    new = torch.tensor(support.labels, device=images.device)
    if kept is None:
        return list(support.classes), images, new
    classes = [*kept.classes, *(name for name in support.classes if name not in kept.classes)]
    places = torch.tensor([classes.index(name) for name in support.classes], device=images.device)
    return classes, torch.cat([kept.images, images]), torch.cat([kept.labels, places[new]])


def _audit(parts: Sequence[tuple[Part, LabelledPictures, ReadPictures]]) -> Audit:
    audited = [
        AuditedPicture(path, labelled.classes[label], part, picture)
        for part, labelled, read in parts
        for path, label, picture in zip(labelled.paths, labelled.labels, read.pictures, strict=True)
    ]
    damaged = {path: error.why for _, _, read in parts for path, error in read.damaged.items()}
    notes = [
        f"{part}: {line}" for part, labelled, read in parts
        for line in (*labelled.notes, *read.remarks)
    ]  # fmt: skip
    left_out = {part: labelled.left_out for part, labelled, _ in parts}
    return audit(audited, left_out, damaged, notes)
