"""Every setting of a run, one model per concern, and where each value came from.

Precedence: flag > `HIDRA_<SECTION>_<KEY>` variable > `--config` file > `--preset` > default. The
options of one plugin are joined over the layers; a layer that names another plugin drops them.
"""

from __future__ import annotations

from typing import Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from hidra_cli.api.options import literal_choice
from hidra_cli.settings.numbers import MOST_WAYS_OR_SHOTS, Numbers

MOST_STEPS = 10**12


Augment = Literal["none", "flip", "crop", "flip-crop", "mirror", "mirror-crop"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Flags and variables are text; true and false are no numbers."""
        if isinstance(value, bool):
            raise ValueError("true and false are not expected here")
        return literal_choice(cls.model_fields[str(info.field_name)].annotation, value)


class DatasetSettings(_Section):
    """Which prepared images."""

    name: str = "glyphs"
    source: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class TaskSettings(_Section):
    """What a task looks like. One number of ways and shots is drawn per meta-batch.

    Of functions, ways are outputs, and shots and queries count points of the task in all.
    `augment` changes the images of training tasks at random: "crop" shifts each by up to an eighth
    of its side, "flip" mirrors half of them left to right (not for characters, where that makes
    another class), "mirror" all images of half of the classes, which are then other classes, and
    "flip-crop" and "mirror-crop" do both. Validation and test are on images as they are.
    """

    ways: Numbers = tuple(range(2, 21))
    shots: Numbers = (1,)
    queries: int = Field(5, ge=1, le=MOST_WAYS_OR_SHOTS)
    augment: Augment = "none"


class ModelSettings(_Section):
    """Backbone, head, and the normalization every layer of the backbone gets.

    `loss` is what outputs are fitted to, in the inner and the outer loop: "softmax" for classes
    that exclude each other, "sigmoid" one yes or no per class, "mse" squared error. `start_from` is
    a run, a checkpoint or a model that ships with hidra, with whose weights meta-training begins.
    """

    backbone: str = "conv4"
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    head: str = "hidra"
    head_options: dict[str, Any] = Field(default_factory=dict)
    normalization: Literal["support", "tasknorm", "transductive", "none"] = "support"
    loss: Literal["softmax", "sigmoid", "mse"] = "softmax"
    start_from: str | None = None


class InnerSettings(_Section):
    """Adaptation within one task: gradient descent on the support set.

    `head_lr` "by-ways" multiplies the head's rate by N/5: the head's gradient shrinks like 1/N
    under mean cross-entropy, so a fixed rate is a different effective step at every N. Under
    `loss` "mse" the rate is as given: gradient and curvature of an output are the same at any N.
    `rates` "learned" makes the rate of every layer and step a meta-parameter that starts at
    `inner_lr` (LSLR, Antoniou et al. 2019). `order` 2 begins at iteration `second_order_from`,
    after cheaper steps of order 1 (also theirs).
    """

    steps: int = Field(1, ge=0, le=1000)
    test_steps: int | None = Field(None, ge=0, le=10_000)
    inner_lr: float = Field(0.4, gt=0)
    head_lr: Literal["by-ways", "fixed"] = "by-ways"
    rates: Literal["given", "learned"] = "given"
    adapt: Literal["all", "head", "body"] = "all"
    order: Literal[1, 2] = 2
    second_order_from: int = Field(0, ge=0, le=MOST_STEPS)

    @property
    def steps_at_test(self) -> int:
        """Inner steps for validation, evaluation and adaptation."""
        return self.steps if self.test_steps is None else self.test_steps


class OuterSettings(_Section):
    """Meta-training: Adam on the query loss of adapted weights.

    `schedule` "cosine" lets the outer rate fall to zero over the run (Loshchilov & Hutter 2017, as
    in MAML++, without restarts), that of learned inner rates, `rates_lr`, alike. Until iteration
    `multi_step` the query losses after all inner steps count, the earlier ones less and less, from
    equal shares to none (the multi-step loss of MAML++).
    """

    iterations: int = Field(500, ge=1, le=MOST_STEPS)
    meta_batch: int = Field(4, ge=1, le=100_000)
    outer_lr: float = Field(1e-3, gt=0)
    rates_lr: float = Field(1e-2, gt=0)
    multi_step: int = Field(0, ge=0, le=MOST_STEPS)
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = Field(10.0, ge=0)
    validate_every: int = Field(100, ge=1, le=MOST_STEPS)
    validation_episodes: int = Field(100, ge=2, le=MOST_STEPS)
    test_episodes: int = Field(600, ge=0, le=MOST_STEPS)
    nonfinite: Literal["stop", "skip"] = "stop"


class RunSettings(_Section):
    """Where and how the run happens.

    `strategy` is how the tasks of a meta-batch are spread over the device, to the same result:
    "loop" one after another, "threads" one per core, "processes" one per core, each in a process of
    its own, "batched" all at once, "compiled" all at once as one function, compiled for each shape
    of tasks; "auto" is "processes" on a CPU, with threads for the first ten seconds, and "batched"
    on a GPU. "batched" and "compiled" take `micro_batch` tasks at once (0: all). `graphs`
    "recompute" keeps one inner step's graph at a time, and computes every step twice: memory no
    longer grows with steps.

    `precision` "bfloat16" computes layers in half the bits, weights and sums in float32; "tf32"
    takes float32 products and convolutions on a GPU with ten bits of mantissa, and is float32
    elsewhere.
    """

    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    strategy: Literal["auto", "loop", "threads", "processes", "batched", "compiled"] = "auto"
    micro_batch: int = Field(0, ge=0, le=100_000)
    graphs: Literal["keep", "recompute"] = "keep"
    log: Literal["csv", "tensorboard"] = "csv"
    save_seconds: float = Field(60.0, ge=0)


class Settings(_Section):
    """All settings of a meta-training run, as recorded in its `config.toml`."""

    dataset: DatasetSettings = DatasetSettings()
    tasks: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    inner: InnerSettings = InnerSettings()
    outer: OuterSettings = OuterSettings()
    run: RunSettings = RunSettings()

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))
