"""Files from people and from killed runs: read as they are, or refused in one sentence that names the place."""

from __future__ import annotations

import gzip
import os
import time
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
    shorten,
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: &a [*a]\n", "line 1: nested too deeply, or an alias"),
        ("a: !!int abc\n", "line 1: not valid YAML: 'abc' cannot be read as int"),
        (
            "b: 1\na: !!python/object:os.system x\n",
            "line 2: not valid YAML: the tag .*python/object.* is not read here",
        ),
        ("a: !!binary eA==\n", "the tag .*binary.* is not read here"),
        ("a: 1\n2: b\n", "line 2: not valid YAML: the key '2' is not text; put it in quotes"),
        ("on: 1\n", "the key 'on' is not text"),
        ("? [a]\n: 1\n", "the key a list or mapping is not text"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' occurs twice .first on line 1"),
        ("a:\n\tb: 1\n", r"line 2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 0x" + "f" * 5000, "cannot be read as int"),
        ("a: " + "9" * 5000, "cannot be read as int"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * 70 + "]" * 70, "nested too deeply, at most 64 levels"),
        ('a: "\\ud800"\n', "a character that no text has"),
        ("a: 1\nb: \0\n", r"line 2: the character U\+0000 is not allowed"),
        ("a: 1\n---\nb: 2\n", "line 2: not valid YAML: a second document begins here"),
        ("- a\n", "expected 'key: value' lines at the top level, found list"),
    ],
)
def test_a_hostile_config_is_refused_at_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_aliases_that_multiply_are_refused_at_once(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "c.yaml"
    path.write_text("\n".join(levels))
    started = time.process_time()
    with pytest.raises(UserError, match=r"c\.yaml line \d: more than 20,000 values, aliases \(\*name\) counted"):
        read_yaml(path)
    assert time.process_time() - started < 1


def test_a_date_is_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: 2026-11-27\n'2026-11-27': x\nb: &b {c: 1}\nd:\n  <<: *b\n  c: 3\n  e: 2\n")
    assert read_yaml(path)[0] == {"name": "2026-11-27", "2026-11-27": "x", "b": {"c": 1}, "d": {"c": 3, "e": 2}}


# ------------------------------------------------------------------ what is no file of text
READERS = {
    "yaml": read_yaml,
    "json": lambda path: read_json(path, "copy it again."),
    "rows": lambda path: list(read_jsonl(path)),
    "appended": read_appended_rows,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path, reader: str) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, said in (
        (pipe, "a pipe, expected a file"),
        (loop, "a loop of symbolic links, expected a file"),
        (tmp_path, "a folder, expected a file"),
        (Path("/dev/zero"), "a device, expected a file"),
    ):
        with pytest.raises(UserError, match=f"{path}: {said}"):
            READERS[reader](path)


@pytest.mark.parametrize("reader", ["yaml", "json", "rows"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b'{"a": 1}', mtime=0), "is compressed by gzip; decompress it"),
        (b"(\xb5/\xfd\0", "is compressed by Zstandard; decompress it"),
        (b"PK\x03\x04\0", "is a zip archive; unpack it"),
        (b"PAR1\x15\0", "is a Parquet file; save its rows as JSON Lines"),
    ],
)
def test_another_kind_of_file_is_named_rather_than_its_encoding(
    tmp_path: Path, reader: str, content: bytes, words: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        READERS[reader](path)


@pytest.mark.parametrize("reader", ["yaml", "json", "rows"])
def test_other_encodings_are_named_and_a_mark_is_skipped(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "x"
    text = '{"a": "é"}'
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match=r"x.*: is UTF-16; save it as UTF-8"):
        READERS[reader](path)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"x.*: not UTF-8 \(.* at byte 7\); save it as UTF-8"):
        READERS[reader](path)
    path.write_bytes(text.encode("utf-8-sig"))
    READERS[reader](path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 80 + "]" * 80, "nested too deeply, at most 64 levels"),
        ("9" * 5000, "a number has too many digits"),
        ('"\\ud800"', r"\\ud800 is half of a surrogate pair"),
        ('{"b": 1, "b": 2}', "the key 'b' occurs twice in one object"),
        ("NaN", "NaN is not JSON; write null"),
    ],
)
def test_a_hostile_row_is_named(tmp_path: Path, value: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ' + value + "}\n")
    with pytest.raises(UserError, match=f"rows.jsonl, row 2: .*{said}"):
        list(read_jsonl(path))


def test_a_row_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.io.readers.MAX_ROW_BYTES", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 100 + '"}\n')
    with pytest.raises(UserError, match="row 2: longer than 100 bytes; write one object per line"):
        list(read_jsonl(path))


def test_a_damaged_line_before_the_last_is_not_lost_silently(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, row 2: not valid JSON: .*; repair or remove this line"):
        read_appended_rows(path)


def test_values_in_messages_are_short_and_printable() -> None:
    assert shorten("a\x1b[31m\n\ud800") == r"a\x1b[31m\n\ud800"
    assert shorten("x" * 1000, 10) == "x" * 10 + "…"
    assert shorten(10**5000) == "a int"
