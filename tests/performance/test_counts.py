"""What a training step costs, in numbers that do not depend on a busy machine: counted, not timed.

Floating-point operations of matrix products and attention, calls of torch operations, and the largest sum of tensors
alive at once, for one step of each trainer on rows that never change.  ``baselines.json`` holds what they were; a
change for the worse turns this red, and one for the better asks for a new baseline:

    python tests/performance/test_counts.py        prints what is counted now, in the form of baselines.json

Every change of that file belongs into ``docs/notebook.md`` with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from accord.algorithms import dpo, reward_model
from accord.algorithms.ppo import ppo_loss, score_texts
from accord.config.common import Optimizer
from accord.config.on_policy import PPOOptimizer
from accord.data.packing import pack_preferences, pack_supervised
from accord.data.preferences import PreferencePair
from accord.data.supervised import SupervisedExample
from accord.models.language import LanguageActorCritic
from accord.models.open import small_backbone
from accord.models.reward import RewardModel, ScalarHead
from accord.rollout.generate import Decoding, generate
from accord.training.cross_entropy import cross_entropy
from accord.training.updater import Updater
from accord.types import PolicyBatch, TextActions

BASELINES = Path(__file__).with_name("baselines.json")
VOCAB, EOS, PAD = 512, 1, 0
SLACK = {"gflop": 1.01, "calls": 1.02, "peak_mb": 1.05}


class Calls(TorchDispatchMode):
    """Counts operations as they reach a backend, those of the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def rows() -> list[PreferencePair]:
    rng = np.random.default_rng(0)
    opening = tuple(range(10, 22))  # a system prompt, say

    def words(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, VOCAB, rng.integers(low, high)))

    found = []
    for _ in range(4):
        prompt = (*opening, *words(10, 40))
        found += [PreferencePair(prompt, (*words(8, 60), EOS), (*words(8, 60), EOS)) for _ in range(2)]
    return found


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    return small_backbone(family, 64, 2, VOCAB, EOS, PAD)


def sft(family: str) -> Callable[[], Any]:
    model = tiny(family)
    masks = [(False,) * len(p.prompt) + (True,) * len(p.chosen) for p in rows()]
    packed = pack_supervised([SupervisedExample((*p.prompt, *p.chosen), m) for p, m in zip(rows(), masks, strict=True)])
    return stepping(model.parameters(), [packed], lambda b: cross_entropy(model, b))


def reward(family: str) -> Callable[[], Any]:
    model = RewardModel(tiny(family), ScalarHead(64), "mean")
    batch = pack_preferences(rows(), range(8))
    return stepping(model.parameters(), [batch], lambda b: reward_model.objective(model, b, "bradley_terry"))


def preference(family: str) -> Callable[[], Any]:
    model, batch = tiny(family), pack_preferences(rows(), range(8))
    known = torch.zeros(8, 2)
    return stepping(model.parameters(), [batch], lambda b: dpo.objective(model, b, known, 0.1, 0.0))


def ppo(family: str) -> Callable[[], Any]:
    policy = LanguageActorCritic(tiny(family), "shared")
    pairs = rows()
    lengths = torch.tensor([len(p.chosen) for p in pairs])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    responses = torch.full(mask.shape, PAD)
    responses[mask] = torch.tensor([i for p in pairs for i in p.chosen])
    zeros = torch.zeros(mask.shape)
    inputs = TextActions(tuple(p.prompt for p in pairs), responses, mask, zeros)
    batch = PolicyBatch(inputs, mask, zeros, zeros + 1.0, zeros, zeros)
    loss = ppo_loss(partial(score_texts, policy, 1.0), PPOOptimizer(), 0.2)
    return stepping(policy.parameters(), [batch], loss)


def rollout(family: str) -> Callable[[], Any]:
    model, prompts = tiny(family), [p.prompt for p in rows()[::2]]
    decoding = Decoding(24, EOS, PAD)
    return lambda: generate(model, prompts, decoding, range(4 * len(prompts)), 4)


def stepping(parameters: Any, batch: Any, objective: Any) -> Callable[[], Any]:
    updater = Updater([(parameters, 1e-3)], Optimizer(), 10)
    return lambda: updater.step(batch, objective)


WORK = {"sft": sft, "reward": reward, "dpo": preference, "ppo": ppo, "rollout": rollout}
CASES = [f"{name}/{family}" for name in WORK for family in ("transformer", "mamba")]


def counted(case: str) -> dict[str, float]:
    """Of the second step, when caches are filled and the optimizer has its moments."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        name, family = case.split("/")
        step = WORK[name](family)
        step()
        with FlopCounterMode(display=False) as flops, Calls() as calls:
            step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
    finally:
        torch.set_num_threads(threads)
    return {"gflop": flops.get_total_flops() / 1e9, "calls": calls.count, "peak_mb": _peak(seen) / 2**20}


def _peak(seen: Any) -> int:
    """The largest sum of allocations alive during the step, in bytes above where it began."""
    alive = largest = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        largest = max(largest, alive)
    return largest


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_no_more_than_it_did(case: str) -> None:
    found, known = counted(case), json.loads(BASELINES.read_text(encoding="utf-8"))[case]
    assert found.keys() == known.keys()
    for name, value in found.items():
        assert value <= known[name] * SLACK[name], f"{case}: {name} {value:.6g}, was {known[name]:.6g}"
        assert value >= known[name] / SLACK[name] ** 3, f"{case}: {name} is better: {value:.6g}; renew baselines.json"
        assert value > 0


def test_tokens_that_rows_share_are_computed_once() -> None:
    pairs = rows()
    packed = pack_preferences(pairs, range(len(pairs))).packed
    alone = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    prompts = {p.prompt for p in pairs}
    replies = sum(len(p.chosen) + len(p.rejected) for p in pairs)
    assert len(packed) == 12 + sum(len(p) - 12 for p in prompts) + replies
    assert len(packed) < 0.7 * alone


if __name__ == "__main__":
    print(json.dumps({case: {k: round(v, 6) for k, v in counted(case).items()} for case in CASES}, indent=2))
