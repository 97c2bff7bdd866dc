"""How the cost of a training step grows: CPU seconds and memory per token at 1, 4 and 16 times the tokens, and 1 and 4
times the vocabulary.

    python benchmarks/growth.py [--rounds 3]

A Llama of width 128, 2 layers, vocabulary 2048; SFT and DPO; texts of 96 and pairs of 32 + 64 + 64 tokens; 8, 32 and
128 SFT rows, half as many pairs.  Text lengths are fixed, since attention is quadratic in the length.
Memory is the largest sum of tensors alive in a step relative to the start of the step, without the gradients.  Each
figure is the minimum over the rounds, which alternate between sizes.

Rows (met where the ratio is at least 1):  time and memory per token at 1x over that at 16x, allowed to grow 1.15
times; time per counted operation at 1x over that at 4x the vocabulary, since the head's work grows with it; memory
at 4x the vocabulary, which should be constant, so 1.15 times again.  The vocabulary is varied at 16 times the tokens, where
buffers of the size of the embedding, which do not depend on tokens, matter little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from side_by_side import Figures, finish, say

ALLOWED = 1.15
WIDTH, VOCAB, ROWS = 128, 2048, 8


def step_of(kind: str, times: int, vocab: int) -> tuple[Callable[[], Any], int, int]:
    """A training step, its tokens, and the bytes of its gradients."""
    import torch

    from accord.algorithms import dpo
    from accord.config.common import Optimizer
    from accord.data.packing import pack_preferences, pack_supervised
    from accord.data.preferences import PreferencePair
    from accord.data.supervised import SupervisedExample
    from accord.models.transformer import small_transformer
    from accord.training.cross_entropy import cross_entropy
    from accord.training.updater import Updater

    torch.manual_seed(0)
    chance = np.random.default_rng(0)
    model = small_transformer(WIDTH, 2, vocab, 1, 0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(int(i) for i in chance.integers(3, VOCAB, n))

    updater = Updater([(list(model.parameters()), 1e-4)], Optimizer(), 10**6)
    grads = 4 * sum(p.numel() for p in model.parameters())
    if kind == "sft":
        mask = (False,) * 32 + (True,) * 64
        packed = pack_supervised([SupervisedExample(words(96), mask) for _ in range(ROWS * times)])
        return lambda: updater.step([packed], lambda b: cross_entropy(model, b)), len(packed), grads
    n = ROWS * times // 2
    batch = pack_preferences([PreferencePair(words(32), words(64), words(64)) for _ in range(n)], range(n))
    known = torch.zeros(n, 2)
    return lambda: updater.step([batch], lambda b: dpo.objective(model, b, known, 0.1, 0.0)), len(batch.packed), grads


def peak_bytes(step: Callable[[], Any]) -> int:
    """The largest sum of tensors alive during a step, in bytes relative to its start."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        largest = max(largest, alive)
    return largest


def operations(step: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        step()
    return counted.get_total_flops()


def measure(kind: str, rounds: int) -> list[Figures]:
    sizes = {(1, VOCAB): 0.0, (4, VOCAB): 0.0, (16, VOCAB): 0.0, (16, 4 * VOCAB): 0.0}
    work = {size: step_of(kind, *size) for size in sizes}
    memory, flops = {}, {}
    for size, (step, tokens, grads) in work.items():
        step()  # initializes the optimizer's state
        memory[size], flops[size] = (peak_bytes(step) - grads) / tokens, operations(step)
    seconds = dict.fromkeys(sizes, float("inf"))
    for _ in range(rounds):
        for size, (step, tokens, _grads) in work.items():
            repeat = max(1, 8 // size[0])
            began = time.process_time()
            for _ in range(repeat):
                step()
            seconds[size] = min(seconds[size], (time.process_time() - began) / repeat / tokens)
    small, base, large, wide = sizes
    operation = {size: seconds[size] * work[size][1] / flops[size] for size in sizes}
    found = {
        "tokens16_time": max(seconds[large], seconds[base]) / seconds[small],
        "tokens16_memory": max(memory[large], memory[base]) / memory[small],
        "vocabulary4_time_per_operation": operation[wide] / operation[large],
        "vocabulary4_memory": memory[wide] / memory[large],
    }
    lines = []
    for name, grown in found.items():
        ratio = ALLOWED / grown
        lines.append(
            {"row": f"growth_{kind}_{name}", "ratio": ratio, "low": ratio, "high": ratio, "grown": grown,
             "at_least": 1.0, "aim": ALLOWED, "met": ratio >= 1.0}
        )  # fmt: skip
    for size in sizes:
        print(f"{kind} {size}: {seconds[size] * 1e6:.0f} us, {memory[size] / 1024:.1f} kB, a token")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    import torch

    from accord.runtime.allocator import keep_memory

    torch.set_num_threads(1)
    keep_memory()
    lines = [line for kind in ("sft", "dpo") for line in measure(kind, rounds)]
    for line in lines:
        say(line, f" grown by {line['grown']:.2f}, at most {ALLOWED}")
    return finish(lines)


if __name__ == "__main__":
    sys.exit(main())
