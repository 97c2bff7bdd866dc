"""Hostile inputs made from valid ones: damaged bytes, and JSON with a value of another kind somewhere.

``refused_or_read`` is what must hold for every reader: it returns, or raises a UserError that names the file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from accord.errors import UserError

quick = settings(
    derandomize=True,  # the same inputs on every machine
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
few = settings(quick, max_examples=25)
"""For readers that take milliseconds."""
OTHER_VALUES = st.sampled_from(
    [None, True, False, 0, -1, 2**31, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../../x", "\0", "\ud800",
     [], [1], ["x"], {}, {"x": 1}, {"": None}, DEEP]
)  # fmt: skip


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes; or ``valid`` cut, with other bytes in a place, or with a part of it repeated."""
    place = st.integers(0, max(len(valid) - 1, 0))

    def write(at: int, new: bytes) -> bytes:
        return valid[:at] + new + valid[at + len(new) :]

    return st.one_of(
        st.binary(max_size=200),
        st.builds(lambda at: valid[:at], place),
        st.builds(write, place, st.binary(min_size=1, max_size=8)),
        st.builds(lambda at, new: valid[:at] + new + valid[at:], place, st.binary(min_size=1, max_size=8)),
        st.builds(lambda at, length: valid + valid[at : at + length], place, st.integers(1, 100)),
        st.sampled_from([b"", b"\0" * 64, b"\xff" * 64, b"\xff\xfe" + valid[:99], b"[" * 100_000, b'{"a":' * 5_000]),
    )


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """``valid`` with one value at a random path replaced by another kind of value, or its key removed."""
    value = copy.deepcopy(valid)
    paths = list(_paths(value))
    path = draw(st.sampled_from(paths)) if paths else ()
    if not path:
        return draw(OTHER_VALUES)
    inner = value
    for part in path[:-1]:
        inner = inner[part]
    if draw(st.integers(0, 4)):
        inner[path[-1]] = draw(OTHER_VALUES)
    else:
        del inner[path[-1]]
    return value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inner)[:40]:
        yield from _paths(part, (*path, key))


def refused_or_read(read: Callable[[], object], name: str | Path) -> bool:
    """Whether the input was refused, by a UserError of one short line that names ``name``."""
    said = None
    try:
        read()
    except UserError as error:
        said = str(error)
    assert said is None or (str(name) in said and len(said) < 1500 and "\n" not in said), said
    return said is not None
