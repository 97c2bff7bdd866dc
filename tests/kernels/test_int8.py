"""int8 products against the exact ones: what rounding may do to them."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from accord.kernels import int8
from accord.kernels.int8 import has_int8_products, int8_linear, rotate, to_int8

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not has_int8_products(CPU), reason="no int8 products without AVX2")


def rounded_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product as it is defined: both rotated and rounded to whole numbers, which are multiplied and scaled."""
    rotation = int8.hadamard(math.gcd(weight.shape[1], 64))
    x, weight = rotate(x, rotation), rotate(weight, rotation)
    sizes, scales = x.abs().amax(1, keepdim=True), weight.abs().amax(1) / 63
    inputs = (x * (127 / sizes) + 128.5).floor() - 128
    return (inputs.double() @ (weight / scales[:, None]).round().double().T * scales * sizes / 127).float()


@pytest.mark.parametrize("rows", [1, 8, 13])
@pytest.mark.parametrize(("outputs", "width"), [(24, 64), (21, 64), (5, 12), (8, 7), (600, 96)])
def test_products_are_those_of_the_rounded_numbers(rows: int, outputs: int, width: int) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(outputs, width), torch.randn(rows, width)
    found = int8_linear(x, to_int8(weight))
    assert found.shape == (rows, outputs)
    torch.testing.assert_close(found, rounded_product(x, weight), rtol=1e-5, atol=1e-5)


def test_products_are_exact_up_to_the_rounding() -> None:
    torch.manual_seed(1)
    weight = torch.randn(24, 64)
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 3.0])[:, None]
    found = int8_linear(x, to_int8(weight))
    rotation = int8.hadamard(64)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(64))
    rotated, seen = weight @ rotation, x @ rotation
    scales = rotated.abs().amax(1) / 63
    rounded = (rotated / scales[:, None]).round() * scales[:, None]
    # 127 steps to a token's largest number: an input is off by half a step at most
    bound = rounded.abs().sum(1) * seen.abs().amax(1)[:, None] / 254 + 1e-6
    assert ((found - seen @ rounded.T).abs() <= bound).all()
    exact = (x @ weight.T)[[0, 1, 2, 4]]
    error = found[[0, 1, 2, 4]] - exact
    assert (error.norm(dim=1) / exact.norm(dim=1)).max() < 0.02
    assert not found[3].any()


def test_sums_of_the_largest_numbers_do_not_overflow() -> None:
    x = torch.ones(9, 2049)  # of an odd width, so that nothing is rotated
    weight = x[:3] * torch.tensor([1.0, -1.0, 0.5])[:, None]
    torch.testing.assert_close(int8_linear(x, to_int8(weight)), x @ weight.T)


def test_rows_beside_a_token_change_no_bit_of_it() -> None:
    torch.manual_seed(1)
    weight, x = to_int8(torch.randn(24, 64)), torch.randn(4, 64)
    beside = torch.cat([x, 1000 * torch.randn(7, 64)])
    assert torch.equal(int8_linear(beside, weight)[:4], int8_linear(x, weight))


def test_threads_change_no_bit() -> None:
    torch.manual_seed(1)
    weight, x, threads = to_int8(torch.randn(777, 512)), torch.randn(40, 512), torch.get_num_threads()
    alone = int8_linear(x, weight)
    try:
        torch.set_num_threads(3)
        assert torch.equal(int8_linear(x, weight), alone)
    finally:
        torch.set_num_threads(threads)


def test_a_token_that_is_no_number_stays_none() -> None:
    x = torch.ones(3, 64)
    x[1, 5] = torch.nan
    found = int8_linear(x, to_int8(torch.randn(24, 64)))
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_a_large_channel_does_not_take_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(24, 64), torch.randn(8, 64)
    x[:, 5] = 20.0
    rotated = int8_linear(x, to_int8(weight)) - x @ weight.T
    monkeypatch.setattr(int8, "hadamard", torch.eye)
    without = int8_linear(x, to_int8(weight)) - x @ weight.T
    assert rotated.norm() < 0.95 * without.norm()


def test_rows_are_rounded_alike_in_one_piece_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(43, 64), torch.randn(4, 64)
    whole = int8_linear(x, to_int8(weight))
    monkeypatch.setattr(int8, "PIECE", 9 * 64)
    assert torch.equal(int8_linear(x, to_int8(weight)), whole)


def test_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        int8_linear(torch.ones(2, 64), to_int8(torch.ones(3, 64)))


def test_other_devices_are_refused() -> None:
    assert not has_int8_products(torch.device("meta"))
