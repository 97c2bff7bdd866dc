"""Grids: combinations of values, within reason."""

from __future__ import annotations

import pytest

from accord.errors import UserError
from accord.pipeline.grid import points


def test_a_grid_without_reason_is_refused_at_once() -> None:
    variables = {name: list(range(100)) for name in "abcd"}
    with pytest.raises(UserError, match=r"stage 'ppo': its grid \('for'\) has 100,000,000 stages, at most 1,000"):
        points("ppo", variables)
    assert len(points("ppo", {"a": list(range(100)), "b": list(range(10))})) == 1000
