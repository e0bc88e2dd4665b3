"""Pictures of results: whole, and with the colours of all their lines."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from hidra_cli.picture import _COLOURS, Curve, learning_curves
from hidra_cli.problems import CLASSIFICATION, REGRESSION, Problem


def _count(picture: Image.Image, colour: str) -> int:
    found = (np.asarray(picture.convert("RGB")) == ImageColor.getrgb(colour)).all(2)
    return int(found.sum())


@pytest.mark.parametrize("problem", [CLASSIFICATION, REGRESSION], ids=lambda p: p.name)
def test_learning_curves_show_each_model_in_the_panels_it_was_trained_for(
    problem: Problem,
) -> None:
    any_way = [Curve("any", "2-16", seed, ((10, 0.3), (20, 0.4 + seed / 10))) for seed in (0, 1)]
    own = [Curve("own", str(ways), 0, ((20, 0.7),)) for ways in (2, 5, 10)]
    few = Image.open(io.BytesIO(learning_curves(any_way, "few", problem)))
    many = Image.open(io.BytesIO(learning_curves([*any_way, *own], "many", problem)))
    assert (few.format, many.format) == ("PNG", "PNG")
    assert many.height > 1.5 * few.height, "four panels take two rows"
    assert _count(few, _COLOURS[0]) > 100
    assert _count(few, _COLOURS[1]) == 0
    assert _count(many, _COLOURS[0]) > 100
    assert _count(many, _COLOURS[1]) > 3 * 20


def test_seeds_of_different_length_are_shown_as_far_as_all_went() -> None:
    other = Curve("any", "5", 1, ((10, 0.2),))
    curves = [Curve("any", "5", 0, ((10, 0.3), (20, 0.4))), other]
    short = [Curve("any", "5", 0, ((10, 0.3),)), other]
    assert learning_curves(curves, "t", CLASSIFICATION) == learning_curves(
        short, "t", CLASSIFICATION
    )
