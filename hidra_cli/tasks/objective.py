"""The objectives of tasks, their metrics, and the words for both."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """An objective of tasks, and the metric of their results.

    Attributes:
        name: of the kind.
        metric: of one task's queries, in words.
        key: of the metric in files.
        unit: in which it is shown: "%" of a share in 0..1, or none.
        lower_is_better: of the metric.
        fewest_ways: the least number of outputs that is a task.
        default_ways: the numbers of ways of a table.
        axis: what ways are, of a picture.
        per: what a number of queries counts for.
    """

    name: str
    metric: str
    key: str
    unit: str
    lower_is_better: bool
    fewest_ways: int
    default_ways: tuple[int, ...]
    axis: str
    per: str

    @property
    def scale(self) -> float:
        """The factor of values where they are shown."""
        return 100 if self.unit else 1

    @property
    def heading(self) -> str:
        """The metric with its unit, of a column."""
        return f"{self.metric}, {self.unit}" if self.unit else self.metric

    def shown(self, value: float) -> str:
        """A value in the unit, without it: 0.8912 → `89.12` of accuracy, `0.8912` of errors."""
        return f"{self.scale * value:.{2 if self.unit else 4}f}"

    def interval(self, mean: float, half: float) -> str:
        """`89.12 ± 0.61` of accuracy, `0.8912 ± 0.0061` of errors."""
        return f"{self.shown(mean)} ± {self.shown(half)}"

    def better(self, new: float, old: float) -> bool:
        """Whether a mean is better, by more than its rounding."""
        gain = old - new if self.lower_is_better else new - old
        return gain > 1e-9


CLASSIFICATION = Objective(
    name="classification",
    metric="accuracy",
    key="accuracy",
    unit="%",
    lower_is_better=False,
    fewest_ways=2,
    default_ways=(2, 5, 10, 20),
    axis="ways (classes per task)",
    per="per class",
)
REGRESSION = Objective(
    name="regression",
    metric="mean squared error",
    key="mean_squared_error",
    unit="",
    lower_is_better=True,
    fewest_ways=1,
    default_ways=(1, 2, 5, 8),
    axis="outputs per task",
    per="in all",
)

OBJECTIVES = {objective.key: objective for objective in (CLASSIFICATION, REGRESSION)}
