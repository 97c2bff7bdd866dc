"""GAE and PPO updates on vectors, against stable-baselines3 on the same steps, weights and minibatches.

Where the two differ by design, the settings that make them equal say so: SB3's value loss is not halved, and SB3
scales advantages by the deviation of a sample (n - 1), per minibatch, accord by the population's, per rollout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accord.algorithms.ppo import ppo_loss
from accord.config.on_policy import PPOOptimizer
from accord.functional.advantages import compute_gae, explained_variance, normalize_advantages
from accord.models.heads import ActorCritic
from accord.rollout.env.buffer import RolloutBuffer
from accord.training.policy_loss import ActionScores
from accord.training.updater import Updater
from accord.types import PolicyBatch, VectorActions

pytest.importorskip("stable_baselines3")
gymnasium = pytest.importorskip("gymnasium")

pytestmark = pytest.mark.oracle

STEPS, ENVS, OBS, ACTIONS, WIDTH = 48, 3, 6, 3, 16  # the sizes of Acrobot-v1, which is never stepped
GAMMA, LAMBDA = 0.97, 0.9


@dataclass(frozen=True)
class Steps:
    """(STEPS, ENVS, …) of one rollout, and the value after it."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    log_probs: np.ndarray
    dones: np.ndarray
    last_values: np.ndarray


def some_steps(seed: int, last_dones: tuple[bool, ...] = (True, False, False)) -> Steps:
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    dones = draw.random((STEPS, ENVS)) < 0.15
    dones[-1] = last_dones
    actions = draw.integers(0, ACTIONS, (STEPS, ENVS))
    log_probs = np.log(draw.uniform(0.1, 0.9, (STEPS, ENVS))).astype(np.float32)
    rewards, values = normal(STEPS, ENVS), normal(STEPS, ENVS)
    return Steps(normal(STEPS, ENVS, OBS), actions, rewards, values, log_probs, dones, normal(ENVS))


def fill_theirs(buffer: Any, steps: Steps) -> None:
    """SB3 keeps the start of an episode where accord keeps the end of the one before."""
    starts = np.concatenate([np.ones((1, ENVS), dtype=bool), steps.dones[:-1]])
    for t in range(STEPS):
        values, log_probs = torch.from_numpy(steps.values[t]), torch.from_numpy(steps.log_probs[t])
        buffer.add(steps.observations[t], steps.actions[t], steps.rewards[t], starts[t], values, log_probs)
    buffer.compute_returns_and_advantage(torch.from_numpy(steps.last_values), steps.dones[-1])


def fill_ours(steps: Steps, bootstraps: np.ndarray | None = None) -> RolloutBuffer:
    buffer = RolloutBuffer(STEPS, OBS, ENVS, GAMMA, LAMBDA)
    cut = np.zeros((STEPS, ENVS), dtype=np.float32) if bootstraps is None else bootstraps
    for t in range(STEPS):
        row = (x[t] for x in (steps.observations, steps.actions, steps.rewards, steps.values, steps.log_probs))
        buffer.add(*row, steps.dones[t], cut[t])
    buffer.compute(steps.last_values)
    return buffer


def their_buffer(gae_lambda: float = LAMBDA) -> Any:
    from stable_baselines3.common.buffers import RolloutBuffer as TheirBuffer

    space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,))
    return TheirBuffer(STEPS, space, gymnasium.spaces.Discrete(ACTIONS), "cpu", gae_lambda, GAMMA, ENVS)


@pytest.mark.parametrize("last_dones", [(True, False, False), (True, True, True), (False, False, False)])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_advantages_and_returns_are_stable_baselines3s(last_dones: tuple[bool, ...], gae_lambda: float) -> None:
    steps = some_steps(3, last_dones)
    theirs = their_buffer(gae_lambda)
    fill_theirs(theirs, steps)
    arrays = (torch.from_numpy(x) for x in (steps.rewards, steps.values, steps.dones, steps.last_values))
    advantages, returns = compute_gae(*arrays, GAMMA, gae_lambda)
    torch.testing.assert_close(advantages, torch.from_numpy(theirs.advantages), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, torch.from_numpy(theirs.returns), rtol=1e-5, atol=1e-5)


def test_truncated_episodes_are_bootstrapped_alike() -> None:
    """SB3 adds gamma V(final observation) to the reward of a truncated episode's last step; accord's buffer is given it."""
    steps = some_steps(4)
    draw = np.random.default_rng(0)
    cut = steps.dones & (draw.random(steps.dones.shape) < 0.5)
    assert 3 < cut.sum() < steps.dones.sum()
    bootstraps = np.where(cut, draw.normal(size=cut.shape), 0).astype(np.float32)
    theirs = their_buffer()
    fill_theirs(theirs, Steps(**{**vars(steps), "rewards": steps.rewards + np.float32(GAMMA) * bootstraps}))
    ours = fill_ours(steps, bootstraps)
    torch.testing.assert_close(ours.advantages, torch.from_numpy(theirs.advantages), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.returns, torch.from_numpy(theirs.returns), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ an update
TRUNKS = {
    "policy.trunk.": "mlp_extractor.policy_net.",
    "policy.head.": "action_net.",
    "critic.trunk.": "mlp_extractor.value_net.",
    "critic.head.": "value_net.",
}


def their_name(name: str) -> str:
    ours = next(prefix for prefix in TRUNKS if name.startswith(prefix))
    return TRUNKS[ours] + name.removeprefix(ours)


def settings_of(batch_size: int, normalize: bool) -> PPOOptimizer:
    return PPOOptimizer(
        batch_size=batch_size,
        num_epochs=4,
        learning_rate=3e-3,
        clip_range=0.15,
        clip_range_vf=0,
        vf_coef=0.8,
        ent_coef=0.03,
        max_grad_norm=0.4,
        adam_eps=1e-5,
        normalize_advantages=normalize,
    )


def their_ppo(settings: PPOOptimizer, model: ActorCritic) -> Any:
    """SB3's PPO with the same numbers and a copy of the weights."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    ppo = PPO(
        "MlpPolicy",
        DummyVecEnv([lambda: gymnasium.make("Acrobot-v1")] * ENVS),
        learning_rate=settings.learning_rate,
        n_steps=STEPS,
        batch_size=settings.batch_size,
        n_epochs=settings.num_epochs,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=settings.clip_range,
        clip_range_vf=None,
        normalize_advantage=settings.normalize_advantages,
        ent_coef=settings.ent_coef,
        vf_coef=settings.vf_coef / 2,  # accord halves the squared error
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs={"net_arch": {"pi": [WIDTH, WIDTH], "vf": [WIDTH, WIDTH]}},
        device="cpu",
    )
    ppo.set_logger(Logger(folder=None, output_formats=[]))
    assert ppo.policy.optimizer.defaults["eps"] == settings.adam_eps
    weights = ppo.policy.state_dict()
    named = {their_name(name): weight for name, weight in model.state_dict().items()}
    assert weights.keys() == named.keys()
    ppo.policy.load_state_dict(named)
    return ppo


def our_minibatches(batch: PolicyBatch, settings: PPOOptimizer) -> list[PolicyBatch]:
    """In the order that SB3's next ``train`` draws; its rows are environment by environment, ours step by step."""
    made = []
    for _ in range(settings.num_epochs):
        environment, step = np.divmod(np.random.permutation(STEPS * ENVS), STEPS)
        order = torch.from_numpy(step * ENVS + environment)
        made += [batch[rows] for rows in torch.split(order, settings.batch_size)]
    return made


def our_batch(steps: Steps, normalize: bool) -> PolicyBatch:
    rows = next(iter(fill_ours(steps).get()))
    advantages = rows.advantages
    if normalize:
        count = len(advantages)
        advantages = normalize_advantages(advantages) * ((count - 1) / count) ** 0.5  # to SB3's deviation
    column = (x[:, None] for x in (rows.log_probs, advantages, rows.values, rows.returns))
    mask = torch.ones(len(rows), 1, dtype=torch.bool)
    return PolicyBatch(VectorActions(rows.observations, rows.actions), mask, *column)


@pytest.mark.parametrize(("batch_size", "normalize"), [(STEPS * ENVS, True), (STEPS, False)])
def test_an_update_on_identical_data_ends_at_the_same_weights(batch_size: int, normalize: bool) -> None:
    """Four epochs of Adam, gradients clipped to a norm that binds, ratios clipped from the first minibatch on."""
    torch.manual_seed(5)
    model = ActorCritic(OBS, ACTIONS, WIDTH)
    settings, steps = settings_of(batch_size, normalize), some_steps(6)
    ppo = their_ppo(settings, model)
    fill_theirs(ppo.rollout_buffer, steps)
    batch = our_batch(steps, normalize)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    np.random.seed(7)
    minibatches = our_minibatches(batch, settings)
    np.random.seed(7)
    ppo.train()

    def score(inputs: VectorActions) -> ActionScores:
        log_probs, values, entropy = model.evaluate(inputs.observations, inputs.actions)
        return ActionScores(log_probs[:, None], entropy[:, None], values[:, None])

    updater = Updater([(model.parameters(), settings.learning_rate)], settings, len(minibatches))
    loss = ppo_loss(score, settings, settings.clip_range)
    metrics = [updater.step([minibatch], loss) for minibatch in minibatches]

    assert metrics[0]["clip_fraction"] > 0.2
    assert metrics[0]["grad_norm"] > settings.max_grad_norm
    theirs = ppo.policy.state_dict()
    for name, weight in model.state_dict().items():
        assert (weight - before[name]).abs().max() > 5e-3, name
        torch.testing.assert_close(
            weight, theirs[their_name(name)], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )

    said = ppo.logger.name_to_value
    epoch = metrics[-(STEPS * ENVS // batch_size) :]

    def mean(key: str, some: list[dict[str, float]]) -> float:
        return sum(m[key] for m in some) / len(some)

    assert metrics[-1]["loss"] == pytest.approx(said["train/loss"], rel=1e-4)
    assert mean("policy_loss", metrics) == pytest.approx(said["train/policy_gradient_loss"], rel=1e-4)
    assert mean("value_loss", metrics) == pytest.approx(said["train/value_loss"] / 2, rel=1e-4)
    assert mean("entropy", metrics) == pytest.approx(-said["train/entropy_loss"], rel=1e-4)
    assert mean("approx_kl", epoch) == pytest.approx(float(said["train/approx_kl"]), rel=1e-4)
    values, returns = (torch.as_tensor(x) for x in (batch.values, batch.returns))
    assert explained_variance(values, returns) == pytest.approx(said["train/explained_variance"], abs=1e-5)


def test_the_two_policies_agree_before_any_update() -> None:
    torch.manual_seed(5)
    model = ActorCritic(OBS, ACTIONS, WIDTH)
    policy = their_ppo(settings_of(STEPS, True), model).policy
    steps = some_steps(8)
    observations: Tensor = torch.from_numpy(steps.observations).flatten(0, 1)
    actions = torch.from_numpy(steps.actions).flatten()
    values, log_probs, entropy = policy.evaluate_actions(observations, actions)
    for ours, theirs in zip(model.evaluate(observations, actions), (log_probs, values.flatten(), entropy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
