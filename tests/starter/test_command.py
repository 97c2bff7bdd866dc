"""accord init: what it writes runs as its README says, and nothing is overwritten."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest

from accord.cli import main
from accord.io.installation import CONFIGS, shipped_configs
from accord.starter.command import FILES


def test_the_commands_of_the_starter_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my run"]) == 0
    said = capsys.readouterr().out
    assert "next: cd 'my run' && accord run pipeline.yaml" in said
    folder = tmp_path / "my run"
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    block = re.search(r"```bash\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    assert block
    commands = block[1].splitlines()
    assert len(commands) == 5
    monkeypatch.setattr("sys.stdin", io.StringIO("what color is the sky?\n\n"))
    shown = {}
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "accord"
        assert main(words[1:]) == 0, capsys.readouterr().err
        shown[words[1]] = capsys.readouterr().out
    assert "No hazards found." in shown["data"]
    assert shown["status"].count("✓ done") == 5
    assert shown["chat"].count("> ") >= 1
    assert Path("runs/compare/results.md").is_file()


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("mine\n")
    assert main(["init"]) == 2
    assert capsys.readouterr().err.startswith("accord: init: rows.jsonl would be overwritten; name another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert Path("rows.jsonl").read_text() == "mine\n"
    Path("notes.txt").write_text("mine\n")
    Path("rows.jsonl").unlink()
    assert main(["init"]) == 0  # beside files of other names
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", *(path.name for path in FILES.glob("*.*"))}


def test_nothing_is_overwritten_by_way_of_a_folder_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("mine\n")
    assert main(["init", "not/there/../.."]) == 2
    assert "README.md would be overwritten" in capsys.readouterr().err
    assert Path("README.md").read_text() == "mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_where_nothing_can_be_written_it_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file")]) == 2
    assert main(["init", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.count("cannot be written") == 2


def test_the_list_has_every_config_and_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == [
        f"{CONFIGS}/{path.relative_to(shipped_configs()).as_posix()}"
        for path in sorted(shipped_configs().rglob("*.yaml"))
    ]
    assert all(re.fullmatch(r"\S+ +\S.*\.", line) for line in shown)
