"""benchmarks/labeling.py: votes over HTTP to a server that is killed in between; none is lost, none doubled."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi", reason="needs the extra feedback")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_labeling", ROOT / "benchmarks" / "labeling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_vote_is_lost_or_doubled_when_the_server_is_killed(
    bench: ModuleType, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = tmp_path / "feedback.db" if database == "sqlite" else request.getfixturevalue("postgresql_url")
    found = bench.load(str(place), annotators=4, votes=12, kills=3)
    assert (found["votes"], found["stored"], found["kills"]) == (48, 48, 3)
    assert (found["lost"], found["doubled"], found["beyond_overlap"]) == (0, 0, 0)
    assert found["sent_again"] > 0
    assert found["exit_code"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_sixteen_annotators_lose_nothing(
    bench: ModuleType, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = tmp_path / "feedback.db" if database == "sqlite" else request.getfixturevalue("postgresql_url")
    found = bench.load(str(place), annotators=16, votes=100, kills=6)
    assert (found["stored"], found["lost"], found["doubled"], found["beyond_overlap"]) == (1600, 0, 0, 0)


def test_a_lost_and_a_doubled_vote_are_seen(bench: ModuleType, tmp_path: Path) -> None:
    from accord.feedback.queue import next_questions
    from accord.feedback.store import open_store
    from accord.feedback.votes import cast

    place = str(tmp_path / "feedback.db")
    bench.fill(place, annotators=1, votes=5)
    store = open_store(place)
    annotator = store.annotator(bench.PROJECT, "annotator 0")
    question, _ = next_questions(store, annotator)
    made = cast(store, annotator, question.id, "left", request="known")
    cast(store, annotator, question.id, "left", request="again")

    def person(**answered: int) -> object:
        return bench.Annotator(0, "", 0, 1, answered=answered)

    assert bench.compare(place, [person(known=made.id)])["doubled"] == 1
    assert bench.compare(place, [person(known=made.id, again=made.id + 1, gone=77)])["lost"] == 1
