"""Mamba: SFT and sampling."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import MambaConfig, MambaForCausalLM

from accord.models.mamba import Mamba
from accord.rollout.generate import Decoding, generate
from gpu_sections.bench import Bench, Row, Work, apart, measure
from gpu_sections.sides import adamw, finish, hf_sample, prompts_of, sft_step


def mamba(bench: Bench) -> list[Row]:
    """A step of SFT and sampling of a Mamba; transformers without its extra kernels computes a token at a time."""
    s = bench.sizes
    chance = torch.Generator().manual_seed(1)
    rows = torch.randint(3, s.vocab, (s.mamba_rows, s.mamba_length), generator=chance)
    prompts, losses = prompts_of(bench), {}

    def theirs() -> Any:
        config = MambaConfig(
            vocab_size=s.vocab, hidden_size=s.mamba_width, num_hidden_layers=s.mamba_layers, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        return MambaForCausalLM(config).eval()

    with tempfile.TemporaryDirectory() as folder:
        theirs().save_pretrained(folder)
        opened = Mamba.open(folder)
    weights = sum(p.numel() for p in opened.parameters() if p.ndim == 2)
    training = Work(rows.numel(), 6.0 * weights * rows.numel())
    slow = Work(rows.numel(), 6.0 * weights * rows.numel(), 1, 1)
    read = 2.0 * weights * s.replies * (s.prompt + s.new_tokens)
    sampling, slow_sampling = (Work(s.replies * s.new_tokens, read, times, 1) for times in (2, 1))

    def accord() -> Callable[[], Any]:
        return sft_step(
            bench, copy.deepcopy(opened).to(bench.device), rows.tolist(), partial(losses.setdefault, "ours")
        )

    def plain() -> Callable[[], Any]:
        model, ids = theirs().to(bench.device), rows.to(bench.device)
        optimizer = adamw(model.parameters())

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with bench.autocast():
                logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
            finish(loss, optimizer, 1.0)
            losses.setdefault("plain", float(loss))

        return step

    def accord_sample() -> Callable[[], Any]:
        model, decoding = copy.deepcopy(opened).to(bench.device), Decoding(s.new_tokens, -1, 0)

        def sample() -> None:
            with bench.autocast():
                generate(model, prompts, decoding, range(s.replies))

        return sample

    def plain_sample() -> Callable[[], Any]:
        model, fixed = theirs().to(bench.device), torch.tensor(prompts, device=bench.device)

        def sample() -> None:
            with bench.autocast():
                hf_sample(model, fixed, s.new_tokens)

        return sample

    trained: Row = {"row": "mamba_sft"}
    sampled: Row = {"row": "mamba_rollout"}
    measure(bench, trained, "ours", training, accord)
    measure(bench, sampled, "ours", sampling, accord_sample)
    measure(bench, trained, "plain", slow, plain)
    measure(bench, sampled, "plain", slow_sampling, plain_sample)
    return [trained | {"apart": apart(losses["ours"], losses["plain"]), "at_most": 2e-2}, sampled]
