"""Files from people and from killed runs: read as they are, or refused in one sentence that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.errors import UserError
from accord.io.atomic import write_jsonl
from accord.io.readers import (
    json_kind,
    read_appended_rows,
    read_json,
    read_json_if_present,
    read_jsonl,
    read_yaml,
)

DAMAGED = {
    "cut": (b'{"a": 1', r"x\.json: not valid JSON: .* at column 8; copy it again\.$"),
    "empty": (b"", r"x\.json: not valid JSON"),
    "bytes": (b'{"a": "\xff"}', r"x\.json, line 1: not UTF-8 \(invalid start byte at byte 7\)"),
    "list": (b"[1]", r"x\.json: a JSON array, expected an object; copy it again\.$"),
    "number": (b"1", r"x\.json: a JSON number"),
}


# ------------------------------------------------------------------ JSON
def test_an_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [1, "ü"]}', encoding="utf-8")
    expected = {"a": [1, "ü"]}
    assert read_json(path, "") == read_json_if_present(path, "") == expected


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, how: str) -> None:
    content, message = DAMAGED[how]
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for read in (read_json, read_json_if_present):
        with pytest.raises(UserError, match=message):
            read(path, "copy it again.")


@pytest.mark.parametrize("name", ["x.json", "file/x.json"])
def test_an_absent_file_is_named_where_it_must_be_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    with pytest.raises(UserError, match=r"x\.json: no such file; make it\.$"):
        read_json(path, "make it.")
    assert read_json_if_present(path, "") is None


def test_kinds_are_those_of_json() -> None:
    values = ([], "", True, {}, None, 1, 1.0)
    assert [json_kind(v) for v in values] == ["array", "string", "boolean", "object", "null", "number", "number"]


# ------------------------------------------------------------------ JSON Lines
def test_rows_come_back_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    rows = [{"prompt": "é\n☃\u2028"}, {"n": [1, None]}]
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == [(1, rows[0]), (2, rows[1])]
    path.write_text('\ufeff{"a": 1}\n\n  \n{"b": 2}', encoding="utf-8")
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"b": 2})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 1,}\n', "row 2: not valid JSON"),
        ("[\n{}\n]\n", r"row 1: not valid JSON.*one object per line"),
        ('{"a": 1}\n["b"]\n', "row 2: a JSON array, expected an object"),
        ("3\n", "row 1: a JSON number"),
        ("", "no rows"),
        ("\n\n", "no rows"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        list(read_jsonl(path))
    assert str(path) in str(caught.value)


def test_absent_and_binary_files_of_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="a folder"):
        list(read_jsonl(tmp_path))
    (tmp_path / "b").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_jsonl(tmp_path / "b"))


def test_appended_rows_end_where_a_kill_cut_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_appended_rows(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_appended_rows(path) == [{"step": 1}, {"step": 2}]


# ------------------------------------------------------------------ YAML
def test_yaml_is_read_with_the_line_of_every_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb:\n  c: {d: 2}\n\n  e:\n    - f: 3\n", encoding="utf-8")
    values, lines = read_yaml(path)
    assert values == {"a": 1, "b": {"c": {"d": 2}, "e": [{"f": 3}]}}
    assert lines == {"a": 1, "b": 2, "b.c": 3, "b.c.d": 3, "b.e": 5, "b.e.0.f": 6}
