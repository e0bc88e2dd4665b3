"""Where caches live, and the name of a prepared file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidra_cli.api.decoding import PREPROCESSING_VERSION
from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.errors import UsageError


def cache_dir(folder: Path | None = None) -> Path:
    """`--cache-dir` > HIDRA_CACHE_DIR > HIDRA_HOME > XDG_CACHE_HOME/hidra > ~/.cache/hidra.

    Raises:
        UsageError: the place is no path that can be.
    """
    place = folder or _from_environment()
    try:
        place = place.expanduser()
        place.exists()
    except (OSError, RuntimeError) as exc:  # a name too long, or the home of an unknown user
        raise UsageError(
            "the place of the prepared images cannot be used",
            why=f"{place}: {exc}"[:400],
            fix="--cache-dir, HIDRA_CACHE_DIR or HIDRA_HOME with a folder of yours",
        ) from exc
    return place


def _from_environment() -> Path:
    for variable, below in (
        ("HIDRA_CACHE_DIR", ""),
        ("HIDRA_HOME", ""),
        ("XDG_CACHE_HOME", "hidra"),
    ):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / below
    return Path("~/.cache/hidra")


@dataclass(frozen=True)
class StoreKey:
    """Two prepared files with equal keys are the same: plugin, options and preprocessing.

    `source` is set only for datasets whose source is their identity (a person's own folder).
    """

    dataset: str
    distribution: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing
    source: str | None

    @property
    def file_name(self) -> str:
        identity = {
            "dataset": self.dataset,
            "distribution": self.distribution,
            "options": dict(self.options),
            "preprocessing": self.preprocessing.record(),
            "source": self.source,
            "version": PREPROCESSING_VERSION,
        }
        text = json.dumps(identity, sort_keys=True, default=str)
        channels, height, width = self.preprocessing.image_shape
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.dataset}-{height}x{width}x{channels}-{key}.h5"
