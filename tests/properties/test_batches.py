"""How rows are batched changes nothing: their order, the micro-batches, the side and the width of the padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from accord.algorithms import dpo, reward_model
from accord.algorithms.ppo import ppo_loss, prepare, score_texts
from accord.config.on_policy import LanguagePPOConfig, LanguagePPOOptimizer, LanguageRewardSettings, PPOOptimizer
from accord.data.packing import pack_preferences, pack_supervised
from accord.data.preferences import PreferencePair
from accord.data.supervised import SupervisedExample
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic
from accord.models.reward import RewardMLP, RewardModel, ScalarHead
from accord.training.cross_entropy import cross_entropy
from accord.training.policy_loss import ReferenceKL
from accord.types import Generation, LossOutput, Mean, PolicyBatch, Rollout, TextActions

Double = Callable[[str], Backbone]
OfRows = Callable[[Sequence[int]], LossOutput]
few = settings(max_examples=20, deadline=None, derandomize=True)
families = pytest.mark.parametrize("family", ["mamba", "transformer"])
seeds = st.integers(0, 2**16)
SYSTEM = tuple(range(2, 12))  # long enough that a batch of texts that begin with it reads it once


def words(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(2, 6), min_size=1, max_size=size).map(tuple)  # few tokens: prompts and replies repeat


prompts = st.tuples(st.sampled_from([(), SYSTEM]), words(2)).map(lambda parts: (*parts[0], *parts[1]))


@st.composite
def splits(draw: st.DrawFn, count: int) -> list[list[int]]:
    """The rows in any order, in micro-batches of any sizes."""
    order = draw(st.permutations(range(count)))
    cuts = sorted(draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    return [order[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]


def step(loss: OfRows, parts: Iterable[Sequence[int]], weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """What one optimizer step gets from its micro-batches: means of loss and metrics, and the gradient of the mean."""
    sums: dict[str, Mean] = {}
    gradients = [torch.zeros_like(w) for w in weights]
    for rows in parts:
        output = loss(rows)
        some = torch.autograd.grad(output.loss.total, weights, allow_unused=True, materialize_grads=True)
        gradients = [a + b for a, b in zip(gradients, some, strict=True)]
        for name, mean in {"loss": output.loss.detach(), **output.metrics}.items():
            sums[name] = sums[name] + mean if name in sums else mean
    count = sums["loss"].count
    found = {name: (mean.total / mean.count).double() for name, mean in sums.items()}
    return found | {f"gradient {i}": gradient / count for i, gradient in enumerate(gradients)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest of all gradients (a head's bias has none: it cancels in a difference of scores)."""
    assert found.keys() == expected.keys()
    steepest = max(float(value.abs().max()) for name, value in expected.items() if name.startswith("gradient"))
    for name, value in expected.items():
        near = tolerance * (steepest if name.startswith("gradient") else max(abs(float(value)), 1.0))
        torch.testing.assert_close(found[name], value, rtol=0, atol=near, msg=lambda m, n=name: f"{n}: {m}")


def assert_rows_may_be_split(
    loss: OfRows, count: int, split: list[list[int]], weights: Iterable[nn.Parameter], tolerance: float
) -> None:
    some = [w for w in weights if w.requires_grad]
    whole = step(loss, [range(count)], some)
    assert any(value.abs().max() > 1e-9 for name, value in whole.items() if name.startswith("gradient"))
    assert_close(step(loss, split, some), whole, tolerance)


# ------------------------------------------------------------------------------------- SFT, DPO, reward
@st.composite
def examples(draw: st.DrawFn) -> SupervisedExample:
    prompt, reply = draw(prompts), draw(words(4))
    return SupervisedExample((*prompt, *reply), (False,) * len(prompt) + (True,) * len(reply))


@families
@few
@given(rows=st.lists(examples(), min_size=2, max_size=5), data=st.data())
def test_rows_may_be_split_and_reordered_in_sft(
    double: Double, family: str, rows: list[SupervisedExample], data: st.DataObject
) -> None:
    backbone = double(family)

    def loss(chosen: Sequence[int]) -> LossOutput:
        return cross_entropy(backbone, pack_supervised([rows[r] for r in chosen]))

    split = data.draw(splits(len(rows)))
    assert_rows_may_be_split(loss, len(rows), split, backbone.parameters(), 1e-6)


pairs = st.lists(
    st.tuples(prompts, words(3), words(3), st.sampled_from([0.0, 0.5]))
    .filter(lambda t: t[1] != t[2])
    .map(lambda t: PreferencePair(*t)),
    min_size=2,
    max_size=5,
)


@families
@few
@given(rows=pairs, seed=seeds, data=st.data())
def test_rows_may_be_split_and_reordered_in_dpo(
    double: Double, family: str, rows: list[PreferencePair], seed: int, data: st.DataObject
) -> None:
    backbone = double(family)
    reference = 3 * torch.randn(len(rows), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def loss(chosen: Sequence[int]) -> LossOutput:
        return dpo.objective(backbone, pack_preferences([rows[r] for r in chosen], chosen), reference, 0.1, 0.1)

    split = data.draw(splits(len(rows)))
    assert_rows_may_be_split(loss, len(rows), split, backbone.parameters(), 1e-6)


@pytest.mark.parametrize(
    ("family", "kind", "pooling"),
    [
        ("mamba", "bradley_terry", "last"),
        ("mamba", "bradley_terry", "mean"),
        ("transformer", "bradley_terry", "last"),
        ("mamba", "mse", "mean"),
    ],
)
@few
@given(rows=pairs, data=st.data())
def test_rows_may_be_split_and_reordered_in_reward_training(
    double: Double, family: str, kind: str, pooling: str, rows: list[PreferencePair], data: st.DataObject
) -> None:
    backbone = double(family)
    torch.manual_seed(0)
    head = ScalarHead(32) if kind == "bradley_terry" else RewardMLP(32, 8)
    model = RewardModel(backbone, head, pooling)  # type: ignore[arg-type]

    def loss(chosen: Sequence[int]) -> LossOutput:
        return reward_model.objective(model, pack_preferences([rows[r] for r in chosen], chosen), kind)

    split = data.draw(splits(len(rows)))
    assert_rows_may_be_split(loss, len(rows), split, model.parameters(), 1e-6)


# ------------------------------------------------------------------------------------- PPO
replies = st.lists(st.tuples(prompts, words(4)), min_size=2, max_size=5)
FIELDS = 5  # log-probs, values, advantages, returns and the reference's log-probs


def numbers(rows: Sequence[tuple[Sequence[int], Sequence[int]]], seed: int) -> list[Tensor]:
    """(5, tokens) for each reply."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(FIELDS, len(reply), generator=generator) for _, reply in rows]


def laid(parts: Sequence[Tensor], width: int, side: str, filler: float) -> Tensor:
    """(…, B, width) of (…, tokens) each, padded on the named side, or in between."""
    rows = []
    for x in parts:
        row = torch.full((*x.shape[:-1], width), filler, dtype=x.dtype)
        size = x.shape[-1]
        first = size if side == "right" else 0 if side == "left" else size // 2
        row[..., :first] = x[..., :first]
        row[..., width - (size - first) :] = x[..., first:]
        rows.append(row)
    return torch.stack(rows, -2)


def batch_of(
    rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], seed: int, extra: int, side: str, filler: float
) -> PolicyBatch:
    width = max(len(reply) for _, reply in rows) + extra
    tokens = laid([torch.tensor(reply) for _, reply in rows], width, side, 23)
    mask = laid([torch.ones(len(reply), dtype=torch.bool) for _, reply in rows], width, side, False)
    logprobs, values, advantages, returns, ref = laid(numbers(rows, seed), width, side, filler)
    inputs = TextActions(tuple(prompt for prompt, _ in rows), tokens, mask, ref)
    return PolicyBatch(inputs, mask, logprobs - 2, advantages, values, returns)


def policy_of(double: Double, family: str) -> LanguageActorCritic:
    policy = LanguageActorCritic(double(family), "shared")
    torch.manual_seed(1)
    nn.init.normal_(policy.value_head.linear.weight, std=0.2)  # type: ignore[union-attr,arg-type]
    return policy


OPTIONS = PPOOptimizer(ent_coef=0.01, clip_range=0.5, clip_range_vf=0.5)


def loss_of(policy: LanguageActorCritic, batch: PolicyBatch) -> OfRows:
    loss = ppo_loss(partial(score_texts, policy, 0.8), OPTIONS, 0.5, more_terms=[(0.2, ReferenceKL("k2"))])
    return lambda rows: loss(batch[torch.tensor(list(rows))])


@families
@few
@given(rows=replies, seed=seeds, data=st.data())
def test_rows_may_be_split_and_reordered_in_ppo(
    double: Double, family: str, rows: list[tuple[tuple[int, ...], tuple[int, ...]]], seed: int, data: st.DataObject
) -> None:
    policy = policy_of(double, family)
    loss = loss_of(policy, batch_of(rows, seed, 0, "right", 0.0))
    assert_rows_may_be_split(loss, len(rows), data.draw(splits(len(rows))), policy.parameters(), 1e-6)


@families
@few
@given(rows=replies, seed=seeds, extra=st.integers(1, 3), side=st.sampled_from(["left", "right", "between"]))
def test_padding_changes_nothing_in_ppo(
    double: Double,
    family: str,
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]],
    seed: int,
    extra: int,
    side: str,
) -> None:
    """Wherever the padding is and whatever it holds."""
    policy = policy_of(double, family)
    weights = list(policy.parameters())
    expected = step(loss_of(policy, batch_of(rows, seed, 0, "right", 0.0)), [range(len(rows))], weights)
    found = step(loss_of(policy, batch_of(rows, seed, extra, side, math.nan)), [range(len(rows))], weights)
    assert_close(found, expected, 1e-6)


@few
@given(rows=replies, seed=seeds, extra=st.integers(0, 3), data=st.data())
def test_advantages_do_not_depend_on_other_rows_or_padding(
    double: Double, rows: list[tuple[tuple[int, ...], tuple[int, ...]]], seed: int, extra: int, data: st.DataObject
) -> None:
    """From scores to whitened advantages and returns: replies in any order, padded (on the right) to any width."""
    drawn = numbers(rows, seed)
    scores = torch.randn(len(rows), generator=torch.Generator().manual_seed(seed + 1))
    policy = policy_of(double, "mamba")
    config = LanguagePPOConfig(
        training=LanguagePPOOptimizer(gamma=0.9, gae_lambda=0.8),
        reward=LanguageRewardSettings(missing_eos_penalty=-1.0, whiten=True),
    )

    def ready(order: Sequence[int], extra: int, filler: float) -> tuple[dict[int, Tensor], dict[str, float]]:
        some = [rows[r] for r in order]
        width = max(len(reply) for _, reply in some) + extra
        mask = laid([torch.ones(len(reply), dtype=torch.bool) for _, reply in some], width, "right", False)
        tokens = laid([torch.tensor(reply) for _, reply in some], width, "right", 0)
        logprobs, values, _, _, ref = laid([drawn[r] for r in order], width, "right", filler)
        ended = torch.tensor([len(reply) % 2 == 0 for _, reply in some])
        generation = Generation(tuple(prompt for prompt, _ in some), tokens, mask, logprobs, ended)
        own, numbered = scores[list(order)], torch.tensor(list(order))
        rollout = Rollout(generation, numbered, torch.zeros_like(tokens), ref, own, {"score": own}, readout=values)
        batch, stats = prepare(rollout, 0, policy, 0.2, config)
        assert batch.returns is not None
        both = torch.stack([batch.advantages, batch.returns], 1)
        return {r: both[row][:, mask[row]] for row, r in enumerate(order)}, dict(stats.metrics)

    expected, expected_metrics = ready(range(len(rows)), 0, 0.0)
    found, metrics = ready(data.draw(st.permutations(range(len(rows)))), extra, math.nan)
    for r, value in expected.items():
        torch.testing.assert_close(found[r], value, rtol=1e-5, atol=1e-5)  # the sampler's numbers are in float32
    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-6)
