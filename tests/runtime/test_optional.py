"""What a finished stage can do without costs only itself."""

from __future__ import annotations

import pytest

from accord.runtime.optional import optional


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "curve.png was omitted: [Errno 28] No space left on device"),
        (ValueError("bad\nsecond line"), "curve.png was omitted: bad"),
        (KeyError(), "curve.png was omitted: KeyError"),
        (MemoryError(), "curve.png was omitted: MemoryError"),
    ],
)
def test_an_error_is_one_line(error: Exception, words: str) -> None:
    said: list[str] = []
    with optional("curve.png", said.append):
        raise error
    assert said == [words]


def test_nothing_is_said_where_nothing_fails_and_a_stop_is_no_error() -> None:
    said: list[str] = []
    with optional("x", said.append):
        pass
    with pytest.raises(KeyboardInterrupt), optional("x", said.append):
        raise KeyboardInterrupt
    assert said == []
