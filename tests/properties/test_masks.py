"""What is masked may be NaN: values and gradients are those of the unmasked elements alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.algorithms import dpo, reward_model
from accord.algorithms.ppo import ppo_loss
from accord.config.on_policy import PPOOptimizer
from accord.data.packing import pack_preferences, pack_supervised
from accord.data.preferences import PreferencePair
from accord.data.supervised import SupervisedExample
from accord.functional.advantages import (
    compute_gae,
    explained_variance,
    normalize_advantages,
    normalize_rewards,
    token_gae,
)
from accord.functional.losses.policy import entropy_bonus, kl_penalty_loss, ppo_policy_loss, ppo_value_loss
from accord.functional.masked import centered, keep, masked_mean, masked_var, mean_over, whiten
from accord.models.backbone import Backbone, Cache
from accord.models.reward import RewardMLP, RewardModel, ScalarHead
from accord.training.cross_entropy import cross_entropy
from accord.training.policy_loss import ActionScores, LossTerm, ReferenceKL
from accord.types import LossOutput, Packed, PolicyBatch, PreferenceBatch, TextActions

Double = Callable[[str], Backbone]
few = settings(max_examples=30, deadline=None, derandomize=True)
fewer = settings(max_examples=20, deadline=None, derandomize=True)
fillers = st.sampled_from([math.nan, math.inf, -math.inf])
seeds = st.integers(0, 2**16)


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """(B, T) bool, at random: including rows that are all masked and rows without a mask."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    bits = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(bits).view(rows, columns)


def drawn(seed: int, mask: Tensor, count: int = 4) -> tuple[Tensor, ...]:
    """``count`` tensors of the mask's shape, float64."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *mask.shape, generator=generator, dtype=torch.float64))


# ------------------------------------------------------------------------------------- functions of tensor and mask
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "keep": keep,
    "mean_over": lambda x, mask: mean_over(x, mask).total,
    "masked_mean": masked_mean,
    "masked_var": masked_var,
    "masked_var, unbiased": lambda x, mask: masked_var(x, mask, unbiased=True),
    "centered": lambda x, mask: centered(x, mask)[0],
    "centered, the mean": lambda x, mask: centered(x, mask)[1],
    "whiten": whiten,
    "whiten, not shifted": lambda x, mask: whiten(x, mask, shift_mean=False),
    "normalize_advantages": normalize_advantages,
    "normalize_rewards": normalize_rewards,
}


def value_and_gradient(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of its sum weighed by ``slopes`` (the mask's shape, or any single number)."""
    x = x.clone().requires_grad_()
    value = function(x, mask)
    weights = slopes if value.shape == slopes.shape else slopes.new_ones(())
    (gradient,) = torch.autograd.grad((value * weights).sum(), x)
    return value.detach(), gradient


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(mask=masks(), seed=seeds, filler=fillers)
def test_what_is_masked_changes_nothing(name: str, mask: Tensor, seed: int, filler: float) -> None:
    x, slopes = drawn(seed, mask, 2)
    found, gradient = value_and_gradient(FUNCTIONS[name], x.masked_fill(~mask, filler), mask, slopes)
    everything = torch.ones_like(x[mask], dtype=torch.bool)
    expected, slope = value_and_gradient(FUNCTIONS[name], x[mask], everything, slopes[mask])
    if found.shape == mask.shape:
        assert (found[~mask] == 0).all()
        found = found[mask]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    if name.startswith("normalize") and len(everything) == 1:
        return  # the root of a variance of zero has no slope
    torch.testing.assert_close(gradient[mask], slope, rtol=1e-9, atol=1e-9)
    assert (gradient[~mask] == 0).all()


@few
@given(mask=masks(), seed=seeds, filler=fillers)
def test_explained_variance_reads_unmasked_steps_only(mask: Tensor, seed: int, filler: float) -> None:
    values, returns = drawn(seed, mask, 2)
    dirty = (x.masked_fill(~mask, filler) for x in (values, returns))
    expected = explained_variance(values[mask], returns[mask])
    assert explained_variance(*dirty, mask) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@few
@given(mask=masks(), seed=seeds, filler=fillers)
def test_a_masked_token_is_no_step_of_its_reply(mask: Tensor, seed: int, filler: float) -> None:
    """Padding may be on the left, on the right or between: each reply has the advantages of its unmasked tokens alone."""
    rewards, values = drawn(seed, mask, 2)
    found = token_gae(rewards.masked_fill(~mask, filler), values.masked_fill(~mask, filler), mask, 0.9, 0.8)
    for row, kept in enumerate(mask):
        alone = token_gae(rewards[row, kept][None], values[row, kept][None], kept[kept][None], 0.9, 0.8)
        for x, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(x[row, kept], expected[0], rtol=1e-12, atol=1e-12)
            assert (x[row, ~kept] == 0).all()


@few
@given(dones=masks(), seed=seeds, filler=fillers)
def test_only_an_episode_that_was_cut_reads_its_bootstrap(dones: Tensor, seed: int, filler: float) -> None:
    """The value after the last step, too, is read only where that step did not end its episode."""
    rewards, values, bootstrap, spare = drawn(seed, dones)
    last = spare[-1]
    expected = compute_gae(rewards, values, dones, last, 0.9, 0.8, bootstrap)
    dirty = compute_gae(
        rewards, values, dones, last.masked_fill(dones[-1], filler), 0.9, 0.8, bootstrap.masked_fill(~dones, filler)
    )
    for a, b in zip(dirty, expected, strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------- losses of actions
LOSSES: dict[str, Callable[[Sequence[Tensor], Tensor], LossOutput]] = {
    "policy": lambda x, mask: ppo_policy_loss(x[0], x[1], x[2], mask, 0.2),
    "value": lambda x, mask: ppo_value_loss(x[0], x[1], x[2], mask, 0.2),
    "value without clip": lambda x, mask: ppo_value_loss(x[0], x[1], x[2], mask, None),
    "entropy": lambda x, mask: entropy_bonus(x[0], mask),
    "k2": lambda x, mask: kl_penalty_loss(x[0], x[1], mask, "k2"),
    "k3": lambda x, mask: kl_penalty_loss(x[0], x[1], mask, "k3"),
}


def everything_of(loss: Callable[[Sequence[Tensor]], LossOutput], x: Sequence[Tensor]) -> dict[str, Tensor]:
    """Totals and counts of loss and metrics, and the gradients of all inputs, by name."""
    leaves = [t.clone().requires_grad_() for t in x]
    output = loss(leaves)
    gradients = torch.autograd.grad(output.loss.total, leaves, allow_unused=True, materialize_grads=True)
    found = {f"gradient {i}": g for i, g in enumerate(gradients)}
    for name, mean in {"loss": output.loss.detach(), **output.metrics}.items():
        found |= {f"{name}, total": mean.total, f"{name}, count": mean.count}
    return found


def assert_absent(loss: Callable[[Sequence[Tensor], Tensor], LossOutput], x: Sequence[Tensor], mask: Tensor) -> None:
    """The loss of ``x`` under the mask is that of the unmasked elements alone, each a row of one action."""
    found = everything_of(lambda t: loss(t, mask), x)
    kept = torch.ones(int(mask.sum()), 1, dtype=torch.bool)
    expected = everything_of(lambda t: loss(t, kept), [t[mask][:, None] for t in x])
    for name, value in expected.items():
        if name.startswith("gradient"):
            assert (found[name][~mask] == 0).all(), name
            found[name] = found[name][mask][:, None]
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", LOSSES)
@fewer
@given(mask=masks(), seed=seeds, filler=fillers)
def test_masked_actions_change_no_loss_and_no_gradient(name: str, mask: Tensor, seed: int, filler: float) -> None:
    x = [t.masked_fill(~mask, filler) for t in drawn(seed, mask)]
    assert_absent(LOSSES[name], x, mask)


@pytest.mark.parametrize("placement", ["reward", "loss"])
@fewer
@given(mask=masks(), seed=seeds, filler=fillers)
def test_ppo_reads_valid_actions_only(placement: str, mask: Tensor, seed: int, filler: float) -> None:
    """The objective itself: both the rollout's and the current policy's numbers are NaN under the mask."""
    kl: list[tuple[float, LossTerm]] = [(0.3, ReferenceKL("k2"))] if placement == "loss" else []
    options = PPOOptimizer(ent_coef=0.01, clip_range=0.1, clip_range_vf=0.3)

    def loss(x: Sequence[Tensor], mask: Tensor) -> LossOutput:
        old, values, advantages, returns, ref, *now = x
        prompts = ((3,),) * len(mask)
        inputs = TextActions(prompts, torch.zeros(mask.shape, dtype=torch.int64), mask, ref)
        batch = PolicyBatch(inputs, mask, old, advantages, values, returns)
        return ppo_loss(lambda _: ActionScores(*now), options, 0.1, 1.0, kl)(batch)

    assert_absent(loss, [t.masked_fill(~mask, filler) for t in drawn(seed, mask, 8)], mask)


# ------------------------------------------------------------------------------------- objectives of texts
class Poisoned(Backbone):
    """A backbone whose hidden states are NaN outside of the named places of each text.

    ``reads`` are pairs: a text's tokens up to and with a place from which something is read.
    """

    def __init__(self, backbone: Backbone, reads: set[tuple[int, ...]], filler: float) -> None:
        super().__init__()
        self.backbone, self.reads, self.filler = backbone, reads, filler
        self.width = backbone.width

    def allowed(self, packed: Packed) -> Tensor:
        """(L,) bool."""
        allowed = []
        for at in range(len(packed)):
            text, t = [], at
            while t >= 0:
                text.append(int(packed.tokens[t]))
                t = int(packed.previous[t])
            allowed.append(tuple(text[::-1]) in self.reads)
        return torch.tensor(allowed)

    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        allowed = self.allowed(packed)
        return torch.where((allowed if at is None else allowed[at])[:, None], self.backbone(packed, at), self.filler)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.backbone.logits(hidden)

    def head_weight(self) -> Tensor | None:
        return self.backbone.head_weight()

    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, Cache]:
        raise NotImplementedError

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        raise NotImplementedError

    def save(self, directory: str) -> None:
        raise NotImplementedError


words = st.lists(st.integers(2, 23), min_size=1, max_size=5).map(tuple)


def gradients(backbone: Backbone, output: LossOutput) -> dict[str, Tensor]:
    """The loss and the gradients of all weights."""
    named = dict(backbone.named_parameters())
    found = torch.autograd.grad(output.loss.total, list(named.values()), allow_unused=True, materialize_grads=True)
    return {"loss": output.loss.total.detach(), **dict(zip(named, found, strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert any(g.abs().sum() > 0 for g in expected.values())
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@st.composite
def examples(draw: st.DrawFn) -> SupervisedExample:
    tokens = draw(st.lists(st.integers(2, 23), min_size=2, max_size=7))
    labels = draw(st.lists(st.booleans(), min_size=len(tokens) - 1, max_size=len(tokens) - 1).filter(any))
    return SupervisedExample(tuple(tokens), (False, *labels))


@pytest.mark.parametrize("family", ["mamba", "transformer"])
@fewer
@given(rows=st.lists(examples(), min_size=1, max_size=3), filler=fillers)
def test_sft_reads_only_the_states_before_labels(
    double: Double, family: str, rows: list[SupervisedExample], filler: float
) -> None:
    backbone = double(family)
    reads = {e.tokens[:t] for e in rows for t, label in enumerate(e.loss_mask) if label}
    packed = pack_supervised(rows)
    found = gradients(backbone, cross_entropy(Poisoned(backbone, reads, filler), packed))
    assert_same(found, gradients(backbone, cross_entropy(backbone, packed)))


pairs = st.lists(
    st.tuples(words, words, words).filter(lambda t: t[1] != t[2]).map(lambda t: PreferencePair(*t)),
    min_size=1,
    max_size=3,
)


def packed_pairs(rows: list[PreferencePair]) -> PreferenceBatch:
    return pack_preferences(rows, range(len(rows)))


@pytest.mark.parametrize("family", ["mamba", "transformer"])
@fewer
@given(rows=pairs, filler=fillers)
def test_dpo_reads_only_the_states_before_reply_tokens(
    double: Double, family: str, rows: list[PreferencePair], filler: float
) -> None:
    backbone, batch = double(family), packed_pairs(rows)
    replies = [(pair.prompt, reply) for pair in rows for reply in (pair.chosen, pair.rejected)]
    reads = {prompt + reply[:t] for prompt, reply in replies for t in range(len(reply))}
    reference = torch.zeros(len(rows), 2, dtype=torch.float64)
    found = dpo.objective(Poisoned(backbone, reads, filler), batch, reference, 0.1, 0.1)
    assert_same(gradients(backbone, found), gradients(backbone, dpo.objective(backbone, batch, reference, 0.1, 0.1)))


@pytest.mark.parametrize(("kind", "pooling"), [("bradley_terry", "last"), ("bradley_terry", "mean"), ("mse", "mean")])
@fewer
@given(rows=pairs, filler=fillers)
def test_the_reward_model_reads_the_reply_only(
    double: Double, kind: str, pooling: str, rows: list[PreferencePair], filler: float
) -> None:
    backbone, batch = double("mamba"), packed_pairs(rows)
    replies = [(pair.prompt, reply) for pair in rows for reply in (pair.chosen, pair.rejected)]
    first = {"mean": lambda reply: 1, "last": len}[pooling]
    reads = {prompt + reply[:t] for prompt, reply in replies for t in range(first(reply), len(reply) + 1)}
    torch.manual_seed(0)
    head = ScalarHead(32) if kind == "bradley_terry" else RewardMLP(32, 8)
    model = RewardModel(backbone, head, pooling)  # type: ignore[arg-type]
    poisoned = RewardModel(Poisoned(backbone, reads, filler), head, pooling)  # type: ignore[arg-type]
    found = gradients(backbone, reward_model.objective(poisoned, batch, kind))
    assert_same(found, gradients(backbone, reward_model.objective(model, batch, kind)))
