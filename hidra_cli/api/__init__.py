"""What a plugin author sees: the `Backbone`, `Head` and `Dataset` contracts and their check.

A plugin is a class behind an entry point (`hidra.backbones`, `hidra.heads`, `hidra.datasets`)
that declares `api_version = 1`. Its options are the keyword-only arguments of its `__init__`;
`typing.Annotated[int, "what it means"]` gives an option its help text.

The names are loaded when first used, so that a dataset plugin does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hidra_cli.api.version import API_VERSION

if TYPE_CHECKING:
    from hidra_cli.api.checks import (
        check_backbone,
        check_dataset,
        check_function_family,
        check_head,
    )
    from hidra_cli.api.data import (
        ArchiveMember,
        Dataset,
        FunctionFamily,
        ImageClass,
        ImageRef,
        Split,
    )
    from hidra_cli.api.folders import (
        class_folders,
        counted,
        csv_columns,
        entries,
        image_suffixes,
        images_below,
        is_hidden,
        is_image,
        safe_parts,
        shown,
    )
    from hidra_cli.api.label_files import label_file_in, labelled_images
    from hidra_cli.api.models import Backbone, FastWeights, Head, NormFactory, one_hot
    from hidra_cli.errors import DataError, UsageError

_HOME = {
    "ArchiveMember": "hidra_cli.api.data",
    "Backbone": "hidra_cli.api.models",
    "DataError": "hidra_cli.errors",
    "Dataset": "hidra_cli.api.data",
    "FastWeights": "hidra_cli.api.models",
    "FunctionFamily": "hidra_cli.api.data",
    "Head": "hidra_cli.api.models",
    "ImageClass": "hidra_cli.api.data",
    "ImageRef": "hidra_cli.api.data",
    "NormFactory": "hidra_cli.api.models",
    "Split": "hidra_cli.api.data",
    "UsageError": "hidra_cli.errors",
    "check_backbone": "hidra_cli.api.checks",
    "check_dataset": "hidra_cli.api.checks",
    "check_function_family": "hidra_cli.api.checks",
    "check_head": "hidra_cli.api.checks",
    "class_folders": "hidra_cli.api.folders",
    "counted": "hidra_cli.api.folders",
    "csv_columns": "hidra_cli.api.folders",
    "entries": "hidra_cli.api.folders",
    "image_suffixes": "hidra_cli.api.folders",
    "images_below": "hidra_cli.api.folders",
    "is_hidden": "hidra_cli.api.folders",
    "is_image": "hidra_cli.api.folders",
    "label_file_in": "hidra_cli.api.label_files",
    "labelled_images": "hidra_cli.api.label_files",
    "one_hot": "hidra_cli.api.models",
    "safe_parts": "hidra_cli.api.folders",
    "shown": "hidra_cli.api.folders",
}

__all__ = [
    "API_VERSION",
    "ArchiveMember",
    "Backbone",
    "DataError",
    "Dataset",
    "FastWeights",
    "FunctionFamily",
    "Head",
    "ImageClass",
    "ImageRef",
    "NormFactory",
    "Split",
    "UsageError",
    "check_backbone",
    "check_dataset",
    "check_function_family",
    "check_head",
    "class_folders",
    "counted",
    "csv_columns",
    "entries",
    "image_suffixes",
    "images_below",
    "is_hidden",
    "is_image",
    "label_file_in",
    "labelled_images",
    "one_hot",
    "safe_parts",
    "shown",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
