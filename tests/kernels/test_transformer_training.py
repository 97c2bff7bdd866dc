"""The pass for training on CPUs against autograd alone: the same loss and gradients, less memory, nothing leaks."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from accord.algorithms import dpo, reward_model
from accord.data.packing import pack_preferences
from accord.data.preferences import PreferencePair
from accord.functional.logprobs import token_logprobs
from accord.kernels import transformer_training
from accord.models.reward import RewardModel, ScalarHead
from accord.models.transformer import Transformer, TransformerConfig
from accord.training.cross_entropy import cross_entropy, labels
from accord.types import Packed

SHAPES = {
    "llama": {},
    "grouped": {"n_kv_heads": 2},
    "qwen2": {"n_kv_heads": 1, "qkv_bias": True},
    "qwen3": {"n_kv_heads": 2, "qk_norm": True, "tied": False},
    "window": {"sliding_window": 6, "first_window_layer": 1},
}


def model_of(shape: str = "grouped", dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(1)
    options = {"n_kv_heads": 4, "family": "llama", "tied": True, **SHAPES[shape]}
    config = TransformerConfig(97, 32, 2, 4, options.pop("n_kv_heads"), 8, 48, **options)
    model = Transformer(config).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, dtype=dtype) * 0.3
            weight.copy_(1 + noise if "norm" in name else noise)
    return model


def packed() -> Packed:
    """Texts of 1 to 40 tokens: alone, two and three replies after one prompt, and a prompt after a prompt."""
    generator = torch.Generator().manual_seed(2)
    lengths, parents = [9, 4, 31, 1, 40, 7, 12, 3, 5, 2], [-1, 0, 0, -1, -1, -1, 5, 6, 6, 5]
    segments = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]
    replies = [[number in (1, 2, 4, 7, 8, 9)] * n for number, n in enumerate(lengths)]
    return Packed.of(segments, parents, replies)


def plain_nll(model: Transformer, rows: Packed) -> torch.Tensor:
    at = labels(rows)
    states = model.forward_plain(rows)[rows.previous[at]]
    return -token_logprobs(model.logits, states, rows.tokens[at])[0].sum()


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return {n: torch.zeros(()) if g is None else g for n, g in zip(names, found, strict=True)}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, grad in wanted.items():
        assert (found[name] - grad).norm() <= tolerance * grad.norm().clamp(min=1e-12), name


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_the_plain_pass(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    model, rows = model_of(shape, dtype), packed()
    wanted, found = plain_nll(model, rows), cross_entropy(model, rows).loss.total
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0.0)
    close(gradients(found, model), gradients(wanted, model), tolerance)


@pytest.mark.parametrize("shape", list(SHAPES))
@torch.no_grad()
def test_indexed_tokens_have_the_hidden_states_of_the_whole_pass(shape: str) -> None:
    model, rows = model_of(shape), packed()
    wanted, at = model.forward_plain(rows), torch.tensor([3, 0, 60, 3])
    torch.testing.assert_close(model(rows), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(rows, at), wanted[at], rtol=1e-4, atol=1e-5)


def test_dpo_and_reward_gradients_with_shared_prompts() -> None:
    model = model_of(dtype=torch.float64)
    prompts = [tuple(range(5, 20)), tuple(range(5, 18))]
    pairs = [PreferencePair(prompts[i % 2], (i + 30, 40, 1), (*range(50 + i, 70), 1)) for i in range(4)]
    batch, known = pack_preferences(pairs, range(4)), torch.linspace(-3, 3, 8).view(4, 2)
    reward = RewardModel(model, ScalarHead(32).double(), "last")

    def both() -> list[tuple[torch.Tensor, torch.nn.Module]]:
        return [
            (dpo.objective(model, batch, known, 0.1, 0.0).loss.total, model),
            (reward_model.objective(reward, batch, "bradley_terry").loss.total, reward),
        ]

    fast = [(loss, gradients(loss, whole)) for loss, whole in both()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "has_kernels", lambda _: False)
        patch.setattr(Transformer, "head_weight", lambda _: None)
        slow = [(loss, gradients(loss, whole)) for loss, whole in both()]
    for (loss, grads), (wanted, known_grads) in zip(fast, slow, strict=True):
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0.0)
        close(grads, known_grads, 1e-5)


def test_layout_holds_each_text_whole_and_each_token_once() -> None:
    rows = packed()
    found = transformer_training.layout(rows)
    texts = []
    for start, count, columns in found.groups:
        texts += found.places[start : start + count * columns].view(count, columns).tolist()
    for text in rows.texts.tolist():
        tokens = [t for t in text if t >= 0]
        assert sum(row[: len(tokens)] == tokens and set(row[len(tokens) :]) <= {tokens[0]} for row in texts) == 1
    assert found.places[found.slots].tolist() == list(range(len(rows)))
    assert found.places[found.duplicates].tolist() == found.shared.tolist()
    assert len(found.duplicates) + len(rows) == int((rows.texts >= 0).sum())
    assert len(found.places) < 0.6 * rows.texts.numel()  # the longest text does not pad the shortest


def test_frozen_weights_get_no_gradient_and_the_rest_do() -> None:
    model, rows = model_of(), packed()
    wanted = gradients(plain_nll(model, rows), model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.1" in name)
    cross_entropy(model, rows).loss.total.backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == ("layers.1" not in name)
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_nan_in_one_text_leaves_other_texts_alone() -> None:
    model, rows = model_of(), Packed.of([[60] * 9, [5, 6, 7, 8, 9, 10, 11, 12]])
    wanted = model(rows)
    model.embed_tokens.weight[60] = torch.nan
    found = model(rows)
    assert found[:9].isnan().all()
    torch.testing.assert_close(found[9:], wanted[9:])


def test_autocast_stays_near_float32() -> None:
    model, rows = model_of(), packed()
    wanted = gradients(plain_nll(model, rows), model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(model, rows).loss.total
    with torch.autocast("cpu", torch.bfloat16):
        plain = plain_nll(model, rows)
    fast, slow = gradients(loss, model), gradients(plain, model)
    for name, grad in wanted.items():
        assert (fast[name] - grad).norm() <= 1.5 * (slow[name] - grad).norm() + 0.02 * grad.norm(), name


def peak(loss: object) -> int:
    """The largest sum of tensors alive during a forward and backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss().backward()  # type: ignore[operator]
    alive = largest = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        largest = max(largest, alive)
    return largest


def test_much_less_memory_is_used_than_by_the_plain_pass() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(97, 64, 12, 4, 2, 16, 176, tied=True))
    rows = Packed.of([list(range(3, 90))] * 4)
    plain, fast = (peak(lambda form=form: form(rows).sum()) for form in (model.forward_plain, model))
    assert fast < 0.6 * plain
