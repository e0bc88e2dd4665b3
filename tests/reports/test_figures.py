"""Pictures of results: whole, and with the colours of all their lines."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from hidra_cli.reports.figures import (
    COLOURS,
    Curve,
    _comparisons,
    _mark,
    differences_over_ways,
    learning_curves,
    scores_over_ways,
)
from hidra_cli.runs.scores import Cell
from hidra_cli.tasks.objective import CLASSIFICATION, REGRESSION, Objective


def _count(picture: Image.Image, colour: str) -> int:
    found = (np.asarray(picture.convert("RGB")) == ImageColor.getrgb(colour)).all(2)
    return int(found.sum())


@pytest.mark.parametrize("objective", [CLASSIFICATION, REGRESSION], ids=lambda p: p.name)
def test_learning_curves_show_each_model_in_the_panels_it_was_trained_for(
    objective: Objective,
) -> None:
    any_way = [Curve("any", "2-16", seed, ((10, 0.3), (20, 0.4 + seed / 10))) for seed in (0, 1)]
    own = [Curve("own", str(ways), 0, ((20, 0.7),)) for ways in (2, 5, 10)]
    few = Image.open(io.BytesIO(learning_curves(any_way, "few", objective)))
    many = Image.open(io.BytesIO(learning_curves([*any_way, *own], "many", objective)))
    assert (few.format, many.format) == ("PNG", "PNG")
    assert many.height > 1.5 * few.height, "four panels take two rows"
    assert _count(few, COLOURS[0]) > 100
    assert _count(few, COLOURS[1]) == 0
    assert _count(many, COLOURS[0]) > 100
    assert _count(many, COLOURS[1]) > 3 * 20


def test_seeds_of_different_length_are_shown_as_far_as_all_went() -> None:
    other = Curve("any", "5", 1, ((10, 0.2),))
    curves = [Curve("any", "5", 0, ((10, 0.3), (20, 0.4))), other]
    short = [Curve("any", "5", 0, ((10, 0.3),)), other]
    assert learning_curves(curves, "t", CLASSIFICATION) == learning_curves(
        short, "t", CLASSIFICATION
    )


def _columns(picture: Image.Image, colour: str) -> int:
    """Groups of neighbouring columns that hold some of a colour."""
    found = (np.asarray(picture.convert("RGB")) == ImageColor.getrgb(colour)).all(2).any(0)
    return int((np.diff(found.astype(int)) == 1).sum())


def _height(picture: Image.Image, colour: str) -> float:
    """How far from the lower edge a colour is, on average."""
    found = (np.asarray(picture.convert("RGB")) == ImageColor.getrgb(colour)).all(2)
    return picture.height - float(np.nonzero(found)[0].mean())


def test_differences_stand_beside_each_other_at_each_number_of_ways() -> None:
    def row(model: str, ways: int, difference: float) -> dict[str, Any]:
        size = {"ways": ways, "shots": 1, "difference": difference, "interval": 0.02}
        return {"model": model, "minus": "one"} | size

    ways = (2, 5, 20)
    rows = [row(model, n, 0.05) for model in ("b", "c") for n in ways]
    picture = Image.open(io.BytesIO(differences_over_ways(rows, "t", CLASSIFICATION)))
    # The two models at the same place would hide each other; each also has an entry in the legend.
    assert [_columns(picture, colour) for colour in COLOURS[:3]] == [0, 4, 4]


def test_each_of_several_comparisons_says_what_is_taken_away() -> None:
    rows = [{"model": "b", "minus": "a", "shots": 1}, {"model": "d", "minus": "c", "shots": 1}]
    lines, minus = _comparisons(rows)
    assert lines == {("b", 1): "b, 1-shot − a", ("d", 1): "d, 1-shot − c"}
    assert minus == "each minus the model named with it"
    assert _comparisons(rows[:1]) == ({("b", 1): "b, 1-shot"}, "minus a")


def test_a_model_that_is_worse_stands_lower() -> None:
    row = {"minus": "one", "ways": 5, "shots": 1, "interval": 0.001}
    rows = [row | {"model": "b", "difference": 0.3}, row | {"model": "c", "difference": -0.3}]
    picture = Image.open(io.BytesIO(differences_over_ways(rows, "t", CLASSIFICATION)))
    plot = picture.crop((0, 0, picture.width, int(0.8 * picture.height)))  # without the legend
    better, worse = (_height(plot, colour) for colour in COLOURS[1:3])
    assert better > worse + 0.5 * plot.height


def test_fourteen_lines_are_told_apart() -> None:
    assert len({tuple(_mark(index).values()) for index in range(2 * len(COLOURS))}) == 14


def test_entries_of_the_legend_stand_below_the_lines() -> None:
    at_the_top = np.full((4, 1), 0.99)
    cells = [Cell(str(n), "none", ways, 1, at_the_top) for n in range(7) for ways in (2, 5)]
    picture = Image.open(io.BytesIO(scores_over_ways(cells, "t")))
    found = (np.asarray(picture.convert("RGB")) == ImageColor.getrgb(COLOURS[0])).all(2).any(1)
    heights = np.flatnonzero(found) / picture.height
    assert heights.min() < 0.2, "the line"
    assert heights.max() > 0.75, "its entry"
    assert not ((heights > 0.2) & (heights < 0.75)).any(), "nothing of it between them"
