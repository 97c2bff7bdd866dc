"""The memory-saving vocabulary head against logits and autograd: the same log-probabilities and gradients."""

from __future__ import annotations

import pytest
import torch

from accord.functional.logprobs import token_logprobs
from accord.kernels import vocabulary_head
from accord.kernels.vocabulary_head import label_logprobs, label_nll


@pytest.mark.parametrize("chunk", [97, 97 * 70, 2**22])
@pytest.mark.parametrize("kept", [0, 2**24])
def test_log_probs_and_gradients_do_not_depend_on_the_chunk_size(
    chunk: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_head, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(vocabulary_head, "MAX_STORED_PROBABILITIES", kept)
    torch.manual_seed(0)
    hidden = torch.randn(200, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(97, 12, dtype=torch.float64, requires_grad=True)
    targets, factors = torch.randint(0, 97, (200,)), torch.randn(200, dtype=torch.float64)
    logp = torch.log_softmax(hidden @ weight.t(), -1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(token_logprobs(lambda h: h @ weight.t(), hidden, targets)[0], logp)
    torch.testing.assert_close(label_logprobs(hidden, weight, targets), logp)
    for found, wanted in (
        (3 * label_nll(hidden, weight, targets), -3 * logp.sum()),
        (label_nll(hidden, weight, targets), -logp.sum()),
        (label_logprobs(hidden, weight, targets) @ factors, logp @ factors),
    ):
        torch.testing.assert_close(found, wanted)
        pairs = (torch.autograd.grad(x, (hidden, weight), retain_graph=True) for x in (found, wanted))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b)


def test_wrong_shapes_are_refused_and_no_rows_are_taken() -> None:
    with pytest.raises(ValueError, match="expected \\(N, D\\), \\(V, D\\) and \\(N,\\)"):
        label_nll(torch.zeros(3, 4), torch.zeros(9, 5), torch.zeros(3, dtype=torch.int64))
    none = torch.zeros(0, dtype=torch.int64)
    assert float(label_nll(torch.zeros(0, 4), torch.zeros(9, 4), none)) == 0.0
    assert label_logprobs(torch.zeros(0, 4), torch.zeros(9, 4), none).shape == (0,)
