"""What a node of a cluster receives is checked, and what it sends is one version of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.errors import UserError
from accord.io.digests import file_digest
from accord.pipeline.host import StageHost


def test_a_file_that_arrives_with_another_digest_is_refused(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(b"rows")
    host, target = StageHost(), str(tmp_path / "inputs" / "rows.jsonl")
    host.receive(target, [b"ro", b"ws"], file_digest(sent))
    assert host.lacks({target: file_digest(sent)}) == []
    with pytest.raises(UserError, match="arrived with another digest"):
        host.receive(target, [b"ro", b"w"], file_digest(sent))
    assert host.lacks({target: file_digest(sent)}) == [target]


def test_a_file_that_was_replaced_is_not_read_in_parts(tmp_path: Path) -> None:
    host, state = StageHost(), tmp_path / "state.pt"
    state.write_bytes(b"old state")
    stamp = host.listing(str(tmp_path))["state.pt"]
    assert host.read(str(state), stamp, 0) == b"old state"
    assert host.read(str(state), stamp, 4) == b"state"
    (tmp_path / "new").write_bytes(b"new state")
    (tmp_path / "new").rename(state)
    assert host.read(str(state), stamp, 4) is None


def test_a_log_that_has_grown_is_read_up_to_where_it_was_listed(tmp_path: Path) -> None:
    host, log = StageHost(), tmp_path / "sft.log"
    log.write_bytes(b"step 1\n")
    stamp = host.listing(str(tmp_path))["sft.log"]
    with log.open("ab") as file:
        file.write(b"step 2\n")
    assert host.read(str(log), stamp, 0, True) == b"step 1\n"
    assert host.read(str(log), stamp, 0) is None


def test_hidden_files_and_locks_are_not_listed(tmp_path: Path) -> None:
    for name in (".state.pt.1.tmp", "lock.json", "model/.cache", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert list(StageHost().listing(str(tmp_path))) == ["model/config.json"]


def test_a_shared_disk_is_found_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "probe"
    probe.write_text("123")
    monkeypatch.delenv("ACCORD_WORKSPACE", raising=False)
    assert StageHost().introduce(str(probe), "123")["root"] == ""
    assert StageHost().introduce(str(probe), "124")["root"].endswith("/accord/workspace")
    monkeypatch.setenv("ACCORD_WORKSPACE", str(tmp_path / "own"))
    assert StageHost().introduce(str(probe), "123")["root"] == str(tmp_path / "own")
