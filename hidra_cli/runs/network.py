"""The frozen network that a file names and does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hidra_cli.engine.frozen import FrozenNetwork
from hidra_cli.engine.learner import Learner
from hidra_cli.errors import DataError, UsageError
from hidra_cli.runs.model_records import ModelMeta, NetworkRecord


def network_record(learner: Learner) -> NetworkRecord | None:
    """The frozen network of a learner; None where nothing is frozen."""
    network = learner.backbone
    if not isinstance(network, FrozenNetwork):
        return None
    return NetworkRecord(name=network.label, sha256=network.sha256, size=network.size)


@contextmanager
def needing_network(path: Path, meta: ModelMeta) -> Iterator[None]:
    """A context in which weights that cannot be had are those of the network that a file names.

    Raises:
        DataError: they cannot be had; says what they are and which package or file is missing.
    """
    try:
        yield
    except (DataError, UsageError) as exc:
        if meta.network is None:
            raise
        raise DataError(
            f"{path} needs the weights of {meta.network.name}, which it does not hold",
            why=f"{exc.what}: {exc.why}",
            fix=exc.fix
            if isinstance(exc, DataError)
            else f"put weights whose tensors have the SHA-256 {meta.network.sha256} there",
        ) from exc


def check_network(path: Path, meta: ModelMeta, learner: Learner) -> None:
    """Check that a learner's frozen network is the one that a file was made with.

    Raises:
        DataError: it has other weights.
    """
    here = network_record(learner)
    if meta.network is not None and here is not None and meta.network.sha256 != here.sha256:
        raise DataError(
            f"{path} was made with other weights of {meta.network.name}",
            why=f"their SHA-256 was {meta.network.sha256}, and it is {here.sha256} now",
            fix="put the former weights back, or make that file again with these",
        )
