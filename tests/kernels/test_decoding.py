"""Products of few rows with large weights: torch's numbers, whatever the rows, outputs and threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from accord.kernels import decoding
from accord.kernels.decoding import few_rows, product
from accord.models.open import small_backbone
from accord.rollout.generate import Decoding, generate


def multiplied(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.full((len(x), len(weight)), torch.nan)
    product(x, weight, out)
    return out


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 5, 8, 15, 16, 17, 33, 64])
@pytest.mark.parametrize(("outputs", "width"), [(1, 16), (5, 48), (6, 32), (97, 48), (600, 16)])
def test_a_product_of_few_rows_is_torchs(rows: int, outputs: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows * outputs)
    x, weight = torch.randn(rows, width, generator=generator), torch.randn(outputs, width, generator=generator)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(multiplied(x, weight).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_number_of_threads_changes_no_bit(two_threads: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 64, generator=generator), torch.randn(9001, 64, generator=generator)
    assert weight.numel() > 2**18, "the work is not shared"
    both = multiplied(x, weight)
    torch.set_num_threads(1)
    assert torch.equal(multiplied(x, weight), both)


def test_a_row_of_nan_leaves_other_rows_alone() -> None:
    x, weight = torch.ones(6, 32), torch.ones(10, 32)
    x[2, 5] = torch.nan
    found = multiplied(x, weight)
    assert found[2].isnan().all()
    assert (found[[0, 1, 3, 4, 5]] == 32).all()


def test_only_large_products_of_few_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MKL", True)
    few, many = torch.ones(5, 16), torch.ones(65, 16)
    with torch.no_grad():
        assert few_rows(few, 2**24)
        assert not few_rows(few, 2**24 - 1)
        assert not few_rows(few[:4], 2**24)
        assert not few_rows(many, 2**24)
        assert not few_rows(few.double(), 2**24)
        with torch.autocast("cpu"):
            assert not few_rows(few, 2**24)
        monkeypatch.setattr(decoding, "MKL", False)
        assert not few_rows(few, 2**24)
    monkeypatch.setattr(decoding, "MKL", True)
    assert not few_rows(few, 2**24)  # a gradient may be wanted


@pytest.mark.parametrize("tied", [True, False])
def test_replies_are_those_of_torchs_products(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = small_backbone("transformer", 64, 2, 500, 1, 0)
    if not tied:
        model.config = replace(model.config, tied=False)  # type: ignore[attr-defined]
        model.lm_head = nn.Linear(64, 500, bias=False)  # type: ignore[attr-defined]
    model.eval()
    prompts = [tuple(range(3, 6 + i % 4)) for i in range(64)]
    greedy = Decoding(40, 1, 0, temperature=0.0)
    plain, _ = generate(model, prompts, greedy, [0] * len(prompts))
    used = []
    monkeypatch.setattr(decoding, "STREAMED", 1)
    monkeypatch.setattr(decoding, "MKL", True)
    real = decoding.product
    monkeypatch.setattr(decoding, "product", lambda *given: (used.append(len(given[0])), real(*given))[1])
    ours, _ = generate(model, prompts, greedy, [0] * len(prompts))
    assert len(used) > 100
    assert torch.equal(ours.responses, plain.responses)
    torch.testing.assert_close(ours.logprobs, plain.logprobs, rtol=0, atol=2e-5)
