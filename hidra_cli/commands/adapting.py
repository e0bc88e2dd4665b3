"""What `hidra adapt` does alike for a task that is drawn and for one's own pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from hidra_cli.adaptation import Adapted
    from hidra_cli.console import Console
    from hidra_cli.models import TrainedModel


@dataclass(frozen=True)
class Wish:
    """What was asked for, whatever the task.

    Attributes:
        steps, ways, shots: None where they are to be chosen.
        keep: whether the classifier keeps its support images.
    """

    device: torch.device
    steps: int | None
    ways: int | None
    shots: int | None
    out: Path | None
    keep: bool
    console: Console


def show_steps(what: str, model: TrainedModel, adapted: Adapted, console: Console) -> None:
    console.table(
        f"Adapting {model.name} to {what} ({model.normalization} normalization)",
        ["inner steps", "support loss", "query accuracy, %"],
        [
            [str(step), f"{loss:.4f}", "–" if math.isnan(accuracy) else f"{100 * accuracy:.1f}"]
            for step, (loss, accuracy) in enumerate(
                zip(adapted.support_losses, adapted.accuracies, strict=True)
            )
        ],
    )


def check_finite(adapted: Adapted) -> None:
    """Refuse to save a classifier that says nothing."""
    from hidra_cli.errors import NotFiniteError

    for step, loss in enumerate(adapted.support_losses):
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"adapting went wrong: the support loss is {loss} after step {step}",
                why="the inner steps are too long for this task, or the model is not finite",
                fix="fewer --steps, or a model trained with a lower --inner-lr",
            )
