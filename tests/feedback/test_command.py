"""``accord feedback``, from nothing to a snapshot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.feedback.queue import next_questions
from accord.feedback.store import open_store
from accord.feedback.votes import cast


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCORD_FEEDBACK", raising=False)
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "guide.md").write_text("Be *kind*.")
    return tmp_path


def call(*words: str) -> int:
    return main(["feedback", *words])


def test_from_nothing_to_a_snapshot(folder: Path, capsys: Any) -> None:
    words = ("--overlap", "2", "--tag", "rude", "--tag", "wrong", "--guidelines", "guide.md", "--repeat-share", "0")
    assert call("create", "tone", *words) == 0
    assert call("add", "tone", "p.jsonl") == 0
    assert call("add", "tone", "p.jsonl") == 0
    assert "added 0 pairs to tone; 3 were there already" in capsys.readouterr().out
    assert call("annotator", "add", "tone", "Ann=B") == 0
    token = capsys.readouterr().out.strip()
    store = open_store("checkpoints/feedback.db", create=False)
    annotator = store.authenticate(token)
    assert annotator is not None
    assert annotator.name == "Ann=B"
    assert (store.project("tone").guidelines, store.project("tone").settings.tags) == ("Be *kind*.", ("rude", "wrong"))
    cast(store, annotator, next_questions(store, annotator, 1)[0].id, "left", request="1", comment="private")
    assert call("status", "tone") == 0
    assert "1 votes on 3 pairs; 5 are missing" in capsys.readouterr().out
    assert call("status", "tone", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "tone", "pairs": 3, "votes": 1, "missing": 5}
    assert call("projects", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "tone", "pairs": 3, "votes": 1, "missing": 5}]
    assert call("snapshot", "tone", "votes") == 0
    assert json.loads(Path("votes/snapshot.json").read_text())["votes"] == 1
    assert "private" not in Path("votes/votes.jsonl").read_text()
    capsys.readouterr()
    assert call("annotator", "list", "tone", "--json") == 0
    assert [(p["name"], p["done"], p["token"]) for p in json.loads(capsys.readouterr().out)] == [("Ann=B", 1, True)]


def test_tokens_are_replaced_and_revoked(capsys: Any) -> None:
    call("create", "tone")
    call("annotator", "add", "tone", "Ann", "--owner")
    first = capsys.readouterr().out.splitlines()[-1]
    assert call("annotator", "token", "tone", "Ann") == 0
    second = capsys.readouterr().out.strip()
    store = open_store("checkpoints/feedback.db")
    assert store.authenticate(first) is None
    assert store.authenticate(second).role == "owner"  # type: ignore[union-attr]
    assert call("annotator", "revoke", "tone", "Ann") == 0
    assert store.authenticate(second) is None
    assert call("annotator", "list", "tone") == 0
    assert "revoked" in capsys.readouterr().out


def test_forgetting_needs_a_yes(capsys: Any) -> None:
    call("create", "tone")
    call("annotator", "add", "tone", "Ann")
    assert call("forget", "tone", "Ann") == 2
    assert "add --yes" in capsys.readouterr().err
    assert call("forget", "tone", "Ann", "--yes") == 0
    assert call("annotator", "list", "tone") == 0
    out = capsys.readouterr().out
    assert "(forgotten)" in out
    assert "Ann " not in out.rpartition("stay without a name")[2]


def test_settings_are_changed_one_at_a_time() -> None:
    call("create", "tone", "--overlap", "2", "--lease-seconds", "60")
    assert call("change", "tone", "--overlap", "3") == 0
    assert call("change", "tone", "--guidelines", "guide.md") == 0
    project = open_store("checkpoints/feedback.db").project("tone")
    assert (project.settings.overlap, project.settings.lease_seconds, project.guidelines) == (3, 60, "Be *kind*.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "tune"), "did you mean 'tone'"),
        (("create", "tone"), "exists already"),
        (("create", "x", "--overlap", "0"), "overlap: 0"),
        (("create", "x", "--guidelines", "nope.md"), "no such file"),
        (("change", "tone"), "nothing to change"),
        (("add", "tone", "nope.jsonl"), "nope.jsonl: no such file"),
        (("add", "tone", "p.jsonl", "--pairs", "0"), "--pairs 0"),
        (("snapshot", "tone", "out", "--until", "tomorrow"), "--until 'tomorrow'"),
        (("snapshot", "tone", "."), "is not a snapshot"),
        (("annotator", "revoke", "tone", "Bob"), "annotator list tone"),
        (("status", "tone", "--store", "else.db"), "no store here"),
        (("status", "tone", "--store", "mysql://a/b"), "a path or a postgresql:// URL"),
        (("snapshto", "tone"), "did you mean 'snapshot'"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: Any, words: tuple[str, ...], message: str) -> None:
    call("create", "tone")
    capsys.readouterr()
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_needs_neither_sqlalchemy_nor_torch() -> None:
    code = "import sys; from accord.cli import parser; parser()"
    code += "; print(sorted({'sqlalchemy', 'alembic', 'torch'} & {*sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
