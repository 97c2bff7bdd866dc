"""A ledger is read as it was written, resumed where the saved state stands, and refused where it is damaged or of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.distributed.ray.ledger import Header, Ledger, read_ledger, require_same_run, versions_needed
from accord.errors import UserError

HEADER = Header(
    format=1,
    seed=3,
    threads=1,
    ranks=1,
    worker_threads=2,
    device="cpu",
    settings={"training": {"iterations": 4, "learning_rate": 0.1}, "rollout": {"workers": 2, "replay": ""}},
    inputs={"prompts": "aa"},
)


def line(number: int, *versions: int, swaps: Any = ()) -> dict[str, Any]:
    chunks = [
        {"chunk": 10 * number + i, "prompts": [i], "version": version, "swaps": [list(s) for s in swaps], "worker": 0}
        for i, version in enumerate(versions)
    ]
    return {"rollout": number, "weights": "ab", "chunks": chunks, "dropped": []}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = Ledger(tmp_path / "ledger.jsonl", HEADER)
    rows = [line(0, 0, 0), line(1, 0, 1, swaps=[(3, 1)])]
    for row in [*rows, {"end": "cd"}]:
        written.write(row)
    assert written.lines == 4
    assert read_ledger(tmp_path) == read_ledger(tmp_path / "ledger.jsonl") == (HEADER, rows, "cd")


def test_a_new_run_replaces_the_ledger_of_an_earlier_one(tmp_path: Path) -> None:
    for count in (3, 1):
        written = Ledger(tmp_path / "ledger.jsonl", HEADER)
        for number in range(count):
            written.write(line(number, 0))
    assert len(read_ledger(tmp_path)[1]) == 1


def test_a_resumed_run_continues_after_the_lines_that_its_state_knows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path, HEADER)
    for number in range(3):
        first.write(line(number, 0))
    with path.open("a") as file:
        file.write('{"rollout": 3, "wei')  # a kill
    second = Ledger(path, HEADER)
    second.resume(3)
    second.write(line(2, 1))
    assert [row["chunks"][0]["version"] for row in read_ledger(path)[1]] == [0, 0, 1]


def test_a_ledger_that_is_shorter_than_the_state_cannot_be_resumed(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl", HEADER).write(line(0, 0))
    with pytest.raises(UserError, match="has 2 lines, and the saved state belongs to 3; run without --resume"):
        Ledger(tmp_path / "ledger.jsonl", HEADER).resume(3)


def test_versions_are_needed_as_long_as_later_rollouts_use_them() -> None:
    rows: Any = [line(0, 0), line(1, 0, 1), line(2, 1, swaps=[(2, 2)])]
    assert [versions_needed(rows, after) for after in range(4)] == [{0, 1, 2}, {0, 1, 2}, {1, 2}, set()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("", "is empty"),
        (json.dumps({**HEADER, "format": 2}), "line 1: format 2, and this version of accord reads 1"),
        ('{"rollout": 0}', "line 1: "),
        (f"{json.dumps(HEADER)}\n{json.dumps(line(1, 0))}", "line 2: rollout 1, expected 0"),
        (f"{json.dumps(HEADER)}\n{json.dumps({**line(0, 0), 'chunks': [{'chunk': -1}]})}", "line 2: "),
        (f"{json.dumps(HEADER)}\n[1]\n{json.dumps(line(0, 0))}", "row 2"),
    ],
)
def test_a_damaged_ledger_is_refused_by_file_and_line(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "ledger.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        read_ledger(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"settings": {**HEADER["settings"], "training": {"iterations": 4, "learning_rate": 0.2}}},
            "training.learning_rate = 0.1",
        ),
        ({"inputs": {"prompts": "bb"}}, "had prompts = another content; replay with the same inputs"),
        ({"ranks": 2}, "replay with parallel.nproc=1"),
        ({"seed": 4}, "had seed=3"),
    ],
)
def test_a_ledger_of_another_run_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        require_same_run(Path("ledger.jsonl"), HEADER, Header(**{**HEADER, **change}))


def test_only_the_replay_itself_may_differ() -> None:
    settings = {**HEADER["settings"], "rollout": {"workers": 2, "replay": None}}
    mine = Header(**{**HEADER, "settings": settings, "inputs": {"prompts": "aa", "rollout.replay": "cc"}, "threads": 4})
    require_same_run(Path("ledger.jsonl"), HEADER, mine)
