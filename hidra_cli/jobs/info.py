"""Versions, devices and places, as a bug report needs them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hidra_cli.errors import DataError
from hidra_cli.images.cache import cache_dir as resolve_cache
from hidra_cli.runs.environment import environment
from hidra_cli.runs.locate import latest_run, runs_dir_of, shipped_models

# The entries of environment.json that hold without a run.
_OF_MACHINE = (
    "hidra-cli",
    "python",
    "packages",
    "platform",
    "processor",
    "cores",
    "threads",
    "cpu_capability",
    "kernels",
)


@dataclass(frozen=True)
class Installation:
    """An installation of hidra, and where its files are.

    Attributes:
        environment: versions and hardware, as environment.json names them.
        cuda: names of the CUDA devices.
        cache, runs: folders.
        latest_run: None where there is no run.
        shipped_models: by name.
        prepared: the prepared datasets.
    """

    environment: dict[str, Any]
    cuda: list[str]
    cache: str
    runs: str
    latest_run: str | None
    shipped_models: dict[str, str]
    prepared: list[str]

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        del content["environment"]
        return self.environment | content


def installation(cache_dir: Path | None = None, runs_dir: Path | None = None) -> Installation:
    """Versions, devices and places of this installation."""
    cache, runs = resolve_cache(cache_dir), runs_dir_of(runs_dir)
    try:
        latest = str(latest_run(runs))
    except DataError:
        latest = None
    facts = environment(torch.device("cpu"), {}).to_json()
    return Installation(
        environment={name: facts[name] for name in _OF_MACHINE},
        cuda=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        cache=str(cache),
        runs=str(runs),
        latest_run=latest,
        shipped_models={name: str(path) for name, path in shipped_models().items()},
        prepared=[str(path) for path in sorted((cache / "stores").glob("*.h5"))],
    )
