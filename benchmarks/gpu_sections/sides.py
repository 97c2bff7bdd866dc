"""The two sides' models, optimizers and texts, and their count of model FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from accord.config.common import Optimizer
from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample
from accord.models.transformer import Transformer
from accord.models.transformer_config import TransformerConfig
from accord.training.cross_entropy import cross_entropy
from accord.training.updater import Updater
from gpu_sections.bench import Bench


def llama(bench: Bench) -> Any:
    """A random model of transformers."""
    s = bench.sizes
    config = LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.width, num_hidden_layers=s.layers, num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads, intermediate_size=s.d_ff, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    with bench.device:
        return LlamaForCausalLM(config).eval()


def ours_of(theirs: Any, device: Any) -> Any:
    """accord's model with the same weights."""
    return Transformer.from_state(TransformerConfig.from_hf(theirs.config.to_dict()), theirs.state_dict()).to(device)


def ours(bench: Bench) -> Any:
    """accord's model with the weights of ``llama``."""
    return ours_of(llama(bench), bench.device)


def texts(bench: Bench, rows: int, longest: int) -> list[list[int]]:
    """Texts of half to the whole of ``longest`` tokens."""
    chance = torch.Generator().manual_seed(1)
    lengths = [longest, *torch.randint(longest // 2, longest + 1, (rows - 1,), generator=chance).tolist()]
    return [torch.randint(3, bench.sizes.vocab, (n,), generator=chance).tolist() for n in lengths]


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """(B, T) ids padded on the right, and their mask."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return ids.to(device), mask.to(device)


def labels_of(rows: Sequence[Sequence[int]], device: Any) -> Any:
    """Texts as one packed row, every token but the first a label."""
    examples = [SupervisedExample(tuple(r), (False, *[True] * (len(r) - 1))) for r in rows]
    return pack_supervised(examples).to(device)


def prompts_of(bench: Bench) -> list[list[int]]:
    """The prompts of a rollout, all of the same length."""
    s = bench.sizes
    return [text[: s.prompt] for text in texts(bench, s.replies, 2 * s.prompt)]


def flops(bench: Bench, rows: Sequence[tuple[int, int]], per_weight: int) -> float:
    """Model FLOPs of the Llama over texts of (first position, tokens): 6 for a weight and token of training, 2 of reading.

    Attention reads all tokens before: 2 · ``per_weight`` · layers · width for each.
    """
    s = bench.sizes
    head = s.width // s.heads
    layer = s.width * head * (2 * s.heads + 2 * s.kv_heads) + 3 * s.width * s.d_ff
    weights = s.layers * layer + s.vocab * s.width
    before = sum(first * tokens + tokens * tokens / 2 for first, tokens in rows)
    return per_weight * (weights * sum(tokens for _, tokens in rows) + 2 * s.layers * s.width * before)


def adamw(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, 1e-6, betas=(0.9, 0.999), weight_decay=0.0, fused=True)


def updater_of(model: Any, precision: str = "bfloat16") -> Any:
    return Updater([(list(model.parameters()), 1e-6)], Optimizer(), 10**6, precision)


def finish(loss: Any, optimizer: Any, norm: float) -> None:
    """The rest of a plain step."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)
    optimizer.step()


def hf_sample(model: Any, prompts: Any, new_tokens: int) -> Any:
    """(B, P + T) ids that transformers samples from the whole distribution."""
    return model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, use_cache=True, pad_token_id=0,
    )  # fmt: skip


def sft_step(
    bench: Bench, model: Any, rows: Sequence[Sequence[int]], report: Callable[[float], Any]
) -> Callable[[], Any]:
    """accord's step of SFT on every token, which reports its loss."""
    packed, updater = labels_of(rows, bench.device), updater_of(model)
    return lambda: report(updater.step([packed], lambda b: cross_entropy(model, b))["loss"])
