"""Every setting of a run, declared once: its type, default, bounds and meaning.

A new setting is one line here. The flag of `hidra meta-train`, the variable, the key of TOML
files, `--print-config`, the pages of docs/ and the completion by the Tab key are made from it.
`schema.py` turns these classes into pydantic's models. The classes themselves need no pydantic, so
that `--help` is quick.
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
    """The data that tasks are drawn from."""

    title: ClassVar = "Dataset"

    name: str = setting("glyphs", "Name of a dataset.", flag="--dataset", completion="datasets")
    source: str | None = setting(None, "Folder or archive with the images of the dataset.")
    options: dict[str, Any] = setting(
        {}, "Option of the dataset; may be repeated.", flag="--data-opt", options_of="name"
    )


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """The size of a task. Each meta-batch draws one number of ways and one number of shots.

    If the dataset is a family of functions, ways are outputs, and shots and queries are the numbers
    of points in a whole task.

    `augment` changes the images of training tasks at random. Validation and test images stay
    unchanged. "crop" shifts each image by up to an eighth of its side. "flip" mirrors half of the
    images left to right (not for characters: a mirrored character is another class). "mirror"
    mirrors all images of half of the classes, which makes new classes. "flip-crop" and
    "mirror-crop" combine two of these.
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
    """The backbone, the head, and the normalization in every layer of the backbone.

    `normalization` "frozen" uses a pre-trained network (backbone timm or torchvision) as it was
    published. The network keeps its own statistics and is never trained. Only the head learns.

    `loss` is the loss of the inner and of the outer loop: "softmax" for classes that exclude each
    other, "sigmoid" for one yes or no per class, "mse" for squared error.

    `start_from` names a run, a checkpoint or a model that ships with hidra. Meta-training starts
    with its weights.
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
        "support", "Source of each layer's statistics; frozen uses a network as published."
    )
    loss: Literal["softmax", "sigmoid", "mse"] = setting(
        "softmax", "Loss of the outputs; sigmoid is one-vs-rest."
    )
    start_from: str | None = setting(
        None,
        "Start with the weights of a run, a checkpoint or a model that ships with hidra.",
        metavar="RUN",
        completion="runs",
    )


@dataclass(frozen=True, kw_only=True)
class InnerLoop:
    """Adaptation within one task: gradient descent on the support set.

    `head_lr` "by-ways" multiplies the head's rate by N/5. Under mean cross-entropy the gradient of
    the head shrinks like 1/N, so a fixed rate is a smaller effective step at larger N. With `loss`
    "mse" the rate is not multiplied: the gradient of an output does not depend on N.

    `rates` "learned" makes the rate of every layer and step a meta-parameter, which starts at
    `inner_lr` (LSLR, Antoniou et al. 2019).

    Before iteration `second_order_from`, outer steps are of order 1, which is cheaper (also
    Antoniou et al. 2019).
    """

    title: ClassVar = "Inner loop"

    steps: int = setting(1, "Gradient steps on the support set.", ge=0, le=1000)
    test_steps: int | None = setting(
        None, "Steps at validation and test.", unset="as --steps", ge=0, le=10_000
    )
    inner_lr: float = setting(0.4, "Rate of the inner steps.", gt=0)
    head_lr: Literal["by-ways", "fixed"] = setting(
        "by-ways", "Rate of the head; by-ways multiplies --inner-lr by N/5."
    )
    rates: Literal["given", "learned"] = setting(
        "given", "Inner rates: --inner-lr everywhere, or learned per layer and step."
    )
    adapt: Literal["all", "head", "body"] = setting("all", "The part that inner steps change.")
    order: Literal[1, 2] = setting(2, "Order of the meta-gradient.")
    second_order_from: int = setting(0, "Iteration at which order 2 begins.", ge=0, le=MOST_STEPS)


@dataclass(frozen=True, kw_only=True)
class OuterLoop:
    """Meta-training: Adam on the query loss of the adapted weights.

    `schedule` "cosine" lets the outer rate fall to zero over the run (Loshchilov & Hutter 2017, as
    in MAML++, without restarts). It does the same to `rates_lr`, the rate of learned inner rates.

    Before iteration `multi_step`, the query losses after all inner steps count (the multi-step loss
    of MAML++). Their shares are equal at first. The shares of the earlier steps then fall to zero.
    """

    title: ClassVar = "Outer loop"

    iterations: int = setting(500, "Outer steps.", may_change=True, ge=1, le=MOST_STEPS)
    meta_batch: int = setting(4, "Tasks per outer step.", ge=1, le=100_000)
    outer_lr: float = setting(1e-3, "Adam's rate.", gt=0)
    rates_lr: float = setting(1e-2, "Adam's rate for learned inner rates.", gt=0)
    multi_step: int = setting(
        0, "Iteration before which the losses after all inner steps count.", ge=0, le=MOST_STEPS
    )
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "Course of Adam's rate over the run."
    )
    clip: float = setting(10.0, "Largest norm of each gradient tensor, 0 for none.", ge=0)
    validate_every: int = setting(100, "Outer steps between validations.", ge=1, le=MOST_STEPS)
    validation_episodes: int = setting(100, "Fixed validation episodes.", ge=2, le=MOST_STEPS)
    test_episodes: int = setting(
        600, "Episodes of the final test table, 0 for none.", may_change=True, ge=0, le=MOST_STEPS
    )
    nonfinite: Literal["stop", "skip"] = setting(
        "stop", "Reaction to a loss that is not finite; skip leaves the step out and counts it."
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how the run happens.

    `strategy` says how the tasks of a meta-batch are spread over the device, to the same result.
    "loop" computes one task after another. "threads" computes one task per core, "processes" one
    task per core in a process for each core. "batched" computes all tasks at once. "captured" does
    so as one CUDA graph, which is recorded for each shape of tasks. "auto" is "captured" on a GPU;
    on a CPU it is "threads" for the first ten seconds and then "processes".

    "batched" and "captured" compute `micro_batch` tasks at a time (0: all).

    `graphs` "recompute" keeps the graph of one inner step at a time and computes every step twice.
    Memory then grows little with the number of steps.

    `precision` "bfloat16" computes layers with half the bits; weights and sums stay in float32.
    "tf32" computes products and convolutions on a GPU with ten bits of mantissa; elsewhere it is
    float32.
    """

    title: ClassVar = "Run"

    seed: int = setting(0, "One seed for all random streams.", ge=0, lt=2**63)
    device: str = setting("auto", "Device: auto, cpu, cuda, cuda:1, …", may_change=True)
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
