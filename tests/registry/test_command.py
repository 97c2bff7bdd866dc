"""``accord models`` as a person types it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.registry.command import age, in_bytes
from accord.registry.store import Store, open_store


@pytest.fixture
def filled(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """base@1, sft@1, sft@2 (champion: the first)."""
    monkeypatch.setenv("ACCORD_REGISTRY", str(tmp_path / "project" / "registry.sqlite"))
    store = open_store()
    base = store.add(make("base", 1, "base"))
    for weights in (2, 3):
        store.add(make("sft", weights, parents={"model.base_model": base.digest}))
    store.promote("sft@1")
    return store


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is printed; the command must succeed."""
    assert main(["models", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["models", *words]) == 2
    return capsys.readouterr().err


def test_list_shows_versions_aliases_and_figures(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "list")
    rows = [" ".join(line.split()) for line in text.splitlines() if "@" in line]
    assert [row.split()[0] for row in rows] == ["base@1", "sft@1", "sft@2"]
    assert rows[1].startswith("sft@1 champion sft nll (last step) 3 ")
    assert "base@1" not in run(capsys, "list", "sft")
    assert "no model of kind 'ppo'" in run(capsys, "list", "--kind", "ppo")
    found = json.loads(run(capsys, "list", "--json"))
    assert [(v["name"], v["version"], v["aliases"]) for v in found] == [
        ("base", 1, ["latest"]),
        ("sft", 1, ["champion"]),
        ("sft", 2, ["latest"]),
    ]


def test_show_prints_a_versions_record(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "show", "sft@champion")
    for part in (
        "sft@1",
        "champion",
        filled.find("sft@1").digest,
        "base@1",
        "training.learning_rate",
        "nll",
        "2026-01-02T03:04:05",
    ):
        assert part in text, part
    found = json.loads(run(capsys, "show", "sft", "--json"))
    assert (found["version"], found["metrics"], len(found["lineage"])) == (2, {"nll": 4.0}, 2)


def test_lineage_prints_the_tree_and_writes_the_picture(
    filled: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = run(capsys, "lineage", "sft", "--svg", str(tmp_path / "l.svg"))
    assert "sft@2" in text
    assert "base@1" in text
    assert "<svg" in (tmp_path / "l.svg").read_text()
    assert "cannot be written" in refused(capsys, "lineage", "sft", "--svg", str(tmp_path / "l.svg" / "in_a_file"))
    assert run(capsys, "lineage", "sft", "--mermaid").startswith("flowchart TD\n")


def test_aliases_promotion_and_tags_change_what_names_find(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sft@mine is version 2" in run(capsys, "alias", "sft", "mine")
    assert "sft@mine was removed" in run(capsys, "alias", "sft", "mine", "--remove")
    text = run(capsys, "promote", "sft@2")
    assert "sft@champion is version 2 (was 1)" in text
    assert "accord models promote sft@previous" in text
    run(capsys, "promote", "sft@previous")
    assert filled.find("sft@champion").version == 1
    assert "sft@2: good, who:me" in run(capsys, "tag", "sft", "good", "who:me")
    assert "sft@2: who:me" in run(capsys, "tag", "sft", "good", "--remove")


def test_diff_compares_settings_data_and_weights(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "diff", "sft@1", "sft@2")
    assert "settings and data are equal" in text
    assert "layer 0" in text
    assert "0.5" in text, "weights 2 and 3"
    assert json.loads(run(capsys, "diff", "sft@1", "sft@2", "--json"))["weights"] == {"layer 0": 0.5}
    assert "the contents are identical" in run(capsys, "diff", "sft@1", "sft@champion")


def test_rm_asks_before_it_removes(
    filled: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "were made from it" in refused(capsys, "rm", "base", "--yes")
    assert "has the alias champion" in refused(capsys, "rm", "sft@1", "--yes")
    assert "add --yes" in refused(capsys, "rm", "sft@2")
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})("n\ny\n"))
    assert "nothing was removed" in run(capsys, "rm", "sft@2")
    assert len(filled.list()) == 3
    assert "removed sft@2" in run(capsys, "rm", "sft@2")
    assert "removed base@1" in run(capsys, "rm", "base", "--yes", "--force")
    assert [v.label for v in filled.list()] == ["sft@1"]


def test_an_exported_model_is_imported_again(filled: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert f"wrote {tmp_path / 'out'}" in run(capsys, "export", "sft@1", str(tmp_path / "out")).replace("\n", "")
    assert "copy@1: sft, digest" in run(capsys, "import", str(tmp_path / "out"), "--name", "copy")
    (tmp_path / "out" / "config.json").write_text("{}")
    assert "config.json: changed" in refused(capsys, "import", str(tmp_path / "out"))
    assert "no such folder" in refused(capsys, "import", str(tmp_path / "nowhere"))


def test_mistakes_are_a_sentence(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("show", "stf"),
        ("lineage", "stf"),
        ("alias", "stf", "x"),
        ("diff", "sft", "stf"),
        ("export", "stf", "x"),
    ):
        error = refused(capsys, *words)
        assert "did you mean sft?" in error
        assert len(error.splitlines()) == 1


def test_an_empty_registry_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no model in the registry" in run(capsys, "list")
    assert json.loads(run(capsys, "list", "--json")) == []


def test_sizes_and_ages_are_in_words() -> None:
    sizes = {
        0: "0 B",
        999: "999 B",
        1000: "1.0 kB",
        1536: "1.5 kB",
        99_400: "99 kB",
        1_900_000: "1.9 MB",
        5 * 10**15: "5000 TB",
    }
    assert {n: in_bytes(n) for n in sizes} == sizes
    now = datetime.now(timezone.utc)
    for seconds, text in ((5, "5 s"), (150, "2 min"), (7300, "2 h"), (200_000, "2 d")):
        assert age((now - timedelta(seconds=seconds)).isoformat()) == text
    assert age("") == age("yesterday") == ""


def test_help_loads_neither_sqlalchemy_nor_torch() -> None:
    heavy = ("sqlalchemy", "torch", "rich.table")
    code = f"import sys; from accord.cli import parser; parser(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "[]"
