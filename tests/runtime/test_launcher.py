"""A launcher gives a process its rank and the number of ranks; one of them alone is some other program's variable."""

from __future__ import annotations

import pytest

from accord.runtime.launcher import is_launched


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, False), ({"RANK": "0"}, False), ({"WORLD_SIZE": "2"}, False), ({"RANK": "0", "WORLD_SIZE": "2"}, True)],
)
def test_both_variables_make_a_rank(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_launched() is expected
