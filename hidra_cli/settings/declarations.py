"""Every setting of a run, declared once: its type, default and bounds, and what it means.

A new setting is one line here. From it come the flag of `hidra meta-train`, the variable, the key
of TOML files, `--print-config`, the pages of docs/ and what the Tab key offers. `schema.py` makes
pydantic's models of these classes; they need no pydantic themselves, so that `--help` is quick.
"""

# No `from __future__ import annotations`: the types of the fields are read at run time.
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hidra_cli.settings.numbers import MOST_WAYS_OR_SHOTS, Numbers
from hidra_cli.settings.setting import Setting, setting, settings_of

MOST_STEPS = 10**12

Augment = Literal["none", "flip", "crop", "flip-crop", "mirror", "mirror-crop"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Which prepared images."""

    title: ClassVar = "Dataset"

    name: str = setting("glyphs", "Name of a dataset.", flag="--dataset", completion="datasets")
    source: str | None = setting(None, "Folder or archive that holds the images of the dataset.")
    options: dict[str, Any] = setting(
        {}, "Option of the dataset; may be repeated.", flag="--data-opt", options_of="name"
    )


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What a task looks like. One number of ways and shots is drawn per meta-batch.

    Of functions, ways are outputs, and shots and queries count points of the task in all.
    `augment` changes the images of training tasks at random: "crop" shifts each by up to an eighth
    of its side, "flip" mirrors half of them left to right (not for characters, where that makes
    another class), "mirror" all images of half of the classes, which are then other classes, and
    "flip-crop" and "mirror-crop" do both. Validation and test are on images as they are.
    """

    title: ClassVar = "Tasks"

    ways: Numbers = setting(tuple(range(2, 21)), "Classes per task: 5, 2-20 or 2,5.")
    shots: Numbers = setting((1,), "Support images per class.")
    queries: int = setting(5, "Query images per class.", ge=1, le=MOST_WAYS_OR_SHOTS)
    augment: Augment = setting(
        "none", "Random changes of training images; mirror makes new classes."
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """Backbone, head, and the normalization every layer of the backbone gets.

    `normalization` "frozen" takes a pre-trained network (backbone timm or torchvision) as it was
    published. It keeps its own statistics, nothing trains it, and tasks are learned by the head
    alone. `loss` is what outputs are fitted to, in the inner and the outer loop: "softmax" for
    classes that exclude each other, "sigmoid" one yes or no per class, "mse" squared error.
    `start_from` is a run, a checkpoint or a model that ships with hidra, with whose weights
    meta-training begins.
    """

    title: ClassVar = "Model"

    backbone: str = setting("conv4", "Name of a backbone.", completion="backbones")
    backbone_options: dict[str, Any] = setting(
        {}, "Option of the backbone; may be repeated.", flag="--bb-opt", options_of="backbone"
    )
    head: str = setting("hidra", "Name of a head.", completion="heads")
    head_options: dict[str, Any] = setting(
        {}, "Option of the head; may be repeated.", flag="--head-opt", options_of="head"
    )
    normalization: Literal["support", "tasknorm", "transductive", "none", "frozen"] = setting(
        "support", "Where the statistics of every layer come from; frozen: a network as published."
    )
    loss: Literal["softmax", "sigmoid", "mse"] = setting(
        "softmax", "Loss of the outputs; sigmoid is one-vs-rest."
    )
    start_from: str | None = setting(
        None,
        "Begin with the weights of a run, a checkpoint or a model that ships with hidra.",
        metavar="RUN",
        completion="runs",
    )


@dataclass(frozen=True, kw_only=True)
class InnerLoop:
    """Adaptation within one task: gradient descent on the support set.

    `head_lr` "by-ways" multiplies the head's rate by N/5: the head's gradient shrinks like 1/N
    under mean cross-entropy, so a fixed rate is a different effective step at every N. Under
    `loss` "mse" the rate is as given: gradient and curvature of an output are the same at any N.
    `rates` "learned" makes the rate of every layer and step a meta-parameter that starts at
    `inner_lr` (LSLR, Antoniou et al. 2019). `order` 2 begins at iteration `second_order_from`,
    after cheaper steps of order 1 (also theirs).
    """

    title: ClassVar = "Inner loop"

    steps: int = setting(1, "Gradient steps on the support set.", ge=0, le=1000)
    test_steps: int | None = setting(
        None, "Steps at validation and test.", unset="as --steps", ge=0, le=10_000
    )
    inner_lr: float = setting(0.4, "Rate of the inner steps.", gt=0)
    head_lr: Literal["by-ways", "fixed"] = setting(
        "by-ways", "Rate of the head; by-ways multiplies it by N/5."
    )
    rates: Literal["given", "learned"] = setting(
        "given", "Inner rates: given, or learned per layer and step."
    )
    adapt: Literal["all", "head", "body"] = setting("all", "What the inner steps change.")
    order: Literal[1, 2] = setting(2, "Order of the meta-gradient.")
    second_order_from: int = setting(0, "Iteration at which order 2 begins.", ge=0, le=MOST_STEPS)


@dataclass(frozen=True, kw_only=True)
class OuterLoop:
    """Meta-training: Adam on the query loss of adapted weights.

    `schedule` "cosine" lets the outer rate fall to zero over the run (Loshchilov & Hutter 2017, as
    in MAML++, without restarts), that of learned inner rates, `rates_lr`, alike. Until iteration
    `multi_step` the query losses after all inner steps count, the earlier ones less and less, from
    equal shares to none (the multi-step loss of MAML++).
    """

    title: ClassVar = "Outer loop"

    iterations: int = setting(500, "Outer steps.", may_change=True, ge=1, le=MOST_STEPS)
    meta_batch: int = setting(4, "Tasks per outer step.", ge=1, le=100_000)
    outer_lr: float = setting(1e-3, "Adam's rate.", gt=0)
    rates_lr: float = setting(1e-2, "Adam's rate for learned inner rates.", gt=0)
    multi_step: int = setting(
        0, "Iteration until which all inner steps' losses count.", ge=0, le=MOST_STEPS
    )
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "How Adam's rate changes over the run."
    )
    clip: float = setting(10.0, "Largest norm of each gradient tensor, 0 for none.", ge=0)
    validate_every: int = setting(100, "Outer steps between validations.", ge=1, le=MOST_STEPS)
    validation_episodes: int = setting(100, "Fixed validation episodes.", ge=2, le=MOST_STEPS)
    test_episodes: int = setting(
        600, "Episodes of the final test table, 0 for none.", may_change=True, ge=0, le=MOST_STEPS
    )
    nonfinite: Literal["stop", "skip"] = setting(
        "stop", "After a loss that is not finite: stop, or skip the step and count it."
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how the run happens.

    `strategy` is how the tasks of a meta-batch are spread over the device, to the same result:
    "loop" one after another, "threads" one per core, "processes" one per core, each in a process of
    its own, "batched" all at once, "captured" all at once as one CUDA graph for each shape of
    tasks; "auto" is "processes" on a CPU, with threads for the first ten seconds, and "captured"
    on a GPU. "batched" and "captured" take `micro_batch` tasks at once (0: all). `graphs`
    "recompute" keeps one inner step's graph at a time, and computes every step twice: memory no
    longer grows with steps.

    `precision` "bfloat16" computes layers in half the bits, weights and sums in float32; "tf32"
    takes float32 products and convolutions on a GPU with ten bits of mantissa, and is float32
    elsewhere.
    """

    title: ClassVar = "Run"

    seed: int = setting(0, "One seed for all random streams.", ge=0, lt=2**63)
    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:1, …", may_change=True)
    precision: Literal["float32", "tf32", "bfloat16"] = setting(
        "float32", "Precision of the layers; tf32 needs a GPU."
    )
    strategy: Literal["auto", "loop", "threads", "processes", "batched", "captured"] = setting(
        "auto", "How the tasks of a meta-batch share the device.", may_change=True
    )
    micro_batch: int = setting(
        0, "Tasks at once with batched or captured, 0 for all.", may_change=True, ge=0, le=100_000
    )
    graphs: Literal["keep", "recompute"] = setting(
        "keep", "Graphs of the inner steps; recompute saves memory.", may_change=True
    )
    log: Literal["csv", "tensorboard"] = setting(
        "csv", "Format of the metrics; tensorboard adds events in RUN/tensorboard.", may_change=True
    )
    save_seconds: float = setting(
        60.0, "Longest time between two checkpoints.", may_change=True, ge=0
    )


SECTIONS: dict[str, type[Any]] = {
    "dataset": Dataset,
    "tasks": Tasks,
    "model": Model,
    "inner": InnerLoop,
    "outer": OuterLoop,
    "run": Run,
}

SETTINGS: tuple[Setting, ...] = tuple(
    one for section, declarations in SECTIONS.items() for one in settings_of(section, declarations)
)
