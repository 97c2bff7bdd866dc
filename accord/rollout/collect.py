"""From a policy and prompts to a scored rollout, and from that to what the PPO loss sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.data.packing import pack_continuations
from accord.data.rows import Prompt
from accord.data.tokenizer import Tokenizer
from accord.functional.advantages import explained_variance, token_gae
from accord.functional.masked import whiten
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.rollout.generate import Decoding, generate
from accord.rollout.score import Replies, Reward, total
from accord.rollout.shaping import shape_scores, token_rewards, whiten_rewards
from accord.types import Generation, Packed, PPOBatch, Rollout, TextActions


def pack_texts(prompts: Sequence[tuple[int, ...]], responses: Tensor, mask: Tensor) -> tuple[Packed, Tensor]:
    """B replies as one packed row, equal prompts once, and the indices (N,) of their tokens, reply after reply."""
    replies = [row[keep].tolist() for row, keep in zip(responses, mask, strict=True)]
    packed, segments = pack_continuations(prompts, replies)
    packed = packed.to(responses.device)
    return packed, packed.span(segments.to(responses.device))[0]


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) numbers of valid tokens, row after row, into (B, T) with zeros elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


@torch.no_grad()
def collect(
    policy: LanguageActorCritic,
    reference: Backbone,
    reward: Reward,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, ...]],
    sources: Sequence[Prompt],
    decoding: Decoding,
    generator: torch.Generator,
    samples: int,
    chunk: int,
    recompute: bool,
    sampler: Backbone | None = None,
) -> tuple[Rollout, dict[str, float]]:
    """Replies by the policy to each prompt, scored by reference, critic and reward.

    Log-probs and values are kept from the sampling pass.  ``recompute`` takes the log-probs anew from the trainer's
    pass (where precision makes the two differ: bfloat16) and reports the mismatch.  ``chunk`` replies go through the
    reference at a time.  ``sampler`` writes in the policy's place, a copy with other weights: log-probs and values are
    then the policy's.
    """
    recompute = recompute or sampler is not None
    value = policy.values if policy.values_come_with_sampling and sampler is None else None
    generation, values = generate(sampler or policy.policy, prompts, decoding, generator, samples, value)
    metrics: dict[str, float] = {}
    ref_flat, value_flat, new_flat = [], [], []
    for rows in torch.split(torch.arange(len(generation.prompts)), chunk):
        some = [generation.prompts[int(r)] for r in rows]
        packed, chosen = pack_texts(some, generation.responses[rows], generation.mask[rows])
        ref_flat.append(reply_logprobs(reference, packed, chosen, decoding.temperature))
        if value is None:
            value_flat.append(policy.critic_values(packed, chosen))
        if recompute:
            new_flat.append(reply_logprobs(policy.policy, packed, chosen, decoding.temperature))
    mask = generation.mask
    if value is None:
        values = spread(torch.cat(value_flat).float(), mask)
    if recompute:
        new = spread(torch.cat(new_flat).float(), mask)
        difference = (new - generation.logprobs)[mask].abs()
        metrics = {"mismatch_mean": float(difference.mean()), "mismatch_max": float(difference.max())}
        generation = Generation(generation.prompts, generation.responses, mask, new, generation.ended)
    replies = generation.replies()
    terms = reward(
        Replies(
            [sources[b // samples] for b in range(len(replies))],
            [tokenizer.decode(r) for r in replies],
            generation.prompts,
            replies,
            generation.ended.tolist(),
        )
    )
    terms = {name: scores.to(mask.device) for name, scores in terms.items()}
    return Rollout(generation, spread(torch.cat(ref_flat).float(), mask), values, total(terms), terms), metrics


def to_ppo_batch(
    rollout: Rollout,
    *,
    beta: float,
    gamma: float,
    gae_lambda: float,
    scale: float = 1.0,
    clip: float = 0.0,
    missing_eos_penalty: float | None = None,
    whiten_token_rewards: bool = False,
    normalize_advantages: bool = True,
) -> tuple[PPOBatch, dict[str, float]]:
    """Rewards shaped, advantages over valid tokens, and the rollout's numbers for the log."""
    generation, mask = rollout.generation, rollout.generation.mask
    scores = shape_scores(
        rollout.scores, generation.ended, scale=scale, clip=clip, missing_eos_penalty=missing_eos_penalty
    )
    rewards = token_rewards(scores, generation.logprobs, rollout.ref_logprobs, mask, beta)
    if whiten_token_rewards:
        rewards = whiten_rewards(rewards, mask)
    advantages, returns = token_gae(rewards, rollout.values, mask, gamma, gae_lambda)
    variance = explained_variance(rollout.values, returns, mask)
    if normalize_advantages:
        advantages = whiten(advantages, mask)
    inputs = TextActions(generation.prompts, generation.responses, mask, rollout.ref_logprobs)
    batch = PPOBatch(inputs, mask, generation.logprobs, rollout.values, advantages, returns)
    kl = torch.where(mask, generation.logprobs - rollout.ref_logprobs, 0.0).sum(1)
    metrics = {
        "score": float(rollout.scores.mean()),
        "score_std": float(rollout.scores.std(correction=0)),
        "kl": float(kl.mean()),
        "length": float(generation.lengths.float().mean()),
        "replies": float(len(generation.prompts)),
        "eos_rate": float(generation.ended.float().mean()),
        "explained_variance": float(variance),
        **{f"term/{name}": float(values.mean()) for name, values in rollout.terms.items()},
    }
    return batch, metrics
