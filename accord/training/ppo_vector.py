"""PPO on vectors: ActorCritic on Gymnasium's observations, or on a frozen language model's features (heads)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from accord.config import UserError
from accord.data.prompts import load_prompts
from accord.device import resolve_device
from accord.models.actor_critic import ActorCritic
from accord.models.open import frozen
from accord.rollout.buffer import RolloutBuffer
from accord.rollout.environments import Environment, TokenEnvironment, Vectors, gymnasium_environment
from accord.rollout.score import Replies, total
from accord.run import Run
from accord.settings import PPOConfig
from accord.training.artifact import leave_pt, open_model, open_tokenizer
from accord.training.describe import model_in_words
from accord.training.ppo_core import ActionScores, train_policy
from accord.training.ppo_language import open_rewards
from accord.training.updater import Updater
from accord.types import PPOBatch, VectorActions


class VectorSource:
    """``n_steps`` of ``n_envs`` environments at a time; each step is a row of one action."""

    def __init__(self, config: PPOConfig, run: Run, model: ActorCritic, vectors: Vectors, obs_dim: int) -> None:
        self.config, self.run, self.model, self.vectors = config, run, model, vectors
        training = config.training
        self.buffer = RolloutBuffer(training.n_steps, obs_dim, training.n_envs, training.gamma, training.gae_lambda)
        self.running = [0.0] * training.n_envs
        self.finished: list[float] = []

    @torch.no_grad()
    def collect(self, iteration: int, beta: float) -> tuple[PPOBatch, dict[str, float]]:
        self.buffer.reset()
        device = next(self.model.parameters()).device
        generator = self.run.generator("actions", iteration, device=str(device))
        before, kl = len(self.finished), 0.0
        for _ in range(self.config.training.n_steps):
            observations = self.vectors.observe()
            actions, log_probs, values = (
                x.cpu() for x in self.model.get_action_and_value(observations.to(device), generator=generator)
            )
            steps = self.vectors.step(actions)
            rewards, bootstrap, done = torch.zeros(len(steps)), torch.zeros(len(steps)), torch.zeros(len(steps))
            for i, (final, reward, terminated, truncated, info) in enumerate(steps):
                self.running[i] += reward
                rewards[i] = reward
                if "ref_logprob" in info:
                    gap = float(log_probs[i]) - info["ref_logprob"]
                    rewards[i] -= beta * gap
                    kl += gap
                if truncated and not terminated:
                    last = torch.as_tensor(final, dtype=torch.float32, device=device)[None]
                    bootstrap[i] = self.model.value(last).cpu().squeeze()
                if terminated or truncated:
                    done[i] = 1.0
                    self.finished.append(self.running[i])
                    self.running[i] = 0.0
            self.buffer.add(observations, actions, rewards, values, log_probs, done.bool(), bootstrap)
        self.buffer.compute(self.model.value(self.vectors.observe().to(device)).cpu())
        return self._batch(self.finished[before:], kl)

    def _batch(self, returns: list[float], kl: float) -> tuple[PPOBatch, dict[str, float]]:
        from accord.functional.advantages import explained_variance, normalize_advantages

        rows = next(iter(self.buffer.get()))
        advantages = rows.advantages
        if self.config.training.normalize_advantages:
            advantages = normalize_advantages(advantages)
        column = (x[:, None] for x in (rows.log_probs, rows.values, advantages, rows.returns))
        mask = torch.ones(len(rows), 1, dtype=torch.bool)
        batch = PPOBatch(VectorActions(rows.observations, rows.actions), mask, *column)
        recent = returns or self.finished[-20:]
        metrics = {
            "episode_return": sum(recent) / max(len(recent), 1),
            "episodes": float(len(self.finished)),
            "kl": kl / max(len(returns), 1),
            "replies": float(len(returns)),
            "explained_variance": explained_variance(rows.values, rows.returns),
        }
        return batch, metrics

    def state_dict(self) -> dict[str, Any]:
        return {"vectors": self.vectors.state_dict(), "running": list(self.running), "finished": list(self.finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vectors.load_state_dict(state["vectors"])
        self.running, self.finished = list(state["running"]), list(state["finished"])


def heads_environments(config: PPOConfig, run: Run) -> tuple[list[Environment], int, int]:
    """The frozen language model as environments, with obs_dim and action_dim.  Raises UserError where sizes differ."""
    device = resolve_device(config.device)
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = frozen(open_model(config.model.base_model, device))
    for key, expected, found in (
        ("obs_dim", config.model.obs_dim, backbone.width),
        ("action_dim", config.model.action_dim, backbone.vocab_size),
    ):
        if expected != found:
            raise UserError(
                f"model.{key} is {expected}, but {config.model.base_model} has {found}; set model.{key}={found}."
            )
    reward = open_rewards(config.reward, tokenizer, device)
    sampling, shaping = config.sampling, config.reward
    prompts = load_prompts(config.prompts, tokenizer, max(1, config.model.max_length - sampling.max_new_tokens))

    def score(prompt: int, tokens: list[int], ended: bool) -> float:
        if not ended and shaping.missing_eos_penalty is not None:
            return shaping.missing_eos_penalty
        replies = Replies([prompts.texts[prompt]], [tokenizer.decode(tokens)], [prompts.prompts[prompt]], [tokens])
        value = float(total(reward(replies))) * shaping.scale
        return max(-shaping.clip, min(shaping.clip, value)) if shaping.clip else value

    environments: list[Environment] = [
        TokenEnvironment(backbone, prompts.prompts, score, tokenizer.eos_id, sampling.max_new_tokens)
        for _ in range(config.training.n_envs)
    ]
    return environments, backbone.width, backbone.vocab_size


def train(config: PPOConfig, run: Run) -> dict[str, float]:
    """Trains ``ActorCritic`` and leaves ``ppo_final.pt`` behind; returns the last rollout's numbers."""
    device, training = resolve_device(config.device), config.training
    if config.kl.placement == "loss":
        raise UserError("kl.placement=loss is for model.policy=language; here the KL stands in the reward.")
    if config.model.policy == "heads":
        if config.reward.whiten:
            raise UserError("reward.whiten is for model.policy=language; leave it out for heads.")
        environments, obs_dim, action_dim = heads_environments(config, run)
    else:
        made = [gymnasium_environment(config.environment) for _ in range(training.n_envs)]
        environments, obs_dim, action_dim = [m[0] for m in made], made[0][1], made[0][2]
    torch.manual_seed(run.derive("init"))
    model = ActorCritic(obs_dim, action_dim, config.model.hidden_dim).to(device)
    seed_of: Callable[[int, int], int] = lambda i, episode: run.derive("environment", i, episode)  # noqa: E731
    source = VectorSource(config, run, model, Vectors(environments, seed_of), obs_dim)
    steps = training.n_steps * training.n_envs
    iterations = -(-training.total_timesteps // steps)
    minibatches = -(-steps // training.batch_size)
    run.plan(
        {
            "policy": model_in_words(model, "ActorCritic"),
            "acts in": config.environment or f"replies token by token, on the features of {config.model.base_model}",
            "rollout": f"{training.n_envs} environments x {training.n_steps} steps = {steps} steps",
            "steps": f"{iterations} rollouts (at least {training.total_timesteps} environment steps) x"
            f" {training.num_epochs} epochs x {minibatches} minibatches of {training.batch_size}",
        }
    )
    updater = Updater(
        [(model.parameters(), training.learning_rate)], training, iterations * training.num_epochs * minibatches
    )

    def score(inputs: VectorActions) -> ActionScores:
        log_probs, values, entropy = model.evaluate(inputs.observations, inputs.actions)
        return ActionScores(log_probs[:, None], entropy[:, None], values[:, None])

    last = train_policy(run, model, updater, source, score, training, config.kl, iterations, steps)
    sizes = {"obs_dim": obs_dim, "action_dim": action_dim, "hidden_dim": config.model.hidden_dim}
    leave_pt(run, "ppo_final.pt", model, {**sizes, "metrics": last})
    run.say(f"wrote {run.directory / 'ppo_final.pt'} (load_state_dict of ActorCritic({obs_dim}, {action_dim}))")
    return last
