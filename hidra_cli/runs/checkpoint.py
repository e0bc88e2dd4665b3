"""Checkpoints: tensors and JSON in one safetensors file, whole or refused. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from hidra_cli.errors import DataError, RunError
from hidra_cli.runs.model_records import CheckpointMeta, ClassifierMeta, ModelMeta
from hidra_cli.runs.records import R, faults
from hidra_cli.system.files import write_atomically

CHECKPOINT_FORMAT = "hidra-checkpoint"
FORMAT_VERSION = 1
# One entry, "<hash> <JSON>": safetensors writes several in no fixed order.
_HEADER = "hidra"
_HASH_LENGTH = hashlib.sha256().digest_size * 2
# What files of torch.save begin with.
_PICKLES = (b"PK", b"\x80")
_PICKLE = "it is a pickle, which may hold code and is never loaded; hidra's are safetensors files"
ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by name, its JSON object as it is, and the SHA-256 of the whole file."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    sha256: str

    @cached_property
    def model_meta(self) -> CheckpointMeta:
        """The JSON of a checkpoint, checked once.

        Raises:
            DataError: an entry is missing or wrong.
        """
        return self._checked(CheckpointMeta)

    @cached_property
    def classifier_meta(self) -> ClassifierMeta:
        """The JSON of a classifier, checked once.

        Raises:
            DataError: an entry is missing or wrong.
        """
        return self._checked(ClassifierMeta)

    def _checked(self, kind: type[R]) -> R:
        try:
            return kind.model_validate(self.meta)
        except ValidationError as exc:
            raise incomplete(self, faults(exc)) from exc

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix.`, without it."""
        start = prefix + "."
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write one safetensors file whose header holds `meta` as JSON, atomically.

    Raises:
        RunError: it cannot be written; an older file of this name is untouched.
    """
    write_atomically(path, checkpoint_bytes(tensors, meta))


def checkpoint_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """The content of a checkpoint file: a function of its arguments, so that equal runs are equal.

    Values that are not finite have no place in `meta`.
    """
    whole = {"format": CHECKPOINT_FORMAT, "format_version": FORMAT_VERSION, **meta}
    text = json.dumps(whole, allow_nan=False)
    # Clones: safetensors refuses tensors that share memory.
    packed = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content: bytes = save(packed, {_HEADER: f"{_content_hash(packed, text)} {text}"})
    return content


def _content_hash(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of everything in a checkpoint: safetensors itself does not notice flipped bits."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: Path, expected: str = CHECKPOINT_FORMAT) -> Checkpoint:
    """Read a file of `save_checkpoint`.

    Raises:
        DataError: the file is missing, damaged, foreign or of another version.
    """
    if not path.is_file():
        raise DataError(f"there is no checkpoint {path}", fix="name a run directory or checkpoint")
    content = b""
    try:
        # Read once: by name, the file could be another one by the second time.
        content = path.read_bytes()
        tensors = load(content)
        header_end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:header_end]).get("__metadata__") or {}
        content_hash, _, text = header.get(_HEADER, "").partition(" ")
        ours = len(content_hash) == _HASH_LENGTH and text.startswith("{")
        if ours and content_hash != _content_hash(tensors, text):
            raise ValueError("its content does not match its hash")
        meta = json.loads(text) if ours else {}
    # A header may nest beyond the stack, or name types that torch does not have.
    except (SafetensorError, OSError, ValueError, RecursionError, TypeError, KeyError) as exc:
        raise DataError(
            f"the checkpoint {path} is damaged",
            why=_PICKLE if content.startswith(_PICKLES) else str(exc).split("\n")[0],
            fix="use another checkpoint of the run (best, last or previous.safetensors)",
        ) from exc
    if not ours:
        raise DataError(
            f"{path} was not written by hidra",
            why="its header has no hidra entry",
            fix="name a run directory, or a checkpoint of `hidra meta-train`",
        )
    if meta.get("format") != expected or meta.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} is a {meta.get('format')} of version {meta.get('format_version')}",
            why=f"this needs a {expected} of version {FORMAT_VERSION}",
            fix="use the hidra that wrote it, or another file",
        )
    return Checkpoint(path, tensors, meta, hashlib.sha256(content).hexdigest())


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Adam's state as named tensors: `optimizer.<parameter>.<moment>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{names[index]}.{key}": torch.as_tensor(value)
        for index, moments in state.items()
        for key, value in moments.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str], checkpoint: Checkpoint
) -> None:
    """Give an optimizer the state that `optimizer_tensors` saved.

    Raises:
        DataError: the state does not fit the parameters.
    """
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = checkpoint.part("optimizer")
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        parameter, _, moment = name.rpartition(".")
        if parameter not in names:
            raise _foreign_optimizer(checkpoint, name)
        index = names.index(parameter)
        if moment not in ADAM_STATE or tensor.shape not in (parameters[index].shape, ()):
            raise _foreign_optimizer(checkpoint, name)
        moments.setdefault(index, {})[moment] = tensor
    for index, entries in moments.items():
        if set(entries) != ADAM_STATE or entries["exp_avg"].shape != parameters[index].shape:
            raise _foreign_optimizer(checkpoint, names[index])
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def _foreign_optimizer(checkpoint: Checkpoint, name: str) -> DataError:
    return DataError(
        f"the optimizer state in {checkpoint.path} does not fit",
        why=f"{name} is not a moment of a parameter of this model",
        fix="resume from another checkpoint, or begin a new run",
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint, meta: ModelMeta) -> None:
    """Give a model the weights of a checkpoint.

    Raises:
        RunError: they do not fit; names the plugin versions that do.
    """
    try:
        model.load_state_dict(checkpoint.part("model"))
    except RuntimeError as exc:
        raise restore_error(checkpoint, meta, str(exc).split("\n")[0]) from exc


def incomplete(checkpoint: Checkpoint, why: str) -> DataError:
    """A checkpoint that is whole, but lacks an entry or has a wrong one."""
    return DataError(
        f"{checkpoint.path} is incomplete",
        why=why,
        fix="use another file, or the hidra that wrote it",
    )


def restore_error(checkpoint: Checkpoint, meta: ModelMeta, why: str) -> RunError:
    """A checkpoint whose weights do not fit what its settings build."""
    recorded = [meta.plugins["backbone"], meta.plugins["head"]]
    versions = dict.fromkeys(f"{plugin.distribution}=={plugin.version}" for plugin in recorded)
    return RunError(
        f"the weights in {checkpoint.path} do not fit the model its settings describe",
        why=why,
        fix="install the plugin versions the checkpoint names: " + ", ".join(versions),
    )
