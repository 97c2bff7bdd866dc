from __future__ import annotations

import json
from pathlib import Path

import pytest

from accord.data.files.arrow import arrow_files, arrow_rows, is_arrow_folder, parquet_rows
from accord.errors import UserError

datasets = pytest.importorskip("datasets")
CALLS = [
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        ]
    },
    {"messages": [{"role": "user", "content": "b", "name": "Ann"}, {"role": "assistant", "content": "c"}]},
]


@pytest.mark.parametrize("options", [{}, {"on_mixed_types": "use_json"}])
def test_objects_come_back_without_the_keys_that_arrow_adds(tmp_path: Path, options: dict[str, str]) -> None:
    try:
        data = datasets.Dataset.from_list(CALLS, **options)
    except TypeError:
        pytest.skip("this version of datasets stores no JSON")
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    for rows in (parquet_rows(tmp_path / "a.parquet"), arrow_rows(arrow_files(tmp_path / "saved")[0])):
        found = [{key: value for key, value in row.items() if value is not None} for _, row in rows]
        assert found == CALLS


def test_a_null_that_stands_in_json_stays(tmp_path: Path) -> None:
    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets stores no JSON")
    features = datasets.Features({"tools": datasets.List(datasets.Json())})
    data = datasets.Dataset.from_dict({"tools": [[{"default": None, "type": "x"}]]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    assert list(parquet_rows(tmp_path / "a.parquet")) == [(1, {"tools": [{"default": None, "type": "x"}]})]


def test_splits_are_named_where_none_is_for_training(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(CALLS)
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(tmp_path / "d")
    assert is_arrow_folder(tmp_path / "d")
    with pytest.raises(UserError, match=r"holds the splits a, b; name one, as .*d/a$") as caught:
        arrow_files(tmp_path / "d")
    assert len(list(arrow_rows(arrow_files(Path(str(caught.value).split("name one, as ")[1]))[0]))) == 2


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "absent.arrow"])
def test_a_state_that_names_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="is not a file of this folder"):
        arrow_files(tmp_path)


def test_a_damaged_arrow_file_is_named(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(CALLS)
    data.save_to_disk(tmp_path / "saved")
    file = arrow_files(tmp_path / "saved")[0]
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match=r"data-00000.*cannot be read .*save it again"):
        list(arrow_rows(file))
