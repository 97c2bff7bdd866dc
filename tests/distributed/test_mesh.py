"""Shares of work, and sums over one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from accord.distributed import mesh
from accord.distributed.rendezvous import Place
from accord.errors import Failed
from accord.types import Mean


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_row_is_in_one_share_and_shares_are_alike(ranks: int) -> None:
    lengths = [5, 300, 7, 7, 1, 90, 91, 14, 3, 3, 250]
    shares = mesh.shares(lengths, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    tokens = [sum(lengths[i] for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_rows_of_equal_length_are_divided_evenly() -> None:
    assert [len(share) for share in mesh.shares([4] * 6, 4)] == [2, 2, 1, 1]


def test_one_process_adds_nothing_and_shares_nothing() -> None:
    x = torch.tensor([1.0, 2.0])
    assert mesh.add(x) is x
    assert mesh.broadcast({"a": 1}) == {"a": 1}
    assert mesh.add_means({"m": Mean(x[0], x[1])})["m"].value() == 0.5
    assert [mesh.anywhere(flag) for flag in (True, False)] == [True, False]
    assert list(mesh.passes_of_this_rank(3)) == [(0, True), (1, True), (2, True)]


def test_an_error_of_a_lost_connection_is_recognized() -> None:
    lost = ValueError("outer")
    lost.__cause__ = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
    assert mesh.lost_contact(lost)
    assert not mesh.lost_contact(RuntimeError("shapes differ"))


def test_after_a_failed_stage_no_other_is_announced_to_ranks_that_may_still_be_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True)
    monkeypatch.setattr(mesh, "_group", mesh._Group(joined=Place(0, 2, 0), store=store))
    mesh.announce({"kind": "base"})
    with mesh.working(60):
        pass
    mesh.announce({"kind": "sft"})
    with pytest.raises(ZeroDivisionError), mesh.working(60):
        1 / 0  # noqa: B018
    with pytest.raises(Failed, match="an earlier stage failed"):
        mesh.announce({"kind": "dpo"})
    mesh.announce(None)
    assert [store.check([f"job/{n}"]) for n in range(3)] == [True, True, False]
