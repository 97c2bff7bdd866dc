"""Data sets of the hub, from a cache made here; there is no network in tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from accord.data.files.hub import HubName, hub_name, is_hub_name, pinned
from accord.data.files.source import open_source
from accord.data.preferences import PairLengths, load_preferences
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

COMMIT, OLD = "a" * 40, "b" * 40
CARD = """---
configs:
- config_name: pairs
  data_files:
  - {split: train, path: "data/train-*.jsonl"}
  - {split: test, path: data/test.jsonl}
- config_name: other
  data_files: data/other.csv
---
"""


def pair(text: str) -> str:
    return json.dumps({"prompt": text, "chosen": "yes", "rejected": "no"}) + "\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two commits of org/tiny, and org/plain, which has no card."""
    pytest.importorskip("datasets")
    import huggingface_hub.constants

    root = tmp_path / "hub"
    for commit, text in ((COMMIT, "new"), (OLD, "old")):
        data = root / "datasets--org--tiny" / "snapshots" / commit / "data"
        data.mkdir(parents=True)
        (data.parent / "README.md").write_text(CARD)
        (data / "train-0.jsonl").write_text(pair(text) + pair("two"))
        (data / "train-1.jsonl").write_text(pair("three"))
        (data / "test.jsonl").write_text(pair("test"))
        (data / "other.csv").write_text("prompt,chosen,rejected\n007,yes,no\n")
    plain = root / "datasets--org--plain" / "snapshots" / COMMIT
    plain.mkdir(parents=True)
    (plain / "train.jsonl").write_text(pair("plain"))
    for name, refs in {"tiny": {"main": COMMIT, "v1": OLD}, "plain": {"main": COMMIT}}.items():
        folder = root / f"datasets--org--{name}" / "refs"
        folder.mkdir()
        for ref, commit in refs.items():
            (folder / ref).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    pinned.cache_clear()
    return root


def prompts(name: str) -> list[str]:
    return [row["prompt"] for _, row in open_source(name).rows]


def test_a_split_of_a_config_is_read_in_the_order_of_its_files(cache: Path) -> None:
    assert prompts("org/tiny:pairs/train") == ["new", "two", "three"]
    assert prompts("org/tiny:pairs/test") == ["test"]
    assert prompts("org/tiny@v1:pairs/train") == ["old", "two", "three"]
    assert prompts("org/plain") == ["plain"]


def test_a_place_names_the_file_and_its_row(cache: Path) -> None:
    places = [where for where, _ in open_source("org/tiny:pairs/train").rows]
    assert [(Path(where.path).name, where.row) for where in places] == [
        ("train-0.jsonl", 1),
        ("train-0.jsonl", 2),
        ("train-1.jsonl", 1),
    ]


def test_cells_of_a_hub_csv_stay_text(cache: Path) -> None:
    assert prompts("org/tiny:other/train") == ["007"]


def test_the_commit_becomes_part_of_the_name(cache: Path) -> None:
    assert pinned("org/tiny:pairs/test") == f"org/tiny@{COMMIT}:pairs/test"
    assert pinned("org/tiny@v1:pairs/test") == f"org/tiny@{OLD}:pairs/test"
    assert prompts(pinned("org/tiny@v1:pairs/train"))[0] == "old"


def test_stages_read_it(cache: Path, chatml: Tokenizer) -> None:
    report = load_preferences("org/tiny:pairs/train", chatml, PairLengths(50, 100)).report
    assert report.used == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "org/absent",
            "org/absent: no such file here, and as a data set of the Hugging Face hub it is not in the cache",
        ),
        ("org/tiny@v9:pairs/train", "not in the cache"),
        ("org/tiny:pairs/valid", "no split 'valid'; it has train, test: name one as org/tiny:SPLIT"),
        ("org/tiny:none/train", "name a config as org/tiny:CONFIG/SPLIT"),
    ],
)
def test_what_is_not_there_is_named(cache: Path, name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        prompts(name)
    assert said in str(caught.value)


def test_without_the_extra_it_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs datasets; pip install -e '\S+\[data\]'"):
        prompts("org/tiny:pairs/train")


@pytest.mark.parametrize(
    "text",
    ["sft", "a/b/c", "data/rows.jsonl", "data/rows.csv.gz", "/org/name", "./org/name", "org/name:", "module:function"],
)  # fmt: skip
def test_a_path_is_no_data_set(text: str) -> None:
    assert not is_hub_name(text)


def test_a_folder_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name("org/name.v1@main:a-b/train") == HubName("org/name.v1", "main", "a-b", "train")
    (tmp_path / "org").mkdir()
    assert hub_name("org/name") is None
