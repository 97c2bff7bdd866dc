"""The one way to derive a seed: a hash of (seed, purpose, counters), so that randomness needs no state to be resumed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A seed in 0 … 2^56 − 1 for one purpose and counters, the same in every process and after every resume."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def generator(seed: int, purpose: str, *counters: int, device: str = "cpu") -> torch.Generator:
    """A torch generator with that seed."""
    import torch

    return torch.Generator(device).manual_seed(derive(seed, purpose, *counters))
