"""The work behind each command, callable from Python: neither typer nor rich.

The names are loaded when first used, so that `import hidra_cli.jobs` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hidra_cli.jobs.adapt import adapt_pictures
    from hidra_cli.jobs.classifier import load_classifier
    from hidra_cli.jobs.evaluate import EvaluationRequest, evaluate_models
    from hidra_cli.jobs.one_task import AdaptRequest
    from hidra_cli.jobs.own_data import OwnPictures
    from hidra_cli.jobs.predict import predict_pictures
    from hidra_cli.jobs.prepare import prepare_dataset
    from hidra_cli.jobs.training.job import meta_train
    from hidra_cli.settings.schema import DatasetSettings

_HOME = {
    "AdaptRequest": "hidra_cli.jobs.one_task",
    "DatasetSettings": "hidra_cli.settings.schema",
    "EvaluationRequest": "hidra_cli.jobs.evaluate",
    "OwnPictures": "hidra_cli.jobs.own_data",
    "adapt_pictures": "hidra_cli.jobs.adapt",
    "evaluate_models": "hidra_cli.jobs.evaluate",
    "load_classifier": "hidra_cli.jobs.classifier",
    "meta_train": "hidra_cli.jobs.training.job",
    "predict_pictures": "hidra_cli.jobs.predict",
    "prepare_dataset": "hidra_cli.jobs.prepare",
}

__all__ = [
    "AdaptRequest",
    "DatasetSettings",
    "EvaluationRequest",
    "OwnPictures",
    "adapt_pictures",
    "evaluate_models",
    "load_classifier",
    "meta_train",
    "predict_pictures",
    "prepare_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
