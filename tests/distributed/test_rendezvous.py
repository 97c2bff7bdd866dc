"""What a launcher's environment says, and ranks that do not fit together."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from accord.distributed.rendezvous import Place, from_environment, require_same_versions
from accord.errors import UserError


def test_a_launcher_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment() is None
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert from_environment() == Place(5, 8, 1)


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("x", "2"), ("-1", "2"), ("0", "0")])
def test_values_that_name_no_rank_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match="not a rank of a group"):
        from_environment()


def test_ranks_of_other_versions_are_refused() -> None:
    store = dist.HashStore()
    store.set("versions/1", "accord 0.0.1 torch 1.0")
    with pytest.raises(UserError, match=r"rank 1 runs accord 0\.0\.1 torch 1\.0, and rank 0 runs .*same versions"):
        require_same_versions(store, 0, 2)
