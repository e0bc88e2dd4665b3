"""The contract, and what makes this family this family."""

from __future__ import annotations

import numpy as np
import pytest
from hidra_cli.api import check_function_family

from PluginModule import PluginClass


@pytest.mark.parametrize("reach", [0.5, 5.0])
def test_contract(reach: float) -> None:
    check_function_family(PluginClass, reach=reach)


def test_every_output_is_a_line() -> None:
    x, y = PluginClass().draw(np.random.default_rng(0), 3, 7)
    basis = np.concatenate([x, np.ones_like(x)], axis=1)
    lines, *_ = np.linalg.lstsq(basis, y, rcond=None)
    np.testing.assert_allclose(basis @ lines, y, atol=1e-5)


def test_a_reach_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="is not positive"):
        PluginClass(reach=0.0)
