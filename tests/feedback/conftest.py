"""A store on each database, and pairs to put into it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from accord.feedback.entities import NewCandidate, NewPair, ProjectSettings
from accord.feedback.store import Store, open_store

Pairs = Callable[..., list[NewPair]]


@pytest.fixture(autouse=True)
def known_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotators' ids, from which sides and repeats are drawn, are the same in every run."""
    hashed = (hashlib.blake2b(str(n).encode(), digest_size=8).hexdigest() for n in count())
    monkeypatch.setattr("accord.feedback.store.new_public_id", lambda: next(hashed))


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store could be, on each database in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def store(place: str) -> Store:
    """A store with the project "tone", without repeats or gold questions."""
    found = open_store(place)
    found.create_project("tone", ProjectSettings(repeat_share=0, gold_share=0, tags=("wrong", "rude")))
    return found


@pytest.fixture
def make_pairs() -> Pairs:
    """``make_pairs(3, gold="a")``: pairs with texts of their own."""

    def build(count: int, first: int = 0, gold: str | None = None) -> list[NewPair]:
        def reply(text: str) -> NewCandidate:
            return NewCandidate(text, (3, 1, 2), "sha-of-a-policy", {"temperature": 0.7})

        return [
            NewPair(
                ({"role": "user", "content": f"question {i}"},), reply(f"yes {i}"), reply(f"no {i}"), 0.5, gold, "run"
            )  # type: ignore[arg-type]
            for i in range(first, first + count)
        ]

    return build
