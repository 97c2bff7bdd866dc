"""PPO on a whole language model: replies are sampled, scored, and every token is an action."""

from __future__ import annotations

from typing import Any

import torch

from accord.algorithms.ppo_core import ActionScores, train_policy
from accord.config.on_policy import LanguagePPOConfig, RewardSettings
from accord.data.prompts import PromptData, load_prompts
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic
from accord.models.open import frozen, module
from accord.models.quantized import for_sampling
from accord.models.reward import RewardModel, is_reward_model
from accord.rollout.collect import collect, pack_texts, spread, to_ppo_batch
from accord.rollout.generate import Decoding
from accord.rollout.score import Reward, WeightedReward, open_reward
from accord.runtime.device import autocast, resolve_device
from accord.runtime.run import Run
from accord.training.artifact import leave_model, open_model, open_tokenizer
from accord.training.describe import depth, memory_in_words, model_in_words
from accord.training.updater import Updater
from accord.types import PPOBatch, TextActions


class LanguageSource:
    """Rollouts of a language policy; the prompts of an iteration are a function of seed and iteration."""

    def __init__(
        self,
        config: LanguagePPOConfig,
        run: Run,
        policy: LanguageActorCritic,
        reference: Backbone,
        reward: Reward,
        tokenizer: Tokenizer,
        prompts: PromptData,
    ) -> None:
        self.config, self.run = config, run
        self.policy, self.reference, self.reward = policy, reference, reward
        self.tokenizer, self.prompts = tokenizer, prompts
        sampling = config.sampling
        self.decoding = Decoding(sampling.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, sampling.temperature)

    def rows(self, iteration: int) -> list[int]:
        """The prompts of an iteration: each once before any comes again, in a new order each time round."""
        total, needed = (
            len(self.prompts.prompts),
            self.config.training.replies // self.config.training.samples_per_prompt,
        )
        rows = []
        for k in range(iteration * needed, (iteration + 1) * needed):
            order = torch.randperm(total, generator=self.run.generator("prompts", k // total))
            rows.append(int(order[k % total]))
        return rows

    def collect(self, iteration: int, beta: float) -> tuple[PPOBatch, dict[str, float]]:
        config, training, shaping = self.config, self.config.training, self.config.reward
        rows, weights = self.rows(iteration), config.sampling.weights
        device = next(self.policy.parameters()).device
        with autocast(device, config.precision):
            rollout, metrics = collect(
                self.policy,
                self.reference,
                self.reward,
                self.tokenizer,
                [self.prompts.prompts[r] for r in rows],
                [self.prompts.sources[r] for r in rows],
                self.decoding,
                self.run.generator("sampling", iteration),
                training.samples_per_prompt,
                training.micro_batch_size or training.batch_size,
                recompute=config.precision != "float32",
                sampler=None if weights == "float32" else for_sampling(self.policy.policy, weights),
            )
        batch, numbers = to_ppo_batch(
            rollout,
            beta=beta if config.kl.placement == "reward" else 0.0,
            gamma=training.gamma,
            gae_lambda=training.gae_lambda,
            scale=shaping.scale,
            clip=shaping.clip,
            missing_eos_penalty=shaping.missing_eos_penalty,
            whiten_token_rewards=shaping.whiten,
            normalize_advantages=training.normalize_advantages,
        )
        return batch, {**numbers, **metrics}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to remember: every iteration is a function of the seed, its number and the weights."""


def score_texts(policy: LanguageActorCritic, inputs: TextActions, temperature: float) -> ActionScores:
    """(B, T) log-probs, entropies and values of replies under the policy of now."""
    packed, chosen = pack_texts(inputs.prompts, inputs.responses, inputs.mask)
    scores = policy.score(packed, chosen, temperature)
    return ActionScores(*(spread(x.float(), inputs.mask) for x in (scores.logprobs, scores.entropy, scores.values)))


def open_rewards(settings: RewardSettings, tokenizer: Tokenizer, device: torch.device) -> Reward:
    """The reward that a config names."""
    if not settings.terms:
        return open_reward(settings.source, tokenizer, device, "reward.source")
    terms = [
        (t.weight, open_reward(t.source, tokenizer, device, f"reward.terms.{i}.source"))
        for i, t in enumerate(settings.terms)
    ]
    return WeightedReward(tuple(terms))


def critic_start(config: LanguagePPOConfig, tokenizer: Tokenizer) -> RewardModel | None:
    """The reward model that ``critic=reward`` starts from.  Raises UserError where there is none, or where it reads
    other tokens than the policy."""
    if config.model.critic != "reward":
        return None
    source = config.reward.source
    if config.reward.terms or not is_reward_model(source):
        raise UserError(
            "model.critic=reward starts from the reward model; set reward.source to one, without reward.terms."
        )
    if Tokenizer.open(source).digest() != tokenizer.digest():
        raise UserError(f"model.critic=reward: {source} has another tokenizer than the policy; use critic=separate.")
    return RewardModel.open(source)


def train(config: LanguagePPOConfig, run: Run) -> dict[str, float]:
    """Trains policy and critic, leaves the policy behind; returns the last rollout's numbers."""
    device, training = resolve_device(config.device), config.training
    if training.replies % training.samples_per_prompt:
        raise UserError(
            f"training.replies ({training.replies}) must be a multiple of training.samples_per_prompt"
            f" ({training.samples_per_prompt})."
        )
    if training.value_warmup and config.model.critic == "shared":
        raise UserError(
            "training.value_warmup needs a critic that does not move the policy's trunk:"
            " model.critic=shared_detached, separate or reward."
        )
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = open_model(config.model.base_model, device)
    reference = frozen(open_model(config.reference or config.model.base_model, device))
    reward = open_rewards(config.reward, tokenizer, device)
    policy = LanguageActorCritic(backbone, config.model.critic, critic_start(config, tokenizer)).to(device)
    prompts = load_prompts(config.prompts, tokenizer, max(1, config.model.max_length - config.sampling.max_new_tokens))
    describe(run, config, policy, reference, prompts)
    per_rollout = -(-training.replies // training.batch_size)
    updater = Updater(
        [
            (policy.policy_parameters(), training.learning_rate),
            (policy.critic_parameters(), training.critic_learning_rate or training.learning_rate),
        ],
        training,
        training.iterations * training.num_epochs * per_rollout,
        config.precision,
    )
    last = train_policy(
        run,
        policy,
        updater,
        LanguageSource(config, run, policy, reference, reward, tokenizer, prompts),
        lambda inputs: score_texts(policy, inputs, config.sampling.temperature),
        training,
        config.kl,
        training.iterations,
        training.replies,
    )
    leave_model(run, backbone, tokenizer, "ppo", last, {"policy": "language"})
    return last


def describe(
    run: Run, config: LanguagePPOConfig, policy: LanguageActorCritic, reference: Backbone, prompts: PromptData
) -> None:
    """The screen before training."""
    training = config.training
    tokens = training.micro_batch_size or training.batch_size
    tokens *= config.sampling.max_new_tokens + sum(map(len, prompts.prompts)) // len(prompts.prompts)
    minibatches = -(-training.replies // training.batch_size)
    source = " + ".join(f"{t.weight} x {t.source}" for t in config.reward.terms) or config.reward.source
    run.plan(
        {
            "policy": model_in_words(policy, f"{config.model.base_model} with a {config.model.critic} critic"),
            "prompts": prompts.report.describe(),
            "reward": source,
            "KL": f"beta {config.kl.beta}"
            + (f", steered to {config.kl.target} nats a reply" if config.kl.target else ", fixed")
            + f", in the {config.kl.placement} ({config.kl.estimator})",
            "rollout": f"{training.replies} replies ({training.samples_per_prompt} to a prompt) of up to"
            f" {config.sampling.max_new_tokens} tokens at temperature {config.sampling.temperature}",
            "steps": f"{training.iterations} rollouts x {training.num_epochs} epochs x {minibatches} minibatches of"
            f" {training.batch_size} replies = {training.iterations * training.num_epochs * minibatches} steps",
            "memory": memory_in_words([policy], [module(reference)], tokens, policy.policy.width, depth(policy)),
        }
    )
