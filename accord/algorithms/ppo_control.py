"""PPO on vectors: what a step of experience is to the core, and the policy that acts in Gymnasium's tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from accord.algorithms.ppo_core import ActionScores, PolicyUpdater, Source, train_policy
from accord.config.control import ControlPPOConfig
from accord.config.on_policy import HeadsPPOConfig, KLCoefficient, StepsPPOOptimizer
from accord.evaluation.policies import evaluate, leave_curve, leave_video
from accord.functional.advantages import explained_variance, normalize_advantages
from accord.kernels.numpy_actor_critic import HandGradient
from accord.models.heads import ActorCritic, AnyActorCritic, GaussianActorCritic
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.gym import GymVectors, Spaces, open_vectors
from accord.rollout.env.normalization import Normaliser
from accord.runtime.device import resolve_device
from accord.runtime.run import Run
from accord.training.artifact import leave_pt
from accord.training.describe import model_in_words
from accord.training.numpy_updater import HandUpdater, hand_for
from accord.training.updater import Updater
from accord.types import PPOBatch, VectorActions


def step_rows(buffer: RolloutBuffer, normalize: bool, valid: np.ndarray | None = None) -> tuple[PPOBatch, float]:
    """A full buffer as rows of one action each, and the explained variance of its values.

    ``valid`` (n_steps · n_envs,) bool, in the order of time, environments side by side: the steps that were taken.
    """
    rows = buffer.steps()
    kept = np.ones(len(rows["actions"]), dtype=bool) if valid is None else valid
    advantages, chosen = rows["advantages"], slice(None) if valid is None else valid
    if normalize:
        advantages[chosen] = normalize_advantages(advantages[chosen])
    explained = explained_variance(rows["values"][chosen], rows["returns"][chosen])
    column = (
        torch.from_numpy(x)[:, None] for x in (kept, rows["log_probs"], rows["values"], advantages, rows["returns"])
    )
    inputs = VectorActions(torch.from_numpy(rows["observations"]), torch.from_numpy(rows["actions"]))
    return PPOBatch(inputs, *column), explained


class VectorSource:
    """``n_steps`` of ``n_envs`` environments at a time, all stepped in one call."""

    def __init__(
        self, config: ControlPPOConfig, run: Run, model: AnyActorCritic, vectors: GymVectors, normaliser: Normaliser
    ) -> None:
        self.hand = quick_path(model, config.training)
        self.config, self.run, self.model, self.vectors, self.normaliser = config, run, model, vectors, normaliser
        training, spaces = config.training, vectors.spaces
        width = spaces.action_dim if spaces.continuous else 0
        self.device = next(model.parameters()).device
        self.buffer = RolloutBuffer(
            training.n_steps, spaces.obs_dim, training.n_envs, training.gamma, training.gae_lambda, continuous=width
        )
        self.running = np.zeros(training.n_envs)
        self.recent: deque[float] = deque(maxlen=100)
        self.episodes = 0
        self.observations = normaliser.observations(vectors.observations)

    @torch.no_grad()
    def collect(self, iteration: int, beta: float) -> tuple[PPOBatch, dict[str, float]]:
        """One rollout.  Rows whose action was not taken (an autoreset's) are masked; ``beta`` is for language.

        The loop makes as few calls as it can: on small tasks they are what a step costs.
        """
        training, normaliser, step = self.config.training, self.normaliser, self.vectors.step
        steps, shape = training.n_steps * training.n_envs, (training.n_steps, training.n_envs)
        self._evaluate_between(iteration * steps, steps)
        rows, act = self.buffer.begin(), self._drawing(iteration)
        observations, chosen = rows["observations"], rows["actions"]
        rewards, (terminated, truncated, valid) = np.empty(shape), np.empty((3, *shape), dtype=bool)
        cuts: list[tuple[int, np.ndarray, np.ndarray]] = []
        for t in range(training.n_steps):
            seen = observations[t] = self.observations
            actions = chosen[t] = act(t, seen)
            rewards[t], terminated[t], out_of_time, valid[t], final = step(actions)
            truncated[t] = out_of_time
            if np.count_nonzero(out_of_time):
                cut = truncated[t] & ~terminated[t]
                cuts.append((t, cut, normaliser.observations(final[cut], learn=False)))
            self.observations = normaliser.observations(self.vectors.observations, ~self.vectors.waiting)
        ended = terminated | truncated
        np.logical_or(ended, ~valid, out=rows["dones"])
        for t in range(training.n_steps):
            rows["rewards"][t] = normaliser.rewards(rewards[t], ended[t], valid[t])
        rows["bootstraps"][:] = 0.0
        for t, cut, final in cuts:  # the limit of time is no part of the task: it goes on in the value function
            rows["bootstraps"][t, cut] = self._values(final)
        if hand := self.hand:
            flat = (rows[name].reshape(steps, *rows[name].shape[2:]) for name in ("observations", "actions"))
            for name, found in zip(("log_probs", "values"), hand.assess(*flat), strict=True):
                rows[name][:] = found.reshape(shape)
        self.buffer.end()
        self.buffer.compute(self._values(self.observations))
        kept = None if valid.all() else valid.reshape(-1)
        return self._batch(self._returns(rewards * valid, ended), kept, (iteration + 1) * steps)

    def _returns(self, rewards: np.ndarray, ended: np.ndarray) -> list[float]:
        """The sums of the task's own rewards of the episodes that ended, from (n_steps, n_envs) each."""
        returns: list[float] = []
        over = [bool(some.any()) for some in ended]
        for t, some in enumerate(rewards):
            self.running += some
            if over[t]:
                returns += self.running[ended[t]].tolist()
                self.running[ended[t]] = 0.0
        return returns

    def _drawing(self, iteration: int) -> Callable[[int, np.ndarray], np.ndarray]:
        """What acts at step t of a rollout.  The quick path leaves log-probabilities and values to the rollout's end."""
        training = self.config.training
        generator = self.run.generator("actions", iteration, device=str(self.device))
        if hand := self.hand:
            chances = hand.chances((training.n_steps, training.n_envs), generator)
            return lambda t, seen: hand.draw(seen, chances[t])

        def act(t: int, seen: np.ndarray) -> np.ndarray:
            given = torch.from_numpy(seen).to(self.device)
            action, log_prob, value = self.model.get_action_and_value(given, generator=generator)
            self.buffer.log_probs[t], self.buffer.values[t] = log_prob.cpu(), value.cpu()
            chosen: np.ndarray = action.cpu().numpy()
            return chosen

        return act

    def _values(self, observations: np.ndarray) -> np.ndarray:
        if self.hand:
            return self.hand.values(observations)
        values: np.ndarray = self.model.value(torch.from_numpy(observations).to(self.device)).cpu().numpy()
        return values

    def _batch(
        self, returns: list[float], valid: np.ndarray | None, timesteps: int
    ) -> tuple[PPOBatch, dict[str, float]]:
        batch, explained = step_rows(self.buffer, self.config.training.normalize_advantages, valid)
        self.recent.extend(returns)
        self.episodes += len(returns)
        some = returns or list(self.recent)[-20:]
        return batch, {
            "episode_return": sum(some) / max(len(some), 1),
            "episode_return_100": sum(self.recent) / max(len(self.recent), 1),
            "episodes": float(self.episodes),
            "timesteps": float(timesteps),
            "kl": 0.0,
            "replies": float(len(returns)),
            "explained_variance": explained,
        }

    def _evaluate_between(self, taken: int, steps: int) -> None:
        every = self.config.evaluation.every
        if every and taken and taken // every > (taken - steps) // every:
            numbers = evaluate(self.config, self.run, self.model, self.normaliser)
            self.run.record({"timesteps": float(taken), **numbers}, prefix="rollout/")

    def state_dict(self) -> dict[str, Any]:
        return {
            "vectors": self.vectors.state_dict(),
            "normaliser": self.normaliser.state_dict(),
            "running": torch.tensor(self.running),
            "recent": list(self.recent),
            "episodes": self.episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vectors.load_state_dict(state["vectors"])
        self.normaliser.load_state_dict(state["normaliser"])
        self.observations = self.normaliser.observations(self.vectors.observations, learn=False)
        self.running, self.episodes = state["running"].numpy().copy(), int(state["episodes"])
        self.recent = deque(state["recent"], maxlen=100)


def policy_for(spaces: Spaces, config: ControlPPOConfig) -> AnyActorCritic:
    """A new policy and critic for a task's spaces."""
    if spaces.continuous:
        return GaussianActorCritic(spaces.obs_dim, spaces.action_dim, config.model.hidden_dim, config.model.log_std)
    return ActorCritic(spaces.obs_dim, spaces.action_dim, config.model.hidden_dim)


def counts(training: StepsPPOOptimizer) -> tuple[int, int, int]:
    """Steps of a rollout, rollouts, and minibatches of an epoch."""
    steps = training.n_steps * training.n_envs
    return steps, -(-training.total_timesteps // steps), -(-steps // training.batch_size)


def quick_path(model: AnyActorCritic, training: StepsPPOOptimizer) -> HandGradient | None:
    """The model's networks by hand, where they can be had; from then on the two share their memory."""
    _, iterations, minibatches = counts(training)
    return hand_for(model, training, iterations * training.num_epochs * minibatches)


class StepSource(Source, Protocol):
    """A source of single steps, and its policy's quick path."""

    hand: HandGradient | None


def train_on_steps(
    config: HeadsPPOConfig | ControlPPOConfig,
    run: Run,
    model: AnyActorCritic,
    source: StepSource,
    words: Mapping[str, str],
) -> dict[str, float]:
    """The rollouts that ``total_timesteps`` asks for, each learnt from; returns the last one's numbers."""
    training = config.training
    steps, iterations, minibatches = counts(training)
    run.plan(
        {
            "policy": model_in_words(model, type(model).__name__),
            **words,
            "rollout": f"{training.n_envs} environments x {training.n_steps} steps = {steps} steps",
            "steps": f"{iterations} rollouts (at least {training.total_timesteps} environment steps) x"
            f" {training.num_epochs} epochs x {minibatches} minibatches of {training.batch_size}",
        }
    )
    total = iterations * training.num_epochs * minibatches
    updater: PolicyUpdater = (
        HandUpdater(source.hand, training, total)
        if source.hand
        else Updater([(model.parameters(), training.learning_rate)], training, total)
    )

    def score(inputs: VectorActions) -> ActionScores:
        log_probs, values, entropy = model.evaluate(inputs.observations, inputs.actions)
        return ActionScores(log_probs[:, None], entropy[:, None], values[:, None])

    kl = config.kl if isinstance(config, HeadsPPOConfig) else KLCoefficient()
    return train_policy(run, model, updater, source, score, training, kl, iterations, steps)


def train(config: ControlPPOConfig, run: Run) -> dict[str, float]:
    """Trains a policy on a Gymnasium task; leaves ``ppo_final.pt``, the curve and, where asked, a video behind."""
    training, normalize = config.training, config.normalize
    vectors = open_vectors(config.environment, training.n_envs, lambda i, e: run.derive("environment", i, e))
    spaces = vectors.spaces
    torch.manual_seed(run.derive("init"))
    model = policy_for(spaces, config).to(resolve_device(config.device))
    normaliser = Normaliser(
        spaces.obs_dim, training.n_envs, training.gamma, normalize.observations, normalize.rewards, normalize.clip
    )
    source = VectorSource(config, run, model, vectors, normaliser)
    scaled = " and ".join(name for name in ("observations", "rewards") if getattr(normalize, name))
    kind = f"vectors of {spaces.action_dim} reals" if spaces.continuous else f"{spaces.action_dim} actions"
    words = {
        "acts in": f"{config.environment}: sees {spaces.obs_dim} numbers, {kind}",
        "normalised": scaled or "nothing",
    }
    last = train_on_steps(config, run, model, source, words)
    vectors.close()
    if config.evaluation.episodes:
        numbers = evaluate(config, run, model, normaliser)
        run.record({"timesteps": last["timesteps"], **numbers}, prefix="rollout/")
        run.say(
            f"evaluation: return {numbers['eval_return']:.1f} ± {numbers['eval_return_std']:.1f} over"
            f" {config.evaluation.episodes} episodes (from {numbers['eval_return_min']:.1f})"
        )
        last = {**last, **numbers}
    sizes = {"obs_dim": spaces.obs_dim, "action_dim": spaces.action_dim, "hidden_dim": config.model.hidden_dim}
    more = {"environment": config.environment, "continuous": spaces.continuous, "normaliser": normaliser.state_dict()}
    leave_pt(run, "ppo_final.pt", model, {**sizes, **more, "metrics": last})
    run.say(f"wrote {run.directory / 'ppo_final.pt'} (load_state_dict of {type(model).__name__})")
    leave_curve(config, run)
    leave_video(config, run, model, normaliser)
    return last
