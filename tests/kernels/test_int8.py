"""int8 products against the exact ones: what rounding may do to them."""

from __future__ import annotations

import pytest
import torch

from accord.kernels import int8
from accord.kernels.int8 import hadamard, int8_linear, select_engine, to_int8

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not select_engine(CPU), reason="torch has no int8 products here")


def test_int8_products_are_the_integers_worked_out_by_hand() -> None:
    torch.manual_seed(1)
    weight = torch.randn(24, 64)
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 3.0])[:, None]
    found = int8_linear(x, to_int8(weight))
    turn = hadamard(64)
    torch.testing.assert_close(turn @ turn.T, torch.eye(64))
    turned, seen = weight @ turn, x @ turn
    levels = 127 if torch.cpu._is_vnni_supported() else 63
    scales = turned.abs().amax(1) / levels
    rounded = (turned / scales[:, None]).round() * scales[:, None]
    sizes = seen.abs().amax(1)
    # eight bits over the range of each token's numbers: an input is off by one of 255 steps of twice its size at most
    bound = rounded.abs().sum(1) * sizes[:, None] * 2 / 255 + 1e-6
    assert ((found - seen @ rounded.T).abs() <= bound).all()
    exact = (x @ weight.T)[[0, 1, 2, 4]]
    error = found[[0, 1, 2, 4]] - exact
    assert (error.norm(dim=1) / exact.norm(dim=1)).max() < 0.02
    assert not found[3].any()


def test_a_large_token_leaves_the_others_alone() -> None:
    torch.manual_seed(1)
    weight, x = to_int8(torch.randn(24, 64)), torch.randn(4, 64)
    beside = torch.cat([x, 1000 * torch.randn(1, 64)])
    error = (int8_linear(beside, weight)[:4] - int8_linear(x, weight)).norm() / int8_linear(x, weight).norm()
    assert error < 0.03


def test_a_large_channel_does_not_take_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(24, 64), torch.randn(8, 64)
    x[:, 5] = 20.0
    with_turn = int8_linear(x, to_int8(weight)) - x @ weight.T
    monkeypatch.setattr(int8, "hadamard", torch.eye)
    without = int8_linear(x, to_int8(weight)) - x @ weight.T
    assert with_turn.norm() < 0.95 * without.norm()


def test_rows_are_rounded_alike_in_one_piece_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(23, 64), torch.randn(4, 64)
    whole = int8_linear(x, to_int8(weight))
    monkeypatch.setattr(int8, "PIECE", 5 * 64)
    assert torch.equal(int8_linear(x, to_int8(weight)), whole)


def test_other_devices_are_refused() -> None:
    assert not select_engine(torch.device("meta"))
