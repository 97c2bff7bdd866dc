"""A pipeline with people in it: it waits with exit code 3, says for what, runs everything else, and goes on when run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from accord.cli import main
from accord.feedback.queue import next_questions
from accord.feedback.store import open_store
from accord.feedback.votes import cast

PEOPLE = """
seed: 0
threads: 1
device: cpu
stages:
  demo: { set: { base_rows: 60, sft_rows: 24, preference_rows: 16, heldout_base_rows: 8, heldout_sft_rows: 8 } }
  judge:
    set: { samples: samples.jsonl, judge: "feedback://colors", heldout_fraction: 0.0, pairs: 1,
           people.page: "http://127.0.0.1:9999" }
  reward: # needs people
    inputs: { model.base_model: base, data.train: judge }
    set: { model.kind: language, training.batch_size: 2, data.heldout_fraction: 0.0 }
  base: # does not
    inputs: { data.train: demo }
    set: { model.d_model: 32, model.n_layers: 1, training.batch_size: 4, data.limit: 8, model.base_model: transformer }
"""
WHERE = "at http://127.0.0.1:9999 (accord label colors)"
Accord = Callable[..., tuple[int, str, str]]


@pytest.fixture
def accord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Accord:
    """Runs a command in the test's folder; returns its exit code and what it said, in one line and in lines."""
    (tmp_path / "people.yaml").write_text(PEOPLE)
    candidates = [{"text": "red."}, {"text": "blue, i think"}]
    rows = [{"prompt": f"color {i}?", "candidates": candidates} for i in range(3)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("ACCORD_FEEDBACK", str(tmp_path / "feedback.db"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        said = capsys.readouterr()
        return code, " ".join(said.out.split()), said.err.strip()

    return run


def vote(count: int) -> None:
    store = open_store()
    people = [person for person, _ in store.annotators("colors")]
    ann = people[0] if people else store.add_annotator("colors", "Ann")[0]
    for _ in range(count):
        (question,) = next_questions(store, ann, 1)
        cast(store, ann, question.id, "left", request=str(question.id))


def test_a_pipeline_waits_for_people_and_goes_on(accord: Accord, tmp_path: Path) -> None:
    command, out = ("run", "people.yaml"), tmp_path / "checkpoints/rlhf"
    code, said, error = accord(*command)
    assert (code, error) == (
        3,
        f"accord: judge: waiting for 3 more votes {WHERE}; not run because of that: reward."
        " To go on, run the same command again.",
    )
    assert "- reward: not run, because judge waits for people" in said
    assert (out / "base/done.json").exists()
    assert not (out / "results.json").exists()
    vote(2)
    assert f"… waiting judge waiting for 1 more vote {WHERE}" in accord("status")[1]
    assert "judge is waiting for 1 more vote" in accord("why", "judge")[1]
    code, said, error = accord(*command)
    assert code == 3
    assert "waiting for 1 more vote at" in error
    vote(1)
    assert "judge waiting no longer: all its votes are there" in accord("status")[1]
    code, said, error = accord(*command)
    assert code == 0, error
    assert "✓ base: unchanged, kept" in said
    done = json.loads((out / "judge/done.json").read_text())
    snapshot = json.loads((out / "judge/snapshot/snapshot.json").read_text())
    assert done["read"] == {"votes of colors": snapshot["digest"]}
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    mine = [e["event"] for e in events if e["stage"] == "judge"]
    assert mine == ["started", "waiting", "resumed", "waiting", "resumed", "finished"]
    code, said, _ = accord(*command)
    assert (code, said.count("unchanged, kept")) == (0, 4)


def test_stages_in_processes_of_their_own_wait_in_the_same_way(accord: Accord, tmp_path: Path) -> None:
    command, out = ("run", "people.yaml", "--jobs", "2"), tmp_path / "checkpoints/rlhf"
    code, _, error = accord(*command)
    assert code == 3
    assert error.startswith(f"accord: judge: waiting for 3 more votes {WHERE}; not run because of that: reward.")
    assert (out / "base/done.json").exists()
    vote(3)
    assert accord(*command, "--only", "judge")[0] == 0
    assert (out / "judge/preferences.jsonl").read_text().count("\n") == 3


def test_a_failure_comes_before_waiting(accord: Accord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("accord.algorithms.base.train", fail)
    code, _, error = accord("run", "people.yaml")
    assert code == 1
    assert "base failed: base: RuntimeError: no luck" in error
    assert f"; judge: waiting for 3 more votes {WHERE}. Fix this" in error


def test_a_single_stage_that_waits_says_how_to_go_on(accord: Accord) -> None:
    words = ("judge", "samples=samples.jsonl", "judge=feedback://colors", "heldout_fraction=0", "pairs=1")
    code, said, error = accord(*words)
    assert code == 3
    assert error.endswith("at http://127.0.0.1:8765 (accord label colors). To go on, run it again.")
    assert "next:" not in said
    vote(3)
    assert accord(*words, "--resume")[0] == 0
