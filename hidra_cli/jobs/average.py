"""One model from several: the mean of their weights (model soups, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hidra_cli.errors import UsageError
from hidra_cli.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hidra_cli.runs.compatibility import differing_models, first_unlike
from hidra_cli.runs.locate import find_checkpoint
from hidra_cli.runs.model import restore_learner
from hidra_cli.runs.model_records import AveragedRecord, CheckpointMeta
from hidra_cli.system.files import check_file, check_other_file

# Entries of a checkpoint that must be equal in all models.
_ALIKE = ("image_preprocessing", "objective", "dataset_hash")


@dataclass(frozen=True)
class AveragedModel:
    """The file of a mean, and the checkpoints that it is the mean of."""

    path: Path
    meta: CheckpointMeta
    parts: Sequence[Checkpoint]

    def to_json(self) -> dict[str, Any]:
        pairs = zip(self.parts, self.meta.average_of or (), strict=True)
        return {
            "averaged": str(self.path),
            "models": [{"checkpoint": str(part.path), **of.to_json()} for part, of in pairs],
        }


def average(models: Sequence[Path], out: Path) -> AveragedModel:
    """Write the mean of several models as one checkpoint.

    Raises:
        UsageError: also where `out` is one of the models; else as `average_models`.
    """
    check_file(out, "--out", ".safetensors")
    tensors, meta, parts = average_models(models)
    check_other_file(out, "one of the models", *(part.path for part in parts))
    save_checkpoint(out, tensors, meta.to_json())
    return AveragedModel(out, meta, parts)


def average_models(
    paths: Sequence[Path],
) -> tuple[dict[str, Tensor], CheckpointMeta, list[Checkpoint]]:
    """The mean of the weights of trained models; of learned rates, the mean of their logarithms.

    It is a good model where one was trained on from another, or several from one start, so that
    their weights lie in one basin (arXiv 2203.05482, section 2); of runs with unrelated starts it
    is none.

    Args:
        paths: two or more run directories, checkpoints, or names of models that ship with hidra.

    Returns:
        The tensors and the meta of the checkpoint of the mean, and the checkpoints it is of.
        Its settings are those of the model trained with the most classes (of several the last).

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
        UsageError: fewer than two, one of them twice, or models that are not alike.
        PluginError: a plugin one needs is missing; names the package.
        RunError: the weights do not fit.
    """
    checkpoints = [load_checkpoint(find_checkpoint(path)) for path in paths]
    if len(checkpoints) < 2:
        raise UsageError(
            f"the mean of {len(checkpoints)} model is no other model",
            fix="name two or more: hidra average runs/one runs/two",
        )
    metas = [one.model_meta for one in checkpoints]
    for number, (one, meta) in enumerate(zip(checkpoints, metas, strict=True)):
        restore_learner(one, meta, meta.settings)  # its weights are of the model it describes
        _check_other(one, checkpoints[:number])
        _check_alike(checkpoints[0], one)
    last = max(range(len(checkpoints)), key=lambda index: (metas[index].max_ways, index))
    of = tuple(
        AveragedRecord(sha256=one.sha256, iteration=one.model_meta.iteration) for one in checkpoints
    )
    meta = metas[last].model_copy(update={"best": None, "skipped": (0, 0), "average_of": of})
    return _mean([one.part("model") for one in checkpoints], last), meta, checkpoints


def _mean(weights: Sequence[Mapping[str, Tensor]], last: int) -> dict[str, Tensor]:
    """Tensor by tensor, in float64; counters and masks, which have no mean, are of model `last`."""
    means = {}
    for name, own in weights[last].items():
        means[f"model.{name}"] = own
        if own.is_floating_point():
            total = torch.stack([of[name].double() for of in weights]).mean(0)
            means[f"model.{name}"] = total.to(own.dtype)
    return means


def _check_other(one: Checkpoint, before: Sequence[Checkpoint]) -> None:
    twin = next((other for other in before if other.sha256 == one.sha256), None)
    if twin is not None:
        raise UsageError(
            f"{one.path} and {twin.path} are the same model",
            why="in the mean it would count twice",
            fix="name each model once",
        )


def _check_alike(first: Checkpoint, one: Checkpoint) -> None:
    theirs, own = first.model_meta, one.model_meta
    values = differing_models(theirs.settings, own.settings)
    values += [(key, getattr(theirs, key), getattr(own, key)) for key in _ALIKE]
    if (unlike := first_unlike(first.part("model"), one.part("model"))) is not None:
        values.append(unlike)
    reasons = [f"{key} is {there} and {here}" for key, there, here in values if there != here]
    if reasons:
        raise UsageError(
            f"{first.path} and {one.path} have no mean",
            why="\n     ".join(reasons),
            fix="name models of one kind, trained on the same data",
        )
