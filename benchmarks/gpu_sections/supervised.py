"""SFT and DPO beside plain steps on padded batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from accord.algorithms.dpo import objective
from accord.data.packing import pack_preferences
from accord.data.preferences import PreferencePair
from gpu_sections.bench import Bench, Row, Work, apart, measure
from gpu_sections.sides import adamw, finish, flops, llama, ours, padded, sft_step, texts, updater_of


def sft(bench: Bench) -> list[Row]:
    """A step of SFT on every token."""
    s = bench.sizes
    rows = texts(bench, s.rows, s.length)
    work = Work(sum(map(len, rows)), flops(bench, [(0, len(r)) for r in rows], 6))
    losses: dict[str, float] = {}

    def accord() -> Callable[[], Any]:
        return sft_step(bench, ours(bench), rows, partial(losses.setdefault, "ours"))

    def plain() -> Callable[[], Any]:
        model, (ids, mask) = llama(bench), padded(rows, bench.device)
        optimizer, labels = adamw(model.parameters()), torch.where(mask > 0, ids, -100)[:, 1:].flatten()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with bench.autocast():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels, ignore_index=-100)
            finish(loss, optimizer, 1.0)
            losses.setdefault("plain", float(loss))

        return step

    row: Row = {"row": "sft"}
    measure(bench, row, "ours", work, accord)
    measure(bench, row, "plain", work, plain)
    return [row | {"apart": apart(losses["ours"], losses["plain"]), "at_most": 2e-2}]


def dpo(bench: Bench) -> list[Row]:
    """A step of DPO; the reference's log-probs are given.  Tokens count the prompt twice, as a plain batch holds it."""
    s = bench.sizes
    pairs = max(2, s.rows // 2)
    prompts = texts(bench, pairs, s.length // 2)
    replies = texts(bench, 2 * pairs, s.length // 2)
    rows = [[*p, *r] for i, p in enumerate(prompts) for r in replies[2 * i : 2 * i + 2]]
    work = Work(sum(map(len, rows)), flops(bench, [(0, len(r)) for r in rows], 6))
    chance = torch.Generator().manual_seed(2)
    lengths = torch.tensor([len(reply) for reply in replies]).float().view(-1, 2)
    known = (-8.0 * lengths + torch.randn(lengths.shape, generator=chance)).to(bench.device)
    losses: dict[str, float] = {}

    def accord() -> Callable[[], Any]:
        model = ours(bench)
        made = [
            PreferencePair(tuple(p), tuple(replies[2 * i]), tuple(replies[2 * i + 1])) for i, p in enumerate(prompts)
        ]
        batch = pack_preferences(made, range(pairs)).to(bench.device)
        updater = updater_of(model)

        def step() -> None:
            losses.setdefault("ours", updater.step([batch], lambda b: objective(model, b, known, 0.1, 0.0))["loss"])

        return step

    def plain() -> Callable[[], Any]:
        model, (ids, mask) = llama(bench), padded(rows, bench.device)
        optimizer = adamw(model.parameters())
        starts = torch.tensor([len(p) for p in prompts for _ in range(2)], device=bench.device)
        places = torch.arange(1, ids.shape[1], device=bench.device)
        reply = (mask[:, 1:] > 0) & (places >= starts[:, None])

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with bench.autocast():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            logprobs = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            sums = (logprobs * reply).sum(1).view(-1, 2) - known
            loss = -F.logsigmoid(0.1 * (sums[:, 0] - sums[:, 1])).mean()
            finish(loss, optimizer, 1.0)
            losses.setdefault("plain", float(loss))

        return step

    row: Row = {"row": "dpo"}
    measure(bench, row, "ours", work, accord)
    measure(bench, row, "plain", work, plain)
    return [row | {"apart": apart(losses["ours"], losses["plain"]), "at_most": 2e-2}]
