"""One model from several: the mean of their weights (model soups, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hidra_cli.errors import UsageError
from hidra_cli.runs.checkpoint import Checkpoint, load_checkpoint
from hidra_cli.runs.compatibility import differing_models, first_unlike
from hidra_cli.runs.locate import find_checkpoint
from hidra_cli.runs.model import restore_learner
from hidra_cli.runs.model_records import AveragedRecord, CheckpointMeta

# What a checkpoint says of a model and of its data that all must have alike.
_ALIKE = ("image_preprocessing", "objective", "dataset_hash")


def average_models(
    chosen: Sequence[Path],
) -> tuple[dict[str, Tensor], CheckpointMeta, list[Checkpoint]]:
    """The mean of the weights of trained models; of learned rates, the mean of their logarithms.

    It is a good model where one was trained on from another, or several from one start, so that
    their weights lie in one basin (arXiv 2203.05482, section 2); of runs with unrelated starts it
    is none.

    Args:
        chosen: two or more run directories, checkpoints, or names of models that ship with hidra.

    Returns:
        The tensors and the meta of the checkpoint of the mean, and the checkpoints it is of.
        Its settings are those of the model trained with the most classes (of several the last).

    Raises:
        DataError: there is no such checkpoint, or it is damaged.
        UsageError: fewer than two, one of them twice, or models that are not alike.
        PluginError: a plugin one needs is missing; names the package.
        RunError: the weights do not fit.
    """
    found = [load_checkpoint(find_checkpoint(path)) for path in chosen]
    if len(found) < 2:
        raise UsageError(
            f"the mean of {len(found)} model is no other model",
            fix="name two or more: hidra average runs/one runs/two",
        )
    metas = [one.model_meta for one in found]
    for number, (one, meta) in enumerate(zip(found, metas, strict=True)):
        restore_learner(one, meta, meta.settings)  # its weights are of the model it describes
        _check_other(one, found[:number])
        _check_alike(found[0], one)
    last = max(range(len(found)), key=lambda index: (metas[index].max_ways, index))
    of = [AveragedRecord(sha256=o.sha256, iteration=o.model_meta.iteration) for o in found]
    meta = metas[last].model_copy(update={"best": None, "skipped": (0, 0), "average_of": tuple(of)})
    return _mean([one.part("model") for one in found], last), meta, found


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
