"""PPO of small heads on a frozen language model: an action is a token, the observation the hidden state before it.

This is ``ActorCritic`` on text.  Each token is a step of an environment (``rollout/env/tokens``), so
training is ``ppo_control``'s; the KL to the frozen model is a penalty on every step's reward.
"""

from __future__ import annotations

import torch

from accord.algorithms.ppo import kl_controller
from accord.algorithms.ppo_control import StepTask, train_on_steps
from accord.config.on_policy import HeadsPPOConfig
from accord.data.prompts import load_prompts
from accord.data.reply_text import reply_text
from accord.errors import UserError
from accord.models.heads import ActorCritic
from accord.rollout.env.episodes import EpisodeVectors
from accord.rollout.env.normalization import Normalizer
from accord.rollout.env.spaces import Spaces
from accord.rollout.env.tokens import TokenEnvironment
from accord.rollout.score import Replies, open_rewards, total
from accord.runtime.device import resolve_device
from accord.runtime.run import Run
from accord.training.artifact import open_policy, open_tokenizer, require_fit, save_pt


def open_token_environments(config: HeadsPPOConfig, run: Run) -> EpisodeVectors:
    """The frozen language model as environments.  Raises UserError where the config's sizes are not the model's."""
    device = resolve_device(config.device)
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = open_policy(config.model.base_model, tokenizer, device).requires_grad_(False)
    actions = backbone.policy_vocabulary or backbone.vocab_size
    if backbone.gaps:
        raise UserError(
            f"{config.model.base_model}: id {backbone.gaps[0]} is no token, but a head would sample it; use"
            " model.policy=language, which leaves such ids out."
        )
    for key, expected, found in (
        ("obs_dim", config.model.obs_dim, backbone.width),
        ("action_dim", config.model.action_dim, actions),
    ):
        if expected != found:
            raise UserError(
                f"model.{key} is {expected}, but {config.model.base_model} has {found}; set model.{key}={found}."
            )
    reward = open_rewards(config.reward, tokenizer, device)
    sampling, shaping = config.sampling, config.reward
    prompts = load_prompts(config.prompts, tokenizer, config.model.max_length - sampling.max_new_tokens)
    require_fit(config.model.base_model, backbone, tokenizer, prompts.longest + sampling.max_new_tokens)

    def score(prompt: int, tokens: list[int], ended: bool) -> float:
        if not ended and shaping.missing_eos_penalty is not None:
            return shaping.missing_eos_penalty
        asked = prompts.prompts[prompt]
        replies = Replies([prompts.sources[prompt]], [reply_text(tokenizer, asked, tokens)], [asked], [tokens], [ended])
        value = float(total(reward(replies), replies.texts)) * shaping.scale
        return max(-shaping.clip, min(shaping.clip, value)) if shaping.clip else value

    environments = [
        TokenEnvironment(backbone, prompts.prompts, score, tokenizer.eos_id, sampling.max_new_tokens)
        for _ in range(config.training.n_envs)
    ]
    return EpisodeVectors(
        environments,
        Spaces(backbone.width, actions),
        lambda i, episode: run.derive("environment", i, episode),
        with_reference=True,
    )


def train(config: HeadsPPOConfig, run: Run) -> dict[str, float]:
    """Trains ``ActorCritic`` and saves ``ppo_final.pt``; returns the last rollout's metrics."""
    vectors = open_token_environments(config, run)
    obs_dim, action_dim = vectors.spaces.obs_dim, vectors.spaces.action_dim
    torch.manual_seed(run.derive("init"))
    model = ActorCritic(obs_dim, action_dim, config.model.hidden_dim).to(resolve_device(config.device))
    description = {"acts in": f"replies token by token, from the hidden states of {config.model.base_model}"}
    training = config.training
    normalizer = Normalizer(obs_dim, training.n_envs, training.gamma, observations=False, rewards=False)
    task = StepTask(vectors, normalizer, description, kl_controller(config.kl))
    last = train_on_steps(run, model, task, training)
    sizes = {"obs_dim": obs_dim, "action_dim": action_dim, "hidden_dim": config.model.hidden_dim}
    save_pt(run, "ppo_final.pt", model, {**sizes, "metrics": last})
    run.say(f"wrote {run.directory / 'ppo_final.pt'} (load_state_dict of ActorCritic({obs_dim}, {action_dim}))")
    return last
