"""Tasks of a family of functions, each drawn from a separate random stream.

Shapes: T tasks, N outputs (the ways), K support and Q query points in all, D inputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from hidra_cli.api.building import plugin_errors
from hidra_cli.api.contract import Subject
from hidra_cli.api.contract_data import check_drawn
from hidra_cli.api.data import FunctionFamily, Split
from hidra_cli.api.registry import Plugin
from hidra_cli.engine.task_batch import Examples, TaskBatch
from hidra_cli.system.random_streams import stream_key
from hidra_cli.tasks.episodes import draw_shape
from hidra_cli.tasks.objective import REGRESSION, Objective
from hidra_cli.tasks.shape import TaskShape

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FunctionTasks:
    """A family of functions as a source of tasks.

    Attributes:
        options: of the family, defaults included.
    """

    plugin: Plugin
    family: FunctionFamily
    options: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        return self.plugin.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(1, 1, D): inputs as backbones see them."""
        return 1, 1, self.family.inputs

    @property
    def place(self) -> str:
        return f"{self.plugin.label} with {self._options}"

    @property
    def content_hash(self) -> str:
        """SHA-256 of what the functions depend on: the plugin, its version and options."""
        plugin = self.plugin
        identity = plugin.distribution, plugin.name, plugin.version, self.family.inputs
        return hashlib.sha256("\n".join(map(str, (*identity, self._options))).encode()).hexdigest()

    @property
    def attributes(self) -> dict[str, str]:
        """The facts that a run records about its data."""
        about = {key: getattr(self.family, key) for key in ("title", "licence", "citation")}
        return about | {
            "dataset": self.dataset,
            "homepage": self.family.homepage,
            "options": self._options,
            "content_hash": self.content_hash,
            "invert": "False",
        }

    @property
    def _options(self) -> str:
        return json.dumps(dict(self.options), sort_keys=True, default=str)

    def most_ways(self, split: Split) -> int | None:
        """A function may have any number of outputs."""
        return None


@dataclass(frozen=True)
class FunctionSampler:
    """Tasks of one split, keyed by (seed, split, episode index), as those of images are.

    With more outputs or more support points, a task keeps its first ones.

    Args:
        source: the family of functions.
        ways: the numbers of outputs N that occur.
        shots: the numbers of support points K that occur, of a task in all.
        queries: query points Q of a task in all.
        device: where the tasks' tensors go.
    """

    source: FunctionTasks
    split: Split
    ways: tuple[int, ...]
    shots: tuple[int, ...]
    queries: int
    seed: int
    device: torch.device

    objective: ClassVar[Objective] = REGRESSION

    def shape(self, meta_batch: int) -> TaskShape:
        """The shape of a meta-batch, uniform over the ways and shots that occur."""
        key = stream_key(self.seed, "shapes", self.split)
        return draw_shape(key, meta_batch, self.ways, self.shots)

    def batch(self, episodes: Sequence[int], shape: TaskShape) -> TaskBatch:
        """Some tasks, as tensors on the device: inputs (T, n, 1, 1, D), values (T, n, N).

        Raises:
            PluginError: the family breaks its contract.
        """
        ways, shots = shape
        drawn = [self._draw(episode, ways, self.queries + shots) for episode in episodes]
        parts = (np.stack(part) for part in zip(*drawn, strict=True))
        x, y = (torch.from_numpy(part).to(self.device) for part in parts)
        inputs = x[:, :, None, None]
        return TaskBatch(
            Examples(inputs[:, self.queries :], y[:, self.queries :]),
            Examples(inputs[:, : self.queries], y[:, : self.queries]),
            ways,
            shots,
            tuple(stream_key(self.seed, "head", self.split, e) for e in episodes),
        )

    def _draw(self, episode: int, outputs: int, examples: int) -> tuple[Float32, Float32]:
        """Query points first, so that they are the same at any number of shots."""
        key = [stream_key(self.seed, "episodes", self.split), episode]
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        family, plugin = self.source.family, self.source.plugin
        subject = Subject(type(family))
        with plugin_errors(plugin):
            with subject.calling("draw", f"{outputs} outputs and {examples} examples"):
                drawn = family.draw(generator, outputs, examples)
            check_drawn(subject, family, drawn, outputs, examples)
        x, y = drawn
        return x, y
