"""PPO, DPO and the reward model each reach the optimum that is known: pi*(y|x) in proportion to ref(y|x) exp(r/beta).

Two prompts, four tokens (one of them ends a reply), at most three to a reply: 40 replies to each prompt, all of them
enumerated.  The policy is a table of logits with a row for every prefix, under the same base class as a language model,
so what learns here is the code that trains one: sampling, shaping, GAE, objectives, updater and loops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accord.algorithms import dpo, reward_model
from accord.algorithms.ppo import RolloutLoop, ppo_on_text, train_on_rollouts
from accord.config.common import Optimizer
from accord.config.load import build
from accord.config.ppo import PPO
from accord.data.packing import pack_continuations, pack_preferences
from accord.data.preferences import PreferencePair
from accord.data.prompts import PromptData
from accord.functional.logprobs import sequence_sums
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.models.reference import FrozenReference
from accord.models.reward import RewardModel, ScalarHead
from accord.rollout.collect import TextTask
from accord.rollout.delayed_source import DelayedTextSource
from accord.rollout.generate import Decoding
from accord.rollout.score import Replies
from accord.rollout.text_source import TextSource
from accord.runtime.run import Run
from accord.training.updater import Updater
from accord.types import Packed

V, LONGEST, END = 4, 3, 3
BOUND = 1e-3  # nats to the optimum
PROMPTS = ((0,), (1,))
REPLIES = [
    reply
    for n in range(1, LONGEST + 1)
    for reply in itertools.product(range(V), repeat=n)
    if END not in reply[:-1] and (reply[-1] == END or n == LONGEST)
]
Row = tuple[tuple[int, ...], tuple[int, ...]]
ROWS: list[Row] = [(prompt, reply) for prompt in PROMPTS for reply in REPLIES]


class Prefixes:
    """The cache of a table: the prefix of each row."""

    def __init__(self, at: Tensor) -> None:
        self.at = at

    def select(self, rows: Tensor) -> Prefixes:
        return Prefixes(self.at[rows])


class Table(Backbone):
    """A backbone whose hidden state is a row of logits of its own for every prefix."""

    width = vocab_size = V

    def __init__(self, seed: int) -> None:
        super().__init__()
        rows = (V + 1) ** (LONGEST + 2)  # a prefix is its tokens plus one, as the digits of a number
        self.table = nn.Parameter(torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)))

    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        prefixes: list[int] = []
        for token, before in zip(packed.tokens.tolist(), packed.previous.tolist(), strict=True):
            prefixes.append((V + 1) * (prefixes[before] if before >= 0 else 0) + token + 1)
        states = self.table[torch.tensor(prefixes)]
        return states if at is None else states[at]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, Prefixes]:
        assert len(packed) == len(packed.parents)  # prompts of one token
        return self(packed), Prefixes(packed.tokens + 1)

    def step(self, tokens: Tensor, cache: Prefixes) -> Tensor:
        cache.at = (V + 1) * cache.at + tokens + 1
        return self.table[cache.at]

    def save(self, directory: str) -> None:
        raise NotImplementedError


class World(NamedTuple):
    reference: Table
    scores: Tensor  # (80,) the true reward of every reply, multiples of ln 2
    beta: float
    optimum: Tensor  # (2, 40) log pi*


@torch.no_grad()
def logprobs(backbone: Table) -> Tensor:
    """(2, 40) log pi of every reply, by the code that scores replies."""
    packed, segments = pack_continuations([p for p, _ in ROWS], [r for _, r in ROWS])
    index, owner = packed.span(segments)
    return sequence_sums(reply_logprobs(backbone, packed, index), owner, len(ROWS)).double().view(2, -1)


def divergence(policy: Tensor, optimum: Tensor) -> float:
    """KL(policy || optimum) in nats, of the worse prompt."""
    return float((policy.exp() * (policy - optimum)).sum(1).max())


def known(world: World) -> dict[Row, float]:
    return dict(zip(ROWS, world.scores.tolist(), strict=True))


@pytest.fixture(scope="module")
def world() -> World:
    reference, beta = Table(0).requires_grad_(False), 0.7
    draws = torch.randint(0, 4, (len(ROWS),), generator=torch.Generator().manual_seed(1))
    scores = draws * math.log(2)
    optimum = (logprobs(reference) + scores.double().view(2, -1) / beta).log_softmax(1)
    return World(reference, scores, beta, optimum)


def copy_of(world: World) -> Table:
    policy = Table(0)
    policy.load_state_dict(world.reference.state_dict())
    return policy


def test_the_enumeration_is_complete_and_the_optimum_is_not_the_reference(world: World) -> None:
    assert len(REPLIES) == 1 + 3 + 3 * 3 * 4
    ref = logprobs(world.reference)
    assert ref.exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert divergence(ref, world.optimum) > 0.3
    # it is the optimum: the objective there is beta log Z, and no tilted policy near it does better
    z = (ref + world.scores.view(2, -1) / world.beta).logsumexp(1)

    def gain(policy: Tensor) -> Tensor:
        return (policy.exp() * (world.scores.view(2, -1) - world.beta * (policy - ref))).sum(1)

    torch.testing.assert_close(gain(world.optimum), world.beta * z)
    assert (gain((0.99 * world.optimum + 0.01 * ref).log_softmax(1)) < world.beta * z).all()


# ------------------------------------------------------------------------------------------------ PPO


class Symbols:
    """What a source of rollouts asks of a tokenizer."""

    eos_id, pad_id = END, 0
    decodes_alone = True

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


class Lookup:
    """The true reward, by tokens."""

    def __init__(self, known: dict[Row, float]) -> None:
        self.known = known

    def __call__(self, replies: Replies) -> dict[str, Tensor]:
        asked = zip(replies.prompt_tokens, replies.tokens, strict=True)
        return {"true": torch.tensor([self.known[tuple(p), tuple(r)] for p, r in asked])}


@pytest.fixture
def run(open_run: Callable[..., Run]) -> Iterator[Run]:
    with open_run("tabular", log_every=1000, save_every=1000) as made:
        yield made


def ppo(
    world: World, scores: dict[Row, float], run: Run, longest: int, iterations: int, kl: dict[str, Any], **more: Any
) -> LanguageActorCritic:
    """Policy and critic after PPO from the reference, on replies of at most ``longest`` tokens; ``more``: other settings."""
    values = {
        "training": {
            "iterations": iterations, "replies": 256, "samples_per_prompt": 128, "batch_size": 256, "num_epochs": 4,
            "schedule": "linear", "gamma": 1.0, "gae_lambda": 0.95, "clip_range_vf": 0.0, "vf_coef": 1.0,
            "normalize_advantages": False, "max_grad_norm": 100.0,
        },
        "kl": {"beta": world.beta, **kl},
        "sampling": {"max_new_tokens": longest},
        **more,
    }  # fmt: skip
    config = build(PPO, values, {}, "the test")
    training = config.training
    policy = LanguageActorCritic(copy_of(world), "separate")
    prompts = PromptData(PROMPTS, ("x", "y"), ("x", "y"), None)  # type: ignore[arg-type]
    decoding = Decoding(longest, END, Symbols.pad_id, config.sampling.temperature)
    reference = FrozenReference(world.reference)
    task = TextTask(prompts, Symbols(), decoding, training.samples_per_prompt, Lookup(scores), reference, 256)  # type: ignore[arg-type]
    newest = TextSource(run, task, lambda: policy.policy, len(PROMPTS), torch.device("cpu"))
    lag = config.rollout.lag
    source = DelayedTextSource(newest, policy.policy, lag) if lag else newest
    groups = [(policy.policy_parameters(), 0.1), (policy.critic_parameters(), 0.1)]
    loop = RolloutLoop(iterations, training.replies, training.num_epochs, training.batch_size)
    updater = Updater(groups, training, loop.steps)
    train_on_rollouts(run, policy, updater, source, ppo_on_text(policy, config), loop)
    return policy


def test_ppo_with_the_kl_in_the_reward_reaches_the_optimum(world: World, run: Run) -> None:
    """Sampled, not enumerated: at the optimum every reply's shaped reward is the same, so the noise dies out."""
    policy = ppo(world, known(world), run, LONGEST, 48, {})
    assert divergence(logprobs(policy.policy), world.optimum) < BOUND
    # the critic at the prompts is what remains to be had, reward less KL: beta log Z
    packed, segments = pack_continuations([(p,) for (p,) in PROMPTS], [(0,), (0,)])
    values = policy.critic_values(packed, packed.offsets[segments]).tolist()
    z = (logprobs(world.reference) + world.scores.view(2, -1) / world.beta).logsumexp(1)
    assert values == pytest.approx((world.beta * z).tolist(), abs=0.02)


@pytest.mark.parametrize("kind", ["token_tis", "vtrace"])
def test_ppo_on_stale_replies_reaches_the_same_optimum(world: World, run: Run, kind: str) -> None:
    policy = ppo(world, known(world), run, LONGEST, 64, {}, rollout={"lag": 2}, correction={"kind": kind})
    assert divergence(logprobs(policy.policy), world.optimum) < BOUND


def reverse_optimum(ref: Tensor, scores: Tensor, beta: float) -> Tensor:
    """log of the policy that maximizes E[r] - beta KL(ref || pi): beta ref / (c - r), with c such that it sums to 1."""
    low, high = scores.max() + 1e-9, scores.max() + beta
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if (beta * ref.exp() / (c - scores)).sum() > 1 else (low, c)
    return (beta * ref.exp() / (low - scores)).log()


def test_ppo_with_k2_in_the_loss_reaches_the_optimum_and_with_k3_that_of_the_other_divergence(
    world: World, run: Run
) -> None:
    """Replies of one token, since a term a token holds the KL of each choice, not of what follows from it."""
    ref = world.reference.table[[1, 2]].double().log_softmax(-1)
    scores = torch.tensor([0.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    optimum = (ref + scores / world.beta).log_softmax(-1)
    other = torch.stack([reverse_optimum(row, scores, world.beta) for row in ref])
    assert other.exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert divergence(other, optimum) > 100 * BOUND
    single = {(prompt, (a,)): float(scores[a]) for prompt in PROMPTS for a in range(V)}
    for estimator, aim in (("k2", optimum), ("k3", other)):
        policy = ppo(world, single, run, 1, 40, {"placement": "loss", "estimator": estimator}).policy
        found = policy.table[[1, 2]].detach().double().log_softmax(-1)  # type: ignore[attr-defined]
        assert divergence(found, aim) < BOUND


# ------------------------------------------------------------------------------------------------ pairs


@pytest.fixture(scope="module")
def pairs(world: World) -> list[PreferencePair]:
    """Every two replies to a prompt, each way round as often as Bradley-Terry says: at a difference of d ln 2 it is
    2^d to 1, so that whole rows hold the probabilities exactly."""
    rows = []
    half = len(REPLIES)
    levels = (world.scores / math.log(2)).round().int().tolist()
    for i, prompt in enumerate(PROMPTS):
        for a, b in itertools.combinations(range(half), 2):
            gap = levels[i * half + a] - levels[i * half + b]
            rows += [PreferencePair(prompt, REPLIES[a], REPLIES[b])] * 2 ** max(gap, 0)
            rows += [PreferencePair(prompt, REPLIES[b], REPLIES[a])] * 2 ** max(-gap, 0)
    return rows


def least_loss(world: World, pairs: list[PreferencePair]) -> float:
    """The loss of the truth itself, below which no model can come."""
    true = known(world)
    gaps = [true[p.prompt, p.rejected] - true[p.prompt, p.chosen] for p in pairs]
    return float(np.log1p(np.exp(gaps)).mean())


def test_dpo_on_exact_pairs_reaches_the_optimum(world: World, pairs: list[PreferencePair]) -> None:
    policy = copy_of(world)
    reference = dpo.reference_logprobs(FrozenReference(world.reference), pairs, torch.device("cpu"), "float32", 4096)
    batch = pack_preferences(pairs, range(len(pairs)))
    settings = Optimizer(schedule="cosine", max_grad_norm=100.0)
    updater = Updater([(policy.parameters(), 0.1)], settings, 200)
    losses = [
        updater.step([batch], lambda b: dpo.objective(policy, b, reference, world.beta, 0.0))["loss"]
        for _ in range(200)
    ]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses[-1] == pytest.approx(least_loss(world, pairs), rel=1e-4)
    assert divergence(logprobs(policy), world.optimum) < BOUND


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_reward_differences_of_a_reward_model_reach_the_true_ones(
    world: World, pairs: list[PreferencePair], pooling: Any
) -> None:
    torch.manual_seed(2)
    model = RewardModel(Table(3), ScalarHead(V), pooling)
    batch = pack_preferences(pairs, range(len(pairs)))
    updater = Updater([(model.parameters(), 0.1)], Optimizer(schedule="cosine", max_grad_norm=100.0), 300)
    for _ in range(300):
        loss = updater.step([batch], lambda b: reward_model.objective(model, b, "bradley_terry"))["loss"]
    assert loss == pytest.approx(least_loss(world, pairs), rel=1e-4)
    packed, segments = pack_continuations([p for p, _ in ROWS], [r for _, r in ROWS])
    with torch.no_grad():
        found = model.raw(packed, segments).double().view(2, -1)
    truth = world.scores.double().view(2, -1)
    first, second = torch.combinations(torch.arange(len(REPLIES)), 2).T
    ours, theirs = ((x[:, first] - x[:, second]).flatten() for x in (found, truth))
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.99
    assert float((ours @ theirs) / (theirs @ theirs)) == pytest.approx(1, abs=0.02)  # the scale is determined too
    tilted = (logprobs(world.reference) + found / world.beta).log_softmax(1)
    assert divergence(tilted, world.optimum) < BOUND
