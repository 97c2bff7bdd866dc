"""Sampling of replies, and updates of PPO."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from accord.algorithms.ppo import ppo_on_text, prepare
from accord.config.on_policy import LanguagePPOConfig
from accord.functional.advantages import token_gae
from accord.models.language import LanguageActorCritic
from accord.models.quantized import sampling_copy
from accord.models.reference import FrozenReference
from accord.rollout.collect import read_replies
from accord.rollout.generate import Decoding, generate
from accord.training.rollout_progress import minibatches
from accord.types import Rollout
from gpu_sections.bench import Bench, Row, Work, apart, measure
from gpu_sections.sides import adamw, finish, flops, hf_sample, llama, ours, prompts_of, updater_of


def rollout(bench: Bench) -> list[Row]:
    """Sampling of replies of a fixed length, from the policy and from the copy in bfloat16 that rollouts use.

    "apart" compares the mean log-prob of sampled tokens with transformers' of the same tokens.
    """

    s = bench.sizes
    prompts, decoding, keys = prompts_of(bench), Decoding(s.new_tokens, -1, 0), list(range(s.replies))
    fixed = torch.tensor(prompts, device=bench.device)
    parts = [(0, s.prompt), (s.prompt, s.new_tokens)] * s.replies
    work = Work(s.replies * s.new_tokens, flops(bench, parts, 2), 2, 1)
    sampled: dict[bool, Any] = {}

    def accord(narrow: bool) -> Callable[[], Any]:
        model = ours(bench)
        sampler = sampling_copy(model, "bfloat16") if narrow else model

        def sample() -> None:
            with bench.autocast():
                generation, _ = generate(sampler, prompts, decoding, keys)
            sampled[narrow] = generation

        return sample

    def plain(narrow: bool) -> Callable[[], Any]:
        model = llama(bench).to(torch.bfloat16 if narrow else torch.float32)

        def sample() -> None:
            with nullcontext() if narrow else bench.autocast():
                hf_sample(model, fixed, s.new_tokens)

        return sample

    found: list[Row] = []
    for name, narrow in (("float32", False), ("bfloat16", True)):
        row: Row = {"row": f"rollout_{name}_weights"}
        measure(bench, row, "ours", work, partial(accord, narrow))
        measure(bench, row, "plain", work, partial(plain, narrow))
        found.append(row)
    responses = sampled[False].responses
    with torch.no_grad(), bench.autocast():
        logits = llama(bench)(input_ids=torch.cat([fixed, responses], 1), use_cache=False).logits
    again = logits[:, s.prompt - 1 : -1].float().log_softmax(-1).gather(-1, responses[..., None])
    found[0] |= {"apart": apart(float(sampled[False].logprobs.mean()), float(again.mean())), "at_most": 2e-2}
    return found


def ppo(bench: Bench) -> list[Row]:
    """An update of PPO: a rollout, the reference's log-probs, four minibatches of the shared trunk; scores are given.

    Plain transformers: its ``generate``, two reading passes, the clipped loss and a value head written out.  "apart" is the
    mean difference of log-probs, in nats, between our sampling pass and our trainer, both in bfloat16.
    """

    s, size = bench.sizes, max(1, bench.sizes.replies // 4)
    prompts, scores = prompts_of(bench), torch.linspace(-1, 1, s.replies, device=bench.device)
    whole = [(0, s.prompt + s.new_tokens)] * s.replies
    reading = flops(bench, whole, 2)  # sampling, the policy's reading and the reference's; then training
    work = Work(s.replies * s.new_tokens, 3 * reading + flops(bench, whole, 6), 2, 1)
    row: Row = {"row": "ppo"}

    def accord() -> Callable[[], Any]:
        values = {
            "precision": "bfloat16", "model": {"critic": "shared", "max_length": 4096},
            "training": {"replies": s.replies, "batch_size": size, "num_epochs": 1},
            "sampling": {"max_new_tokens": s.new_tokens},
        }  # fmt: skip
        config, decoding = LanguagePPOConfig.model_validate(values), Decoding(s.new_tokens, -1, 0)
        model, reference = ours(bench), FrozenReference(ours(bench).requires_grad_(False))
        policy = LanguageActorCritic(model, "shared").to(bench.device)
        updater, algorithm = updater_of(policy), ppo_on_text(policy, config)

        def update() -> None:
            with bench.autocast():
                generation, readout = generate(model, prompts, decoding, range(s.replies), 1, policy.values)
                known = read_replies(generation, size, reference.logprobs)
            versions = torch.zeros_like(generation.responses)
            rollout = Rollout(generation, torch.arange(s.replies), versions, known, scores, {"given": scores}, readout)
            batch, stats = prepare(rollout, policy, 0.05, config)
            row.setdefault("apart", stats.metrics["mismatch_mean"])
            for minibatch in minibatches(batch, size, 0, 0):
                updater.step(minibatch, algorithm.loss(0, 0.05))

        return update

    def plain() -> Callable[[], Any]:
        model, reference = llama(bench), llama(bench).requires_grad_(False)
        head = nn.Linear(s.width, 1).to(bench.device)
        optimizer, fixed = adamw([*model.parameters(), *head.parameters()]), torch.tensor(prompts, device=bench.device)

        def read(network: Any, ids: Any) -> tuple[Any, Any]:
            found = network(input_ids=ids, use_cache=False, output_hidden_states=True)
            logits = found.logits[:, s.prompt - 1 : -1].float()
            hidden = found.hidden_states[-1][:, s.prompt - 1 : -1].float()
            return logits.log_softmax(-1).gather(-1, ids[:, s.prompt :, None]).squeeze(-1), head(hidden).squeeze(-1)

        def update() -> None:
            with torch.no_grad(), bench.autocast():
                ids = hf_sample(model, fixed, s.new_tokens)
                known = torch.cat([read(reference, part)[0] for part in ids.split(size)])
                old, values = (torch.cat(x) for x in zip(*(read(model, part) for part in ids.split(size)), strict=True))
            rewards = -0.05 * (old - known)
            rewards[:, -1] += scores
            advantages, returns = token_gae(rewards, values, torch.ones_like(known, dtype=torch.bool))
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            for at in torch.randperm(s.replies, device=bench.device).split(size):
                optimizer.zero_grad(set_to_none=True)
                with bench.autocast():
                    logprobs, found = read(model, ids[at])
                ratio = (logprobs - old[at]).exp()
                gain = torch.minimum(ratio * advantages[at], ratio.clamp(0.8, 1.2) * advantages[at])
                finish(0.25 * (found.float() - returns[at]).square().mean() - gain.mean(), optimizer, 0.5)

        return update

    measure(bench, row, "ours", work, accord)
    measure(bench, row, "plain", work, plain)
    return [row | {"at_most": 5e-2}]
