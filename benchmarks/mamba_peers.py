"""Mamba against transformers and mambapy: the same weights, tokens, AdamW and clipping, in alternating runs.

    python benchmarks/mamba_peers.py            three rounds, some four minutes once mambapy's environment is made
    python benchmarks/mamba_peers.py --quick    three rounds of half the training steps, without train_hf

A Mamba of width 128, 4 layers, state 16 and vocabulary 4096 in float32 on one thread.

    train_hf         4 rows of 256 tokens, forward, backward and AdamW, against ``MambaForCausalLM``
    train_mambapy    the same against ``MambaForCausalLM`` with ``use_mambapy``: mambapy's parallel scan
    generate         32 prompts of 32 tokens x 64 new ones, greedy, against ``generate``

Each run is a separate process; CPU seconds are those of the process.  Imports, opening, and one-time work (compiling
kernels) are excluded: generation does the same work once before timing starts, training a first step of full
length.  The losses of all steps must agree to 1e-5 and the greedy tokens be equal, or the row counts as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from peers import python

PEER = ("mambapy", ["mambapy==1.2.0", "transformers"])
VOCAB, WIDTH, LAYERS, ROWS, LENGTH, RATE = 4096, 128, 4, 4, 256, 1e-3
PROMPTS, PROMPT, NEW = 32, 32, 64
STEPS = {"train_hf": 2, "train_mambapy": 6}  # transformers takes seven seconds for one
AT_LEAST = {"train_hf": 30.0, "train_mambapy": 3.0, "generate": 1.5}
AIM = {"train_hf": 70.0, "train_mambapy": 7.0, "generate": 4.0}
APART = 1e-5


def drawn(rows: int, length: int, seed: int) -> Any:
    import torch

    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def batches(steps: int) -> list[Any]:
    """One warm-up step, then ``steps``."""
    return [drawn(ROWS, LENGTH, i) for i in range(1 + steps)]


def spent(began: float) -> dict[str, float]:
    seconds = time.process_time() - began
    return {"cpu": seconds, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# ------------------------------------------------------------------ the peers
def run_peer(kind: str, folder: str, steps: int) -> dict[str, Any]:
    import torch
    from transformers import MambaForCausalLM
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    model = MambaForCausalLM.from_pretrained(folder, use_mambapy=kind == "train_mambapy", dtype=torch.float32)
    if kind == "generate":
        model.eval()
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        model.generate(drawn(PROMPTS, PROMPT, 0), max_new_tokens=NEW, **options)
        prompts, began = drawn(PROMPTS, PROMPT, 1), time.process_time()
        tokens = model.generate(prompts, max_new_tokens=NEW, **options)[:, PROMPT:]
        return {"tokens": tokens.tolist(), **spent(began)}
    if kind == "train_mambapy":
        from mambapy import pscan  # noqa: F401  # otherwise transformers silently falls back to its loop
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    losses: list[float] = []
    began = 0.0
    for ids in batches(steps):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
        began = began or time.process_time()
    return {"losses": losses, **spent(began)}


# ------------------------------------------------------------------ accord
def make(folder: str) -> dict[str, Any]:
    import torch

    from accord.models.mamba import small_mamba

    torch.manual_seed(0)
    small_mamba(WIDTH, LAYERS, VOCAB, eos_id=1, pad_id=0).save(folder)
    return {}


def run_accord(kind: str, folder: str, steps: int) -> dict[str, Any]:
    import torch

    from accord.config.common import Optimizer
    from accord.data.packing import pack_supervised
    from accord.data.supervised import SupervisedExample
    from accord.models.mamba import Mamba
    from accord.rollout.generate import Decoding, generate
    from accord.runtime.allocator import keep_memory
    from accord.training.cross_entropy import cross_entropy
    from accord.training.updater import Updater

    keep_memory()  # as every stage does
    torch.set_num_threads(1)
    model = Mamba.open(folder)
    if kind == "generate":
        decoding = Decoding(NEW, -1, 0, temperature=0)
        generate(model, drawn(PROMPTS, PROMPT, 0).tolist(), decoding, [0] * PROMPTS)
        prompts, began = drawn(PROMPTS, PROMPT, 1).tolist(), time.process_time()
        generation, _ = generate(model, prompts, decoding, [0] * PROMPTS)
        return {"tokens": generation.responses.tolist(), **spent(began)}
    parts = batches(steps)
    updater = Updater([(model.parameters(), RATE)], Optimizer(learning_rate=RATE, max_grad_norm=1.0), len(parts))
    losses: list[float] = []
    began = 0.0
    for ids in parts:
        rows = ids.tolist()
        packed = pack_supervised([SupervisedExample(tuple(r), (False,) + (True,) * (len(r) - 1)) for r in rows])
        losses.append(updater.step([packed], lambda batch: cross_entropy(model, batch))["loss"])
        began = began or time.process_time()
    return {"losses": losses, **spent(began)}


# ------------------------------------------------------------------ side by side
def one(interpreter: str, who: str, kind: str, folder: str, steps: int = 0) -> dict[str, Any]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [interpreter, __file__, "--one", who, "--only", kind, "--folder", folder, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads, **quiet}, check=False)
    if done.returncode:
        raise SystemExit(f"{who}, {kind}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(kind: str, rounds: int, interpreter: str, folder: str, quick: bool) -> dict[str, Any]:
    steps = STEPS.get(kind, 0) // (2 if quick else 1)
    runs = [
        (one(sys.executable, "accord", kind, folder, steps), one(interpreter, "peer", kind, folder, steps))
        for _ in range(rounds)
    ]
    ratios = [theirs["cpu"] / ours["cpu"] for ours, theirs in runs]
    if kind == "generate":
        apart = float(sum(ours["tokens"] != theirs["tokens"] for ours, theirs in runs))
    else:
        pairs = (zip(ours["losses"], theirs["losses"], strict=True) for ours, theirs in runs)
        apart = max(abs(a - b) / abs(b) for pair in pairs for a, b in pair)
    per, unit = (steps, "step") if kind in STEPS else (PROMPTS * NEW / 1000, "1000_tokens")
    middle = {n: statistics.median(run[i]["cpu"] for run in runs) / per for i, n in enumerate(("accord", "peer"))}
    memory = {n: statistics.median(run[i]["rss_mb"] for run in runs) for i, n in enumerate(("accord", "peer"))}
    ratio = statistics.median(ratios)
    return {
        "row": f"mamba_{kind}", "ratio": ratio, "low": min(ratios), "high": max(ratios), "at_least": AT_LEAST[kind],
        "aim": AIM[kind], "met": ratio >= AT_LEAST[kind] and apart < APART, f"cpu_s_per_{unit}": middle,
        "rss_mb": memory, "apart": apart,
    }  # fmt: skip


def table(lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        cpu = next((key, value) for key, value in line.items() if key.startswith("cpu_s_per_"))
        unit, rss = cpu[0].removeprefix("cpu_s_per_").replace("_", " "), line["rss_mb"]
        print(
            f"{line['row']:22} {line['ratio']:5.1f} x ({line['low']:.1f} to {line['high']:.1f}; at least"
            f" {line['at_least']:g}, aim {line['aim']:g})  CPU s per {unit} {cpu[1]['accord']:.3f} /"
            f" {cpu[1]['peer']:.3f}  MB {rss['accord']:.0f} / {rss['peer']:.0f}  apart by {line['apart']:.1e}"
        )
        print(json.dumps(line))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(AT_LEAST), help="one comparison")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--quick", action="store_true", help="half the training steps")
    parser.add_argument("--one", choices=["accord", "peer", "make"], help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run = {"accord": run_accord, "peer": run_peer, "make": lambda _, folder, __: make(folder)}[options.one]
        print(json.dumps(run(options.only, options.folder, options.steps)))
        return 0
    interpreter = str(python(*PEER))
    with tempfile.TemporaryDirectory() as folder:
        one(sys.executable, "make", "generate", folder)
        kinds = [options.only] if options.only else list(AT_LEAST)
        if options.quick and not options.only:
            kinds.remove("train_hf")  # nine seconds a step
        lines = [compare(kind, options.rounds, interpreter, folder, options.quick) for kind in kinds]
    table(lines)
    print(f"{sum(line['met'] for line in lines)} of {len(lines)} rows met")
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
