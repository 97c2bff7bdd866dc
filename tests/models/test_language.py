"""The language actor-critic: what the heads start as, whom each loss moves, and what temperature does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.models.open import small_backbone
from accord.models.reward import RewardMLP, RewardModel, ScalarHead
from accord.types import Packed

PACKED = Packed.of([[5, 6, 7, 3], [8, 2, 1], [4, 4, 9, 1, 2], [9, 3], [6, 1]], parents=[-1, 0, 0, -1, 3])
CHOSEN = PACKED.span(torch.tensor([1, 2, 4]))[0]
FAMILIES = ("mamba", "transformer")


def tiny(family: str = "mamba", seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return small_backbone(family, 32, 2, 20, 1, 0)


def reward_model(family: str = "mamba") -> RewardModel:
    torch.manual_seed(9)
    model = RewardModel(tiny(family, seed=4), ScalarHead(32), "last")
    model.normalize(torch.tensor([5.0, 5.5]))
    return model


def touched(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}


@pytest.mark.parametrize("critic", ["shared", "shared_detached", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_zero_at_the_start(critic: str, family: str) -> None:
    """A random value head would spoil the first advantages."""
    policy = LanguageActorCritic(tiny(family), critic)  # type: ignore[arg-type]
    scores = policy.score(PACKED, CHOSEN, 1.0)
    assert scores.values.shape == CHOSEN.shape
    assert (scores.values == 0).all()
    assert policy.values_come_with_sampling is (critic != "separate")


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_entropies_are_those_of_a_naive_loop(family: str, temperature: float) -> None:
    policy = LanguageActorCritic(tiny(family))
    with torch.no_grad():
        scores = policy.score(PACKED, CHOSEN, temperature)
    expected: list[tuple[Tensor, Tensor]] = []
    for prompt, reply in (([5, 6, 7, 3], [8, 2, 1]), ([5, 6, 7, 3], [4, 4, 9, 1, 2]), ([9, 3], [6, 1])):
        for t, token in enumerate(reply):
            seen = prompt + reply[:t]
            logits = policy.policy.logits(policy.policy(Packed.of([seen]))[-1:])[0].detach()
            oracle = torch.distributions.Categorical(logits=logits / temperature)
            expected.append((oracle.log_prob(torch.tensor(token)), oracle.entropy()))
    torch.testing.assert_close(scores.logprobs, torch.stack([e[0] for e in expected]), rtol=0, atol=2e-6)
    torch.testing.assert_close(scores.entropy, torch.stack([e[1] for e in expected]), rtol=0, atol=2e-6)
    alone = reply_logprobs(policy.policy, PACKED, CHOSEN, temperature).detach()
    torch.testing.assert_close(alone, scores.logprobs, rtol=0, atol=1e-6)


def learned(critic: str, family: str = "mamba") -> LanguageActorCritic:
    """With a value head that is not zero, so that gradients pass through it."""
    model = reward_model(family) if critic == "reward" else None
    policy = LanguageActorCritic(tiny(family), critic, model)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in policy.value_head.parameters():
            p.add_(0.1)
    return policy


@pytest.mark.parametrize(
    ("critic", "expected"),
    [
        ("shared", {"policy", "value_head"}),
        ("shared_detached", {"value_head"}),
        ("separate", {"critic_backbone", "value_head"}),
        ("reward", {"critic_backbone", "value_head"}),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_value_loss_moves_the_parameters_of_its_critic_type(critic: str, expected: set[str], family: str) -> None:
    policy = learned(critic, family)
    policy.score(PACKED, CHOSEN, 1.0).values.square().sum().backward()  # type: ignore[no-untyped-call]
    assert {name.split(".")[0] for name in touched(policy)} == expected


@pytest.mark.parametrize("critic", ["shared", "shared_detached", "separate", "reward"])
def test_the_policy_loss_moves_the_policy_alone(critic: str) -> None:
    policy = learned(critic)
    policy.score(PACKED, CHOSEN, 1.0).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert {name.split(".")[0] for name in touched(policy)} == {"policy"}


@pytest.mark.parametrize("critic", ["shared", "shared_detached", "separate", "reward"])
def test_every_parameter_is_named_once(critic: str) -> None:
    """An optimizer given policy and critic parameters gets all of them, none twice."""
    policy = learned(critic)
    named = [*policy.policy_parameters(), *policy.critic_parameters()]
    assert len({id(p) for p in named}) == len(named)
    assert {id(p) for p in named} == {id(p) for p in policy.parameters()}
    assert all(p.requires_grad for p in named)


@pytest.mark.parametrize("critic", ["shared", "shared_detached", "separate", "reward"])
def test_critic_values_are_those_of_the_training_pass(critic: str) -> None:
    policy = learned(critic)
    values = policy.critic_values(PACKED, CHOSEN)
    assert not values.requires_grad
    torch.testing.assert_close(values, policy.score(PACKED, CHOSEN, 1.0).values.detach(), rtol=0, atol=1e-6)


def test_a_separate_critic_is_a_copy_that_goes_its_own_way() -> None:
    policy = LanguageActorCritic(tiny().requires_grad_(False), "separate")
    assert policy.critic_backbone is not None
    with torch.no_grad():
        before = policy.policy(PACKED)
        assert torch.equal(policy.critic_backbone(PACKED), before)
        for p in policy.critic_backbone.parameters():
            p.add_(0.3)
        assert torch.equal(policy.policy(PACKED), before)
    assert all(p.requires_grad for p in policy.critic_parameters())  # though its pattern was frozen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_from_the_reward_model_starts_at_its_normalized_scores(family: str) -> None:
    """Those that PPO sees; values of the raw head would be far away from the returns."""
    model = reward_model(family)
    policy = LanguageActorCritic(tiny(family), "reward", model)
    last = torch.tensor([int(PACKED.last[s]) for s in (1, 2, 4)])
    after = PACKED.previous[CHOSEN]  # values are read at the token before the indexed one
    values = policy.score(PACKED, CHOSEN, 1.0).values
    expected = (model.head(model.backbone(PACKED)[after]) - 5.25) / 0.25
    torch.testing.assert_close(values, expected, rtol=0, atol=2e-5)
    assert values.std() > 0
    scores = model(PACKED, torch.tensor([1, 2, 4]))
    ends = policy.values(policy.critic_backbone(PACKED)[last])  # type: ignore[union-attr]
    torch.testing.assert_close(ends, scores, rtol=0, atol=2e-5)
    with torch.no_grad():
        for p in policy.critic_parameters():
            p.add_(1.0)
    torch.testing.assert_close(model(PACKED, torch.tensor([1, 2, 4])), scores)  # the reward did not move


def test_a_critic_from_a_reward_model_of_another_width_keeps_its_own_trunk() -> None:
    torch.manual_seed(0)
    wide = RewardModel(small_backbone("transformer", 64, 1, 20, 1, 0), RewardMLP(64, 16), "last")
    policy = LanguageActorCritic(tiny("mamba"), "reward", wide)
    assert policy.score(PACKED, CHOSEN, 1.0).values.shape == CHOSEN.shape


def test_a_critic_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a reward model"):
        LanguageActorCritic(tiny(), "reward")
