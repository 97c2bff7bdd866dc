"""Our own records: read in their shape, or refused with the file and the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UserError
from accord.io.records import Done, Lock, Manifest, check, check_json, read_metrics, read_record, read_record_to_show

DONE: dict[str, Any] = {"kind": "sft", "key": "k", "inputs": {"a": "b"}, "metrics": {"loss": 1}, "seconds": 2}


def test_a_record_is_read_with_its_numbers_and_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    assert read_record(path, Done, "") == {}
    path.write_text(json.dumps({**DONE, "a key of tomorrow": [1]}))
    found = read_record(path, Done, "")
    assert found == {**DONE, "a key of tomorrow": [1]}
    assert isinstance(found["metrics"]["loss"], int)


def test_an_undefined_figure_is_null_on_disk_and_nan_here() -> None:
    assert math.isnan(check({**DONE, "metrics": {"loss": None}}, Done, "x", "")["metrics"]["loss"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": None}, "kind: expected a valid string, found None"),
        ({"metrics": {"loss": "low"}}, "metrics.loss: expected a valid number, found 'low'"),
        ({"metrics": {"loss": True}}, "metrics.loss: expected a valid number, found True"),
        ({"seconds": math.nan}, "seconds: expected a finite number, found nan"),
        ({"seconds": -1}, "seconds: expected greater than or equal to 0, found -1"),
        ({"inputs": {"a": 1}}, "inputs.a: expected a valid string, found 1"),
        ({"outputs": ["model"]}, "outputs: expected a valid dictionary, found ['model']"),
    ],
)
def test_a_key_of_another_type_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "done.json"
    path.write_text(json.dumps({**DONE, **change}))
    with pytest.raises(UserError) as caught:
        read_record(path, Done, "remove it.")
    assert str(caught.value) == f"{path}: {said}; remove it."
    assert read_record_to_show(path, Done) == {}


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text('{"pid": 1, "host": "h"}')
    with pytest.raises(UserError, match=r"lock\.json: has no 'start'; remove it"):
        read_record(path, Lock, "remove it")


def test_a_digest_must_look_like_one() -> None:
    with pytest.raises(UserError, match=r"m: digest: expected text of the form .*, found '\.\./x'"):
        check({"digest": "../x"}, Manifest, "m", "")


def test_rows_of_metrics_have_a_step_and_figures(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": NaN}\n{"ste')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    for line, said in (('{"loss": 1}', "has no 'step'"), ('{"step": 1, "loss": "x"}', "loss: expected a valid number")):
        path.write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(UserError, match=f"row 2: {said}.*; repair or remove this line"):
            read_metrics(path)


def test_json_in_a_database_is_checked() -> None:
    assert check_json('{"a": 1}', "x", "") == {"a": 1}
    for text, said in ((b"\xff", "is not text"), ("[1]", "is not a JSON object"), ("{", "not valid JSON")):
        with pytest.raises(UserError, match=f"x: {said}.*; import it again"):
            check_json(text, "x", "import it again")
