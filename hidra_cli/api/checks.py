"""Contract checks that plugin authors call in their own tests.

    from hidra_cli.api import check_head
    def test_contract():
        check_head(MyHead)

Each raises `AssertionError`: what is wrong, in which file and line, and what to write instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hidra_cli.api.contract import ContractError
from hidra_cli.api.data import Dataset, FunctionFamily

if TYPE_CHECKING:
    from hidra_cli.api.models import Backbone, Head


def check_head(head: type[Head], **options: Any) -> None:
    """Check a head: shapes, types, randomness, gradients, and that calls leave no trace.

    Args:
        head: the class.
        options: as `__init__` takes them.

    Raises:
        AssertionError: the first fault.
    """
    from hidra_cli.api.contract_heads import check_head_class

    with _assertions():
        check_head_class(head, options)


def check_backbone(
    backbone: type[Backbone], image_shape: tuple[int, int, int] = (1, 28, 28), **options: Any
) -> None:
    """Check a backbone: shapes, types, its use of `norm`, and that calls leave no trace.

    Args:
        backbone: the class.
        image_shape: (C, H, W).
        options: as `__init__` takes them.

    Raises:
        AssertionError: the first fault.
    """
    from hidra_cli.api.contract_backbones import check_backbone_class

    with _assertions():
        check_backbone_class(backbone, image_shape, options)


def check_dataset(
    dataset: type[Dataset], source: Path | None, downloads: Path, **options: Any
) -> None:
    """Check a dataset's description, its classes and splits, and some images.

    Args:
        dataset: the class.
        source: a folder or a file, or None.
        downloads: the folder for downloads.
        options: as `__init__` takes them.

    Raises:
        AssertionError: the first fault.
    """
    from hidra_cli.api.contract_data import check_dataset_class

    with _assertions():
        check_dataset_class(dataset, source, downloads, options)


def check_function_family(family: type[FunctionFamily], **options: Any) -> None:
    """Check a family's shapes and values, and that a task keeps what it has when it grows.

    Args:
        family: the class.
        options: as `__init__` takes them.

    Raises:
        AssertionError: the first fault.
    """
    from hidra_cli.api.contract_data import check_family_class

    with _assertions():
        check_family_class(family, options)


@contextlib.contextmanager
def _assertions() -> Iterator[None]:
    """A fault as what pytest shows; what the author's code raised stays its cause."""
    try:
        yield
    except ContractError as fault:
        raise AssertionError(str(fault)) from fault.__cause__
