"""The states of stages: a damaged record is a state of its own, and hides no other stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.errors import UserError
from accord.pipeline.records import read_begun, read_done
from accord.pipeline.status import progress_in_words

PIPELINE = """
out: {out}
logs: {out}-logs
stages:
  first: {{ kind: demo }}
  second: {{ kind: demo, set: {{ seed: 1 }} }}
"""
DONE = {"kind": "demo", "key": "k", "inputs": {}, "metrics": {}, "seconds": 1.0, "settings": {}}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(PIPELINE.format(out=tmp_path / "out"))
    (tmp_path / "out" / "first").mkdir(parents=True)
    return path


@pytest.mark.parametrize("name", ["done.json", "begun.json"])
@pytest.mark.parametrize(
    "content",
    ["{", "[]", "\\xff", '{"key": 1}', json.dumps({**DONE, "settings": None}), json.dumps({**DONE, "inputs": [1]})],
)
def test_a_damaged_record_is_shown_and_the_others_too(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    record = tmp_path / "out" / "first" / name
    record.write_bytes(content.encode("latin-1"))
    assert main(["status", str(pipeline)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"✗ damaged first {record}" in shown
    assert "restore it, or remove it to" in shown
    assert "· would run second" in shown
    assert main(["why", "first", str(pipeline)]) == 0
    assert f"first has a damaged record: {record}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{record}.*restore it, or remove it"):
        (read_done if name == "done.json" else read_begun)(record.parent)


@pytest.mark.parametrize("name", ["done.json", "begun.json"])
def test_a_run_never_replaces_a_damaged_record_in_silence(pipeline: Path, tmp_path: Path, name: str) -> None:
    record = tmp_path / "out" / "first" / name
    record.write_text('{"key": "k"')
    assert main(["run", str(pipeline), "--only", "first"]) in (1, 2)
    assert record.read_text() == '{"key": "k"'


@pytest.mark.parametrize(
    "change", [{"step": "x"}, {"step": 10**400}, {"updated": float("inf")}, {"metrics": []}, {"total": None}]
)
def test_damaged_progress_is_no_progress(tmp_path: Path, change: dict[str, Any]) -> None:
    sound = {"step": 5, "total": 10, "first": 0, "begun": 1.0, "updated": 2.0, "metrics": {"loss": 1.0}}
    (tmp_path / "progress.json").write_text(json.dumps(sound))
    assert progress_in_words("sft", tmp_path) == "step 5 of 10, 1 s left, loss 1"
    (tmp_path / "progress.json").write_text(json.dumps({**sound, **change}))
    assert progress_in_words("sft", tmp_path) == "no step yet"


def test_the_last_run_is_read_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pipeline.json").write_text('{"file": 5, "overrides": []}')
    assert main(["status", f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'pipeline.json'}: file: expected a valid string, found 5; give the pipeline's file" in said
