"""The contracts of datasets and of families of functions, checked by using one. Needs no torch."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np

from hidra_cli.api.contract import Subject, check_declarations
from hidra_cli.api.data import SPLITS, ArchiveMember, Dataset, FunctionFamily, ImageClass
from hidra_cli.api.places import summary
from hidra_cli.errors import DataError, HidraError

_LIST = "give a list, or a class with __len__ and __iter__"
_GENERATORS = "of_x, *of_outputs = generator.spawn(1 + outputs)"


def check_dataset_class(
    component: type[Dataset], source: Path | None, downloads: Path, options: Mapping[str, Any]
) -> None:
    """Check a dataset's description, its classes and splits, and some images.

    Args:
        component: the class.
        source: a folder or a file, or None.
        downloads: the folder for downloads.
        options: as `__init__` takes them.

    Raises:
        ContractError: the first fault.
        ValueError: the class refuses the options.
        DataError: it misses its source, or says what else is missing.
    """
    subject = Subject(component)
    check_declarations(subject, ("source",))
    _check_title(subject)
    with subject.calling("__init__", f"the source {source}", ValueError):
        dataset: Dataset = subject.component(source, **options)
    check_description(subject, dataset)
    classes = _listed(subject, dataset, downloads)
    check_classes(subject, classes, dataset.image_shape)
    if [each.name for each in _listed(subject, dataset, downloads)] != [c.name for c in classes]:
        raise subject.fault(
            "classes",
            "gives another order the second time",
            "sort what it lists: sorted(folder.iterdir()), never a set",
        )
    firsts = {each.split: each for each in reversed(classes)}
    for each in firsts.values():
        _check_images(subject, each, dataset.image_shape)


def _check_title(subject: Subject) -> None:
    title = getattr(subject.component, "title", "")
    if not isinstance(title, str) or not title:
        raise subject.fault_of_class("has no title", 'write title = "What it shows" in the class')


def check_description(subject: Subject, dataset: Dataset) -> None:
    """Raise `ContractError` where a dataset does not say of what form its images are."""
    from hidra_cli.api.preprocessing import preprocessing_of

    shape = getattr(dataset, "image_shape", None)
    instead = "write self.image_shape = (1, 28, 28) in __init__: channels, height, width"
    if shape is None:
        raise subject.fault("__init__", "sets no image_shape", instead)
    three = isinstance(shape, tuple) and [type(size) for size in shape] == [int] * 3
    if not three or shape[0] not in (1, 3) or min(shape) < 1:
        raise subject.fault(
            "__init__",
            f"sets image_shape to {shape!r}, not to (C, H, W) with 1 or 3 channels",
            instead,
        )
    try:
        preprocessing_of(dataset)
    except HidraError:
        raise
    except Exception as exc:
        raise subject.fault_of_class(
            f"declares invert, fit, background or value_range wrongly: {summary(exc)}",
            'as in: fit = "crop", background = "white", value_range = (0, 255)',
        ) from exc


def _listed(subject: Subject, dataset: Dataset, downloads: Path) -> list[Any]:
    with subject.calling("classes", f"the folder {downloads.name}"):
        classes: object = dataset.classes(downloads)
        if not isinstance(classes, Iterable):
            raise subject.fault(
                "classes", f"gives {type(classes).__name__}, not classes", "yield ImageClass(…)"
            )
        return list(classes)


def check_classes(subject: Subject, classes: list[Any], shape: tuple[int, int, int]) -> None:
    """Raise `ContractError` for the first class that is none, or is in two splits."""
    if not classes:
        raise subject.fault("classes", "gives no class", "yield ImageClass(name, split, images)")
    splits: dict[str, str] = {}
    for each in classes:
        check_is_class(subject, each)
        _check_class(subject, each, shape)
        if each.name in splits:
            before = splits[each.name]
            raise subject.fault(
                "classes",
                f"gives the class '{each.name}' twice"
                if before == each.split
                else f"gives the class '{each.name}' in two splits, {before} and {each.split}: "
                "what is tested would have been trained on",
                "give every class once, in one split",
            )
        splits[each.name] = each.split


def check_is_class(subject: Subject, each: Any) -> None:
    """Raise `ContractError` where something that a dataset yields is no class with images."""
    if not isinstance(each, ImageClass):
        raise subject.fault(
            "classes",
            f"gives an object of type {type(each).__name__}, not an ImageClass",
            "yield ImageClass(name, split, images)",
        )
    images: object = each.images
    if not isinstance(images, Sized):
        fault = f"gives images of the class {each.name!r} that have no length"
        raise subject.fault("classes", fault, _LIST)


def _check_class(subject: Subject, each: ImageClass, shape: tuple[int, int, int]) -> None:
    label = f"the class {each.name!r}"
    if not isinstance(each.name, str) or not each.name or not each.name.isprintable():
        raise subject.fault("classes", f"gives {label}, which is no name", "a name is text")
    if each.split not in SPLITS:
        raise subject.fault(
            "classes", f"puts {label} into the unknown split {each.split!r}", "train, val or test"
        )
    if not len(each.images):
        raise subject.fault("classes", f"gives {label} without an image", "leave the class out")
    if type(each.quarter_turns) is not int or (each.quarter_turns % 2 and shape[1] != shape[2]):
        raise subject.fault(
            "classes",
            f"turns {label} by quarter_turns = {each.quarter_turns!r}, with images of "
            f"{shape[1]}×{shape[2]} pixels",
            "a whole number of turns by 90°; images that are turned are square",
        )


def _check_images(subject: Subject, each: ImageClass, shape: tuple[int, int, int]) -> None:
    """The images of a class can be counted, handed to another process, and read."""
    label = f"the class '{each.name}'"
    with subject.calling("classes", f"the images of {label}"):
        images = list(each.images)
        again = list(each.images)
    if not len(images) == len(again) == len(each.images):
        raise subject.fault(
            "classes",
            f"says {label} has {len(each.images)} images, but gives {len(images)}, "
            f"and then {len(again)}",
            _LIST,
        )
    try:
        pickle.loads(pickle.dumps(each))
    except Exception as exc:
        raise subject.fault(
            "classes",
            f"gives images of {label} that cannot be handed to another process: {summary(exc)}",
            "give paths, members of archives or arrays; no open files and no lambdas",
        ) from exc
    for image in (images[0], images[-1]):
        _check_image(subject, image, label, shape)


def _check_image(subject: Subject, image: Any, label: str, shape: tuple[int, int, int]) -> None:
    from hidra_cli.api.decoding import decode_image

    instead = "a Path, an ArchiveMember, or a uint8 array (H, W) or (H, W, 3)"
    if not isinstance(image, Path | ArchiveMember | np.ndarray):
        raise subject.fault(
            "classes", f"gives an image of {label} as {type(image).__name__}", instead
        )
    is_picture = isinstance(image, np.ndarray) and (
        image.dtype == np.uint8 and image.ndim in (2, 3) and image.shape[2:] in ((), (3,))
    )
    if isinstance(image, np.ndarray) and not is_picture:
        raise subject.fault(
            "classes", f"gives an image of {label} as {image.dtype} {image.shape}", instead
        )
    try:
        decode_image(image, shape)
    except DataError as exc:
        raise subject.fault(
            "classes",
            f"gives an image of {label} that cannot be read: {exc.what} {exc.why}".rstrip(),
            "give paths of images that are there",
        ) from exc


def check_family_class(component: type[FunctionFamily], options: Mapping[str, Any]) -> None:
    """Check a family's shapes and values, and that a task keeps what it has when it grows.

    Raises:
        ContractError: the first fault.
        ValueError: the class refuses the options.
    """
    subject = Subject(component)
    check_declarations(subject, ())
    _check_title(subject)
    with subject.calling("__init__", "its options", ValueError):
        family: FunctionFamily = subject.component(**options)
    inputs = getattr(family, "inputs", None)
    if type(inputs) is not int or inputs < 1:
        raise subject.fault_of_class(
            "sets no number of inputs" if inputs is None else f"sets inputs to {inputs!r}",
            "write inputs = 1 in the class: a whole number, 1 or more",
        )
    x, y = drawn(subject, family, 3, 6)
    for outputs, examples in ((3, 6), (5, 6), (3, 9), (8, 20)):
        more_x, more_y = drawn(subject, family, outputs, examples)
        if not np.array_equal(more_x[:6], x):
            raise subject.fault("draw", "gives other inputs for more of a task", _GENERATORS)
        if not np.array_equal(more_y[:6, :3], y):
            raise subject.fault("draw", "gives another function for more of a task", _GENERATORS)
    if np.array_equal(drawn(subject, family, 3, 6, key=8)[1], y):
        raise subject.fault("draw", "ignores the generator: all tasks are one", _GENERATORS)


def drawn(
    subject: Subject, family: FunctionFamily, outputs: int, examples: int, key: int = 7
) -> list[np.ndarray[Any, Any]]:
    """One task of a family, checked: x (n, D) and y (n, N)."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    with subject.calling("draw", f"{outputs} outputs and {examples} examples"):
        drawn: Any = family.draw(generator, outputs, examples)
    check_drawn(subject, family, drawn, outputs, examples)
    return list(drawn)


def check_drawn(
    subject: Subject, family: FunctionFamily, drawn: Any, outputs: int, examples: int
) -> None:
    """Raise `ContractError` where a family draws anything but finite float32 x (n, D), y (n, N)."""
    if not isinstance(drawn, tuple | list) or len(drawn) != 2:
        raise subject.fault("draw", f"gives {type(drawn).__name__}", "return x, y")
    for letter, values, columns in zip("xy", drawn, (family.inputs, outputs), strict=True):
        wanted = (examples, columns)
        if not isinstance(values, np.ndarray) or values.shape != wanted:
            form = getattr(values, "shape", type(values).__name__)
            raise subject.fault("draw", f"gives {letter} as {form}", f"an array {wanted}")
        if values.dtype != np.float32:
            raise subject.fault(
                "draw", f"gives {letter} as {values.dtype}", f"{letter}.astype(np.float32)"
            )
        if not np.isfinite(values).all():
            raise subject.fault(
                "draw", f"gives {letter} with values that are not finite", "finite numbers"
            )
