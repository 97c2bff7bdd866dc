"""V-trace against its definition as a plain loop, hand numbers, its fixed point by enumeration, and on-policy GAE."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.functional.advantages import compute_gae, token_gae
from accord.functional.vtrace import compute_vtrace, compute_vtrace_parts, token_vtrace, token_vtrace_parts

NAN = math.nan


class Steps(NamedTuple):
    new: Tensor
    old: Tensor
    rewards: Tensor
    values: Tensor
    dones: Tensor
    bootstrap: Tensor


def experience(seed: int, *shape: int, p_done: float = 0.2) -> Steps:
    """Random steps; of the episodes that end, about half are truncated and bootstrapped from the value function."""
    generator = torch.Generator().manual_seed(seed)
    new, old, rewards, values, bootstrap = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    dones = torch.rand(*shape, generator=generator) < p_done
    return Steps(new, old, rewards, values, dones, bootstrap * (torch.rand(*shape, generator=generator) < 0.5))


def plain_loop(
    steps: Steps, last: float, gamma: float, lam: float, rho_bar: float, c_bar: float
) -> tuple[list[float], list[float]]:
    """Eq. 1 as written, a sum over the steps ahead with a product of c before each; one environment."""
    new, old, r, v, done, boot = (x.tolist() for x in steps)
    n = len(r)
    ratio = [math.exp(a - b) for a, b in zip(new, old, strict=True)]
    following = [boot[t] if done[t] else v[t + 1] if t + 1 < n else last for t in range(n)]
    targets = []
    for s in range(n):
        total, weight = v[s], 1.0
        for t in range(s, n):
            total += weight * min(rho_bar, ratio[t]) * (r[t] + gamma * following[t] - v[t])
            if done[t]:
                break
            weight *= gamma * lam * min(c_bar, ratio[t])
        targets.append(total)
    advantages = []
    for t in range(n):
        ahead = following[t] if done[t] or t + 1 == n else (1 - lam) * v[t + 1] + lam * targets[t + 1]
        advantages.append(min(rho_bar, ratio[t]) * (r[t] + gamma * ahead - v[t]))
    return advantages, targets


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 33),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    p_done=st.floats(0, 1),
    c_bar=st.floats(0, 3),
    slack=st.floats(0, 3),
)
def test_vtrace_is_the_plain_loop(
    seed: int, n: int, gamma: float, lam: float, p_done: float, c_bar: float, slack: float
) -> None:
    steps = experience(seed, n, 3, p_done=p_done)
    last = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    limits = (gamma, lam, c_bar + slack, c_bar)
    advantages, targets = compute_vtrace(*steps[:5], last, *limits, bootstrap=steps.bootstrap)
    for e in range(3):
        one = Steps(*(x[:, e] for x in steps))
        expected = plain_loop(one, last[e].item(), *limits)
        np.testing.assert_allclose(advantages[:, e], expected[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(targets[:, e], expected[1], rtol=1e-9, atol=1e-9)
        alone = compute_vtrace(*one[:5], last[e], *limits, bootstrap=one.bootstrap)
        torch.testing.assert_close(alone, (advantages[:, e], targets[:, e]))


# ratio 3 then 1/2, rewards 1 and 3, values 1 and 2, 4 after them, gamma 1/2: both TD errors are 1 + 1 - 1 and 3 + 2 - 2
@pytest.mark.parametrize(
    ("lam", "rho_bar", "c_bar", "targets", "advantages"),
    [
        (1.0, 1.0, 1.0, [1 + 1 + 0.5 * 1.5, 2 + 1.5], [1 * (1 + 0.5 * 3.5 - 1), 0.5 * (3 + 2 - 2)]),
        (1.0, 2.0, 1.0, [1 + 2 + 0.5 * 1.5, 3.5], [2 * 1.75, 1.5]),  # rho and c are cut apart
        (1.0, 9.0, 2.0, [1 + 3 + 0.5 * 2 * 1.5, 3.5], [3 * 1.75, 1.5]),
        (1.0, math.inf, math.inf, [1 + 3 + 0.5 * 3 * 1.5, 3.5], [3 * 1.75, 1.5]),
        (0.5, 2.0, 1.0, [1 + 2 + 0.5 * 0.5 * 1.5, 3.5], [2 * (1 + 0.5 * (0.5 * 2 + 0.5 * 3.5) - 1), 1.5]),
        (0.0, 1.0, 1.0, [2.0, 3.5], [1.0, 1.5]),
        (1.0, 0.25, 0.0, [1.25, 2.75], [0.25 * (1 + 0.5 * 2.75 - 1), 0.75]),  # both ratios are cut
    ],
)
def test_off_policy_targets_equal_hand_computed_numbers(
    lam: float, rho_bar: float, c_bar: float, targets: list[float], advantages: list[float]
) -> None:
    old = torch.tensor([-1.5, -0.25], dtype=torch.float64)
    new = old + torch.tensor([3.0, 0.5], dtype=torch.float64).log()
    rewards, values = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])
    rest = (rewards.double(), values.double(), torch.zeros(2), 4.0, 0.5, lam, rho_bar, c_bar)
    found = compute_vtrace(new, old, *rest)
    assert found[0].tolist() == pytest.approx(advantages, rel=1e-12)
    assert found[1].tolist() == pytest.approx(targets, rel=1e-12)


def test_an_end_and_a_truncation_equal_hand_computed_numbers() -> None:
    """gamma = 1/2; the first step ends or is truncated, so that the second, whose ratio is 1/2, does not affect it."""
    new, old = torch.tensor([0.0, math.log(0.5)]), torch.zeros(2)
    rest = (torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), 4.0, 0.5)
    advantages, targets = compute_vtrace(new, old, *rest)
    assert (advantages.tolist(), targets.tolist()) == ([0.0, 1.5], [1.0, 3.5])
    advantages, targets = compute_vtrace(new, old, *rest, bootstrap=torch.tensor([6.0, 0.0]))
    assert (advantages.tolist(), targets.tolist()) == ([3.0, 1.5], [4.0, 3.5])


# ------------------------------------------------------------------------------------------------ on-policy


@pytest.mark.parametrize("limits", [(1.0, 1.0), (2.0, 1.0), (math.inf, math.inf)])
def test_on_policy_the_targets_are_n_step_returns(limits: tuple[float, float]) -> None:
    steps = experience(1, 12)
    new = steps.new
    _, targets = compute_vtrace(new, new, steps.rewards, steps.values, torch.zeros(12), 0.7, 0.9, 1.0, *limits)
    for t in range(12):
        to_go = sum(0.9**k * float(steps.rewards[t + k]) for k in range(12 - t)) + 0.9 ** (12 - t) * 0.7
        assert float(targets[t]) == pytest.approx(to_go, rel=1e-10)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_on_policy_it_is_gae_across_ends_and_cuts(lam: float) -> None:
    steps = experience(2, 40, 2, p_done=0.3)
    rest = (steps.rewards, steps.values, steps.dones, torch.tensor([0.3, -0.4]), 0.95, lam)
    found = compute_vtrace(steps.new, steps.new, *rest, bootstrap=steps.bootstrap)
    expected = compute_gae(*rest, bootstrap=steps.bootstrap)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert steps.dones.any()
    mask = ~steps.dones
    found = token_vtrace(steps.new, steps.new, steps.rewards, steps.values, mask, 0.95, lam)
    expected = token_gae(steps.rewards, steps.values, mask, 0.95, lam)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ off-policy


class Tree(NamedTuple):
    """Three actions, two steps, every history its own state: what happens after each, under two policies."""

    pi: list[Tensor]  # (3,) and (3, 3) log-probabilities
    mu: list[Tensor]
    rewards: list[Tensor]


def tree(seed: int) -> Tree:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> list[Tensor]:
        return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3,), (3, 3))]

    return Tree(*([x.log_softmax(-1) for x in draw()] for _ in range(2)), draw())


def tree_values(world: Tree, policy: list[Tensor], gamma: float) -> tuple[Tensor, Tensor]:
    second = (policy[1].exp() * world.rewards[1]).sum(-1)
    return (policy[0].exp() * (world.rewards[0] + gamma * second)).sum(), second


def expected_target(world: Tree, first: Tensor, second: Tensor, gamma: float, limits: tuple[float, ...]) -> float:
    """The mean of the first target over every trajectory of mu, at the given values."""
    total = 0.0
    for a, b in itertools.product(range(3), repeat=2):
        new, old, rewards = (torch.stack([x[0][a], x[1][a, b]]) for x in world)
        values = torch.stack([first, second[a]])
        _, targets = compute_vtrace(new, old, rewards, values, torch.tensor([False, True]), NAN, gamma, *limits)
        total += float((world.mu[0][a] + world.mu[1][a, b]).exp() * targets[0])
    return total


@pytest.mark.parametrize("limits", [(1.0, 1.0, 1.0), (1.0, 1.5, 0.3), (0.4, 0.8, 0.8), (1.0, math.inf, 1.0)])
def test_the_fixed_point_is_the_value_of_the_policy_between(limits: tuple[float, float, float]) -> None:
    """Theorem 1: rho_bar alone says which policy is valued, that proportional to min(rho_bar mu, pi)."""
    world, gamma = tree(3), 0.9
    between = [
        torch.minimum(limits[1] * mu.exp(), pi.exp()).log().log_softmax(-1)
        for mu, pi in zip(world.mu, world.pi, strict=True)
    ]
    first, second = tree_values(world, between, gamma)
    assert expected_target(world, first, second, gamma, limits) == pytest.approx(float(first), rel=1e-10)
    # and at another value of the first state it is not one
    assert abs(expected_target(world, first + 1, second, gamma, limits) - float(first + 1)) > 0.1


def test_c_bar_does_not_move_the_fixed_point_and_rho_bar_does() -> None:
    world, gamma, points = tree(6), 0.9, {}
    for rho_bar, c_bar in ((0.5, 0.0), (0.5, 0.2), (0.5, 0.5), (2.0, 0.0), (2.0, 1.0), (2.0, 2.0)):
        first, second = torch.tensor(0.0, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        between = torch.minimum(rho_bar * world.mu[1].exp(), world.pi[1].exp()).log().log_softmax(-1)
        second = (between.exp() * world.rewards[1]).sum(-1)  # the last step's own fixed point
        for _ in range(200):  # v <- E[vs] contracts
            first = torch.tensor(
                expected_target(world, first, second, gamma, (1.0, rho_bar, c_bar)), dtype=torch.float64
            )
        points[rho_bar, c_bar] = float(first)
    assert points[0.5, 0.0] == pytest.approx(points[0.5, 0.2], rel=1e-9) == pytest.approx(points[0.5, 0.5], rel=1e-9)
    assert points[2.0, 0.0] == pytest.approx(points[2.0, 1.0], rel=1e-9) == pytest.approx(points[2.0, 2.0], rel=1e-9)
    assert abs(points[0.5, 0.0] - points[2.0, 0.0]) > 0.01


def test_with_c_bar_zero_the_target_is_that_of_one_step() -> None:
    steps = experience(7, 30, p_done=0.2)
    _, targets = compute_vtrace(*steps[:5], 0.7, 0.9, 1.0, 1.0, 0.0, bootstrap=steps.bootstrap)
    following = torch.cat([steps.values[1:], torch.tensor([0.7], dtype=torch.float64)])
    following = torch.where(steps.dones, steps.bootstrap, following)
    rho = (steps.new - steps.old).exp().clamp(max=1.0)
    torch.testing.assert_close(targets, steps.values + rho * (steps.rewards + 0.9 * following - steps.values))
    _, on_policy = compute_vtrace(
        steps.new, *steps[:1], *steps[2:5], 0.7, 0.9, 1.0, 1.0, 0.0, bootstrap=steps.bootstrap
    )
    torch.testing.assert_close(on_policy, steps.rewards + 0.9 * following)


def test_a_baseline_before_the_ratio_leaves_the_policys_gradient_and_one_after_it_does_not() -> None:
    """Of the last step, by enumeration: sum of mu rho (A - b) d log pi, with no limit."""
    world = tree(8)
    logits = world.pi[1][0].clone().requires_grad_()
    mu, rewards = world.mu[1][0], world.rewards[1][0]
    (truth,) = torch.autograd.grad(logits.softmax(-1) @ rewards, logits)
    new = logits.log_softmax(-1)
    ones = torch.ones(3, dtype=torch.bool)
    rest = (rewards, torch.full((3,), 0.4, dtype=torch.float64), ones, 0.0, 1.0, 1.0, math.inf, math.inf)
    advantages, rho, _ = compute_vtrace_parts(new.detach(), mu, *rest)
    torch.testing.assert_close(rho * advantages, compute_vtrace(new.detach(), mu, *rest)[0])

    def gradient(weighted: Tensor) -> Tensor:
        return torch.autograd.grad((mu.exp() * weighted) @ new, logits, retain_graph=True)[0]

    torch.testing.assert_close(gradient(rho * (advantages - 5)), truth)
    assert (gradient(rho * advantages - 5) - truth).abs().max() > 0.1


def test_without_limits_the_target_is_unbiased_whatever_the_values() -> None:
    """Importance sampling proper: the mean over what mu does is the return of pi."""
    world, gamma = tree(4), 0.9
    truth, _ = tree_values(world, world.pi, gamma)
    guess = torch.tensor([5.0, -2.0, 0.3], dtype=torch.float64)
    found = expected_target(world, guess[0], guess, gamma, (1.0, math.inf, math.inf))
    assert found == pytest.approx(float(truth), rel=1e-10)
    assert abs(float(tree_values(world, world.mu, gamma)[0] - truth)) > 0.1


# ------------------------------------------------------------------------------------------------ tokens


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    c_bar=st.floats(0, 2),
    slack=st.floats(0, 2),
    holes=st.booleans(),
    filler=st.sampled_from([NAN, math.inf, -math.inf, 1e30]),
)
def test_token_vtrace_is_the_plain_loop_over_unmasked_tokens(
    seed: int, gamma: float, lam: float, c_bar: float, slack: float, holes: bool, filler: float
) -> None:
    steps = experience(seed, 5, 9, p_done=0.6)
    mask = steps.dones if holes else torch.arange(9) < torch.arange(5)[:, None] * 2 + 1
    limits = (gamma, lam, c_bar + slack, c_bar)
    advantages, targets = token_vtrace(*(x.masked_fill(~mask, filler) for x in steps[:4]), mask, *limits)
    assert (advantages[~mask] == 0).all()
    assert (targets[~mask] == 0).all()
    for row, keep in enumerate(mask):
        kept = [x[row][keep] for x in steps[:4]]
        done = torch.arange(len(kept[0])) == len(kept[0]) - 1
        expected = plain_loop(Steps(*kept, done, torch.zeros(len(done))), NAN, *limits)
        np.testing.assert_allclose(advantages[row][keep], expected[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(targets[row][keep], expected[1], rtol=1e-9, atol=1e-9)


def test_the_parts_of_tokens_are_the_advantages_and_the_ratio() -> None:
    steps = experience(9, 4, 6)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    advantages, rho, targets = token_vtrace_parts(*steps[:4], mask, 0.9, 0.8, 1.5, 0.7)
    weighted, same = token_vtrace(*steps[:4], mask, 0.9, 0.8, 1.5, 0.7)
    torch.testing.assert_close(rho * advantages, weighted)
    assert torch.equal(targets, same)
    torch.testing.assert_close(rho[mask], (steps.new - steps.old).exp().clamp(max=1.5)[mask])
    assert (rho[~mask] == 0).all()


def test_a_skipped_token_equals_hand_computed_numbers() -> None:
    """Ratio 3, a tool's token, ratio 1/2; gamma 1/2: TD errors 1 + 2/2 - 1 and 3 - 2, and the hole costs no discount."""
    mask = torch.tensor([[True, False, True]])
    new = torch.tensor([[math.log(3.0), NAN, math.log(0.5)]], dtype=torch.float64)
    old, rewards, values = (torch.tensor([x], dtype=torch.float64) for x in ([0, NAN, 0], [1, NAN, 3], [1, NAN, 2]))
    advantages, targets = token_vtrace(new, old, rewards, values, mask, 0.5)
    assert advantages[0].tolist() == pytest.approx([1 + 0.5 * 2.5 - 1, 0, 0.5 * 1], rel=1e-12)
    assert targets[0].tolist() == pytest.approx([1 + 1 + 0.5 * 0.5, 0, 2 + 0.5], rel=1e-12)


def test_an_empty_reply_is_zero() -> None:
    x = torch.full((2, 3), NAN)
    advantages, targets = token_vtrace(x, x, x, x, torch.zeros(2, 3, dtype=torch.bool))
    assert (advantages == 0).all()
    assert (targets == 0).all()


# ------------------------------------------------------------------------------------------------ what it refuses


def test_no_gradient_and_float32_as_good_as_the_loop() -> None:
    steps = experience(5, 512, p_done=0.01)
    narrow = [x.float().requires_grad_() for x in steps[:4]]
    found = compute_vtrace(*narrow, steps.dones, 0.0)
    assert not any(x.requires_grad for x in found)
    exact = compute_vtrace(*steps[:5], 0.0)
    torch.testing.assert_close([x.double() for x in found], list(exact), rtol=1e-4, atol=1e-5)


def test_a_ratio_beyond_every_number_is_cut_and_an_impossible_action_weighs_nothing() -> None:
    x = torch.ones(2)
    advantages, targets = compute_vtrace(torch.tensor([500.0, -math.inf]), 0 * x, x, 0 * x, 0 * x, 9.0)
    assert advantages.tolist() == [1.0, 0.0]
    assert targets.tolist() == [1.0, 0.0]


def test_wrong_shapes_and_limits_are_named() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"old_logprobs: shape \(4,\), expected \(4, 2\)"):
        compute_vtrace(x, x[:, 0], x, x, x, 0.0)
    with pytest.raises(ValueError, match=r"last_value: shape \(3,\), expected \(2,\)"):
        compute_vtrace(x, x, x, x, x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"logprobs: shape \(4,\)"):
        token_vtrace(x[:, 0], x, x, x, x.bool())
    with pytest.raises(ValueError, match="mask"):
        token_vtrace(x, x, x, x, x[:, 0].bool())
    with pytest.raises(ValueError, match=r"c_bar: 1\.0, expected between 0 and rho_bar \(0\.5\)"):
        compute_vtrace(x, x, x, x, x, 0.0, rho_bar=0.5)
    assert compute_vtrace(x[:0], x[:0], x[:0], x[:0], x[:0], 0.0)[0].shape == (0, 2)
