"""What the key of a stage knows of its data: every kind of file, and the commit of a data set of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accord.config.load import load
from accord.data.files.hub import pinned
from accord.errors import UserError
from accord.pipeline.checks import check_rows
from accord.pipeline.references import require, resolve
from accord.pipeline.task import task_of
from accord.stage_kinds.table import STAGE_KINDS

ROWS = [{"prompt": "hi", "completion": "hello"}, {"prompt": "bye", "completion": "see you"}]


def key(*overrides: str) -> str:
    config = load(STAGE_KINDS["base"].settings, None, overrides)
    require(config, "base", ())
    return task_of("base", resolve("base", config, lambda name: None)).key


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds org/tiny at two commits; the newest is main."""
    import huggingface_hub.constants

    folder = tmp_path / "hub" / "datasets--org--tiny"
    for commit, text in (("a" * 40, "new"), ("b" * 40, "old")):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "train.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    pinned.cache_clear()
    return folder


def test_the_key_of_an_arrow_folder_is_that_of_its_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    found = key(f"data.train={tmp_path}/one")
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"as datasets leaves it after map()")
    assert key(f"data.train={tmp_path}/one") == found
    data.select([0]).save_to_disk(tmp_path / "two")
    assert key(f"data.train={tmp_path}/two") != found


def test_the_key_of_a_hub_data_set_is_that_of_its_commit(hub: Path) -> None:
    newest = key("data.train=org/tiny")
    assert key("data.train=org/tiny@" + "a" * 40) == newest
    (hub / "refs" / "main").write_text("b" * 40)
    pinned.cache_clear()
    assert key("data.train=org/tiny") == key("data.train=org/tiny@" + "b" * 40) != newest


def test_the_config_of_the_stage_names_the_commit(hub: Path) -> None:
    config = load(STAGE_KINDS["sft"].settings, None, ["data.train=org/tiny:train", "data.heldout=org/tiny:train"])
    made = resolve("sft", config, lambda name: None).model_dump()["data"]
    assert made["train"] == made["heldout"] == f"org/tiny@{'a' * 40}:train"


def test_files_of_every_kind_are_read_before_a_stage_runs_for_them(tmp_path: Path, hub: Path) -> None:
    pytest.importorskip("datasets")
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,completion\na,b,c\n")
    config = load(STAGE_KINDS["sft"].settings, None, [f"data.train={bad}"])
    with pytest.raises(UserError, match=r"bad\.csv, row 1: 3 cells"):
        check_rows("sft", config)
    (hub / "snapshots" / ("a" * 40) / "train.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"train\.jsonl.*a JSON object over several lines"):
        check_rows("sft", load(STAGE_KINDS["sft"].settings, None, ["data.train=org/tiny"]))


def test_a_data_set_that_is_not_there_is_named_with_its_setting(hub: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.train: org/absent: no such file here, and as a data set"):
        key("data.train=org/absent")
