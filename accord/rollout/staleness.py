"""What is logged about a rollout that older weights sampled: ages, staleness apart from mismatch, and effective samples.

The ratio of old to behavior probabilities has two causes.  *Staleness*: the weights have been trained since.  *Mismatch*:
sampler and trainer compute differently (another dtype, kernel or chunk).  Tokens that the newest weights sampled show
the mismatch alone; older tokens show both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.corrections import effective_share, sequence_ratios, token_ratios
from accord.types import Rollout

AGE_BINS = (("0", 0, 0), ("1", 1, 1), ("2-3", 2, 3), ("4-7", 4, 7), ("8-15", 8, 15), ("16+", 16, 2**62))
"""The bins of the histogram of ages: name, first and last age."""


def token_ages(rollout: Rollout, version: int) -> Tensor:
    """(B, T) int64: rollouts trained on between the weights that sampled a token and ``version``; undefined under the mask."""
    return version - rollout.weight_versions


def is_stale(rollout: Rollout, version: int) -> bool:
    """Whether any token was sampled by weights other than ``version``."""
    return bool((token_ages(rollout, version) != 0)[rollout.generation.mask].any())


def staleness_metrics(rollout: Rollout, version: int, old_logprobs: Tensor) -> dict[str, float]:
    """Metrics of a rollout that is about to train the weights ``version``, whose log-probs (B, T) of it are ``old_logprobs``.

    Mismatch and staleness are mean and largest |log-ratio| over tokens of age 0 and over older ones, each absent where there
    are no such tokens.
    """
    mask, behavior = rollout.generation.mask, rollout.generation.logprobs
    ages = token_ages(rollout, version)[mask]
    apart = (old_logprobs - behavior)[mask].abs()
    found = {"age_mean": float(ages.float().mean()), "age_max": float(ages.max())}
    for name, low, high in AGE_BINS:
        found[f"age/{name}"] = float(((ages >= low) & (ages <= high)).float().mean())
    for name, where in (("mismatch", ages == 0), ("staleness", ages > 0)):
        if where.any():
            found |= {f"{name}_mean": float(apart[where].mean()), f"{name}_max": float(apart[where].max())}
    sequences = sequence_ratios(old_logprobs, behavior, mask)
    return {
        **found,
        "ess": effective_share(token_ratios(old_logprobs, behavior, mask), mask),
        "ess_replies": effective_share(sequences, torch.ones_like(sequences, dtype=torch.bool)),
    }
