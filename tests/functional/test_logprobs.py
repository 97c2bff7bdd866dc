"""Token log-probabilities: the plain log-softmax as the oracle, in values, gradients and memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from accord.functional.logprobs import sequence_sums, token_logprobs

N, D, V = 23, 6, 37


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (N,), generator=generator)


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(hidden @ weight.T / temperature, -1)
    return logp[torch.arange(len(targets)), targets], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_elements", [2**24, 5 * V, 1])
@pytest.mark.parametrize("used", ["both", "logprobs", "entropy"])
def test_values_and_gradients_are_those_of_the_plain_softmax(
    temperature: float, chunk_elements: int, used: str
) -> None:
    hidden, weight, targets = problem()
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)

    def gradients(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        loss = torch.zeros(())
        if used != "entropy":
            loss = loss + (outputs[0] * weights).sum()
        if used != "logprobs":
            loss = loss + (outputs[1] * weights.square()).sum()
        return torch.autograd.grad(loss, (hidden, weight))

    expected = naive(hidden, weight, targets, temperature)
    found = token_logprobs(lambda h: h @ weight.T, hidden, targets, temperature, chunk_elements)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(found), gradients(expected), rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        again = token_logprobs(lambda h: h @ weight.T, hidden, targets, temperature, chunk_elements, vocab_size=V)
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_no_more_than_a_chunk_of_logits_is_in_memory(rows: int) -> None:
    hidden, weight, targets = problem()
    made: list[int] = []
    kept: list[int] = []

    def logits_fn(h: Tensor) -> Tensor:
        logits = h @ weight.T
        made.append(logits.numel())
        return logits

    def note(x: Tensor) -> Tensor:
        kept.append(x.numel() if x.dim() == 2 and x.shape[-1] == V else 0)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        logprobs, _ = token_logprobs(logits_fn, hidden, targets, chunk_elements=rows * V + V - 1)
    logprobs.sum().backward()
    assert max(made) == rows * V
    assert sum(made) == 2 * N * V + V  # forward, again for the backward pass, one row to learn V
    assert sum(kept) <= rows * V


def test_one_chunk_is_computed_once() -> None:
    hidden, weight, targets = problem()
    calls: list[int] = []

    def logits_fn(h: Tensor) -> Tensor:
        calls.append(len(h))
        return h @ weight.T

    token_logprobs(logits_fn, hidden, targets, vocab_size=V)[0].sum().backward()
    assert calls == [N]


def test_a_uniform_policy_has_entropy_log_v() -> None:
    logprobs, entropy = token_logprobs(lambda h: torch.zeros(len(h), V), torch.zeros(3, D), torch.tensor([0, 5, 36]))
    torch.testing.assert_close(entropy, torch.full((3,), math.log(V)), rtol=1e-6, atol=0)
    torch.testing.assert_close(logprobs, torch.full((3,), -math.log(V)), rtol=1e-6, atol=0)


def test_forbidden_tokens_leave_values_and_gradients_finite() -> None:
    logits = torch.randn(4, V, dtype=torch.float64)
    logits[:, 20:] = -torch.inf
    logits.requires_grad_()
    targets = torch.tensor([0, 3, 19, 7])
    logprobs, entropy = token_logprobs(lambda h: logits, torch.zeros(4, 1), targets)
    (logprobs + entropy).sum().backward()
    expected, expected_entropy = naive(logits.detach()[:, :20], torch.eye(20, dtype=torch.float64), targets, 1.0)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 20:] == 0).all()
    forbidden, _ = token_logprobs(lambda h: logits.detach(), torch.zeros(4, 1), torch.full((4,), 20))
    assert (forbidden == -torch.inf).all()


def test_low_precision_logits_give_float32() -> None:
    hidden, weight, targets = problem(torch.float32)
    logits = (hidden @ weight.T).detach().bfloat16()
    logprobs, entropy = token_logprobs(lambda h: logits, hidden, targets)
    assert logprobs.dtype is entropy.dtype is torch.float32
    exact, _ = naive(logits.double(), torch.eye(V, dtype=torch.float64), targets, 1.0)
    torch.testing.assert_close(logprobs.double(), exact, rtol=1e-6, atol=1e-6)


def test_no_rows_give_empty_results() -> None:
    hidden, weight, _ = problem()
    logprobs, entropy = token_logprobs(lambda h: h @ weight.T, hidden[:0], torch.zeros(0, dtype=torch.int64))
    assert logprobs.shape == entropy.shape == (0,)


def test_mistakes_are_named() -> None:
    hidden, weight, targets = problem()
    with pytest.raises(ValueError, match=r"temperature: 0\.0"):
        token_logprobs(lambda h: h @ weight.T, hidden, targets, 0.0)
    with pytest.raises(ValueError, match=r"targets \(22,\)"):
        token_logprobs(lambda h: h @ weight.T, hidden, targets[1:])


def test_sequence_sums_add_each_sequence_in_float32() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    sums = sequence_sums(values, torch.tensor([2, 0, 2, 0]), 4)
    assert sums.tolist() == [10.0, 0.0, 5.0, 0.0]
    (grad,) = torch.autograd.grad(sums @ torch.tensor([1.0, 10.0, 100.0, 1000.0]), values)
    assert grad.tolist() == [100.0, 1.0, 100.0, 1.0]
    long = sequence_sums(torch.full((4096,), 1.0, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.int64), 1)
    assert long.item() == 4096.0
    assert long.dtype is torch.float32
