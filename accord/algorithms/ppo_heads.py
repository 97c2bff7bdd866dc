"""PPO's heads on a frozen language model: an action is a token, the observation the model's hidden state before it."""

from __future__ import annotations

from typing import Any

import torch

from accord.algorithms.ppo_control import quick_path, step_rows, train_on_steps
from accord.algorithms.ppo_language import open_rewards
from accord.config.on_policy import HeadsPPOConfig
from accord.data.prompts import load_prompts
from accord.errors import UserError
from accord.models.heads import ActorCritic
from accord.models.open import frozen
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.tokens import Environment, TokenEnvironment, Vectors
from accord.rollout.score import Replies, total
from accord.runtime.device import resolve_device
from accord.runtime.run import Run
from accord.training.artifact import leave_pt, open_model, open_tokenizer
from accord.types import PPOBatch


class HeadsSource:
    """``n_steps`` of ``n_envs`` replies at a time; each token is a row of one action."""

    def __init__(self, config: HeadsPPOConfig, run: Run, model: ActorCritic, vectors: Vectors, obs_dim: int) -> None:
        self.config, self.run, self.model, self.vectors = config, run, model, vectors
        training = config.training
        self.hand = quick_path(model, training)
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
        batch, explained = step_rows(self.buffer, self.config.training.normalize_advantages)
        returns = self.finished[before:]
        recent = returns or self.finished[-20:]
        return batch, {
            "episode_return": sum(recent) / max(len(recent), 1),
            "episodes": float(len(self.finished)),
            "kl": kl / max(len(returns), 1),
            "replies": float(len(returns)),
            "explained_variance": explained,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"vectors": self.vectors.state_dict(), "running": list(self.running), "finished": list(self.finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vectors.load_state_dict(state["vectors"])
        self.running, self.finished = list(state["running"]), list(state["finished"])


def heads_environments(config: HeadsPPOConfig) -> tuple[list[Environment], int, int]:
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
        replies = Replies(
            [prompts.sources[prompt]], [tokenizer.decode(tokens)], [prompts.prompts[prompt]], [tokens], [ended]
        )
        value = float(total(reward(replies))) * shaping.scale
        return max(-shaping.clip, min(shaping.clip, value)) if shaping.clip else value

    environments: list[Environment] = [
        TokenEnvironment(backbone, prompts.prompts, score, tokenizer.eos_id, sampling.max_new_tokens)
        for _ in range(config.training.n_envs)
    ]
    return environments, backbone.width, backbone.vocab_size


def train(config: HeadsPPOConfig, run: Run) -> dict[str, float]:
    """Trains ``ActorCritic`` and leaves ``ppo_final.pt`` behind; returns the last rollout's numbers."""
    environments, obs_dim, action_dim = heads_environments(config)
    torch.manual_seed(run.derive("init"))
    model = ActorCritic(obs_dim, action_dim, config.model.hidden_dim).to(resolve_device(config.device))
    vectors = Vectors(environments, lambda i, episode: run.derive("environment", i, episode))
    source = HeadsSource(config, run, model, vectors, obs_dim)
    acts_in = f"replies token by token, on the features of {config.model.base_model}"
    last = train_on_steps(config, run, model, source, {"acts in": acts_in})
    sizes = {"obs_dim": obs_dim, "action_dim": action_dim, "hidden_dim": config.model.hidden_dim}
    leave_pt(run, "ppo_final.pt", model, {**sizes, "metrics": last})
    run.say(f"wrote {run.directory / 'ppo_final.pt'} (load_state_dict of ActorCritic({obs_dim}, {action_dim}))")
    return last
