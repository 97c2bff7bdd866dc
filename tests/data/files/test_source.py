from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from accord.data.files.source import open_source
from accord.errors import UserError

ROWS: list[dict[str, Any]] = [{"prompt": "hi", "completion": "hello"}, {"prompt": 'a "b",\nc', "completion": "ü; \t"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path) -> tuple[str, list[tuple[int, dict[str, Any]]]]:
    source = open_source(path)
    return source.kind, [(where.row, row) for where, row in source.rows]


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    import io

    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.jsonl", LINES, "JSON Lines"),
        ("a.txt", "\ufeff" + LINES, "JSON Lines"),
        ("a.json", json.dumps(ROWS, indent=1), "JSON array"),
        ("a.jsonl", "\ufeff " + json.dumps(ROWS, ensure_ascii=False), "JSON array"),
        ("a.csv", as_csv(ROWS), "CSV"),
        ("a.CSV", "\ufeff" + as_csv(ROWS, ";"), "CSV"),
        ("a.tsv", as_csv(ROWS, "\t"), "CSV"),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, text: str, kind: str, zipped: bool) -> None:
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if zipped else text.encode())
    assert read(path) == (f"{kind}, gzip" if zipped else kind, [(1, ROWS[0]), (2, ROWS[1])])


def test_parquet_and_arrow_folders_give_the_same_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict({"test": data.select([1]), "train": data}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "a.parquet") == ("Parquet", [(1, ROWS[0]), (2, ROWS[1])])
    assert [row for _, row in read(tmp_path / "saved")[1]] == ROWS
    assert [row for _, row in read(tmp_path / "splits")[1]] == ROWS
    assert read(tmp_path / "splits" / "test") == ("Arrow", [(1, ROWS[1])])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b'[{"a": 1}, 3]', "row 2: a JSON number, expected an object"),
        ("a.json", b'[{"a": 1},\n\n{"a": }]', "row 2: not valid JSON: Expecting value at line 3"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "row 1: not valid JSON: expected ',' or ']' after this row at line 1"),
        ("a.json", b'[{"a": 1}', "row 1: not valid JSON: expected ',' or ']'"),
        ("a.json", b'[{"a": 1},]', "row 2: not valid JSON"),
        ("a.json", b'[{"a": 1}]\n[{"a": 1}]', "row 1: not valid JSON: more text after the array at line 2"),
        ("a.json", b'[{"a": 1, "a": 2}]', "row 1: the key 'a' occurs twice"),
        ("a.json", b'[{"a": NaN}]', "row 1: NaN is not JSON"),
        ("a.json", b'[{"a": ' + b"[" * 100_000, "row 1: nested too deeply"),
        ("a.json", b'[{"a": ' + b"9" * 5000 + b"}]", "row 1: a number has too many digits"),
        ("a.json", b'[{"a": "\\ud83d"}]', "row 1: .ud83d is half of a surrogate pair"),
        ("a.json", b'{\n "a": 1\n}', "a JSON object over several lines; write an array of rows"),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("a.csv", b"a,b\n1\n", "row 1: 1 cells, but the header names 2 columns"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "row 2: 3 cells"),
        ("a.csv", b'a,b\n1,2\n1,"2\n', "row 2: not valid CSV"),
        ("a.csv", b"a,a\n1,2\n", "the header names the column 'a' twice"),
        ("a.csv", b"a,,c\n1,2,3\n", "column 2 has no name"),
        ("a.csv", b"a,b\n", "no rows after the header"),
        ("a.csv", b"", "no header"),
        ("a.csv", b"a\n\xff\n", "not UTF-8"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0)[:-12], "the gzip data is damaged or incomplete"),
        ("a.jsonl", b"\x1f\x8bnonsense that is no gzip", "the gzip data is damaged or incomplete"),
        ("a.jsonl", b"\xff\xfea\x00", "is UTF-16; save it as UTF-8"),
        ("a.jsonl", b"(\xb5/\xfd", "is compressed by Zstandard; decompress it"),
        ("a.parquet", b"PAR1 and no more", "cannot be read .*save it again"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_its_row(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=f"{name}.*{said}"):
        read(path)


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        open_source(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="a folder, expected a file, or a folder that datasets' save_to_disk wrote"):
        open_source(tmp_path)
