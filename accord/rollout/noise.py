"""Counter-based sampling noise: the random number of a token depends on its reply's key and its position alone.

A reply is therefore the same alone and in any batch, and in every process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from accord.runtime.seeds import derive

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def reply_keys(seed: int, purpose: str, iteration: int, prompts: Sequence[int], samples: int = 1) -> list[int]:
    """A key for each reply, ``samples`` to each of ``prompts`` (indices in their file), prompt after prompt.

    A key is a hash of (seed, purpose, iteration, prompt, sample); a prompt that occurs again continues its samples.
    """
    used: Counter[int] = Counter()
    keys = []
    for prompt in prompts:
        first = used[prompt]
        keys += [derive(seed, purpose, iteration, prompt, first + sample) for sample in range(samples)]
        used[prompt] += samples
    return keys


def splitmix64(keys: Sequence[int], positions: int) -> np.ndarray:
    """(B, positions) uint64: the SplitMix64 stream of each key (Steele, Lea, Flood 2014), which needs no state."""
    counters = np.arange(1, positions + 1, dtype=np.uint64) * _INCREMENT
    z = np.array(keys, dtype=np.uint64)[:, None] + counters
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def uniforms(keys: Sequence[int], positions: int) -> Tensor:
    """(B, positions) float32, uniform on the 2^24 multiples of 2^-24 in [0, 1): one number for each token of a reply."""
    return torch.from_numpy((splitmix64(keys, positions) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))
