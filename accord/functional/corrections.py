"""Importance weights for actions that an older policy sampled, and how much they leave of a batch.

All take log-probs (B, T) of the same actions: ``old`` under the policy at the start of the updates, ``behavior`` under the
policy that sampled them.  A loss multiplied by the weights estimates what it would be on samples of the old policy.
Ratios are limited from above only: a small one is no cause of variance, and raising it would be a bias without a use.
Nothing here carries a gradient; masked numbers may be NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.masked import keep, masked_mean, same_shape, wide


@torch.no_grad()
def token_ratios(old: Tensor, behavior: Tensor, mask: Tensor) -> Tensor:
    """(B, T) exp(old - behavior) of each token; 0 under the mask.  Raises ValueError for shapes that differ."""
    same_shape(mask, old=old, behavior=behavior)
    return keep((wide(old) - wide(behavior)).exp(), mask)


@torch.no_grad()
def sequence_ratios(old: Tensor, behavior: Tensor, mask: Tensor) -> Tensor:
    """(B,) the product of each row's token ratios: the ratio of the whole reply's probabilities.

    Raises ValueError for shapes that differ.
    """
    same_shape(mask, old=old, behavior=behavior)
    return keep(wide(old) - wide(behavior), mask).sum(1).exp()


def truncated_token_weights(old: Tensor, behavior: Tensor, mask: Tensor, cap: float) -> Tensor:
    """(B, T) min(cap, ratio) of each token; 0 under the mask (truncated importance sampling, Ionides 2008).

    Per token the weight corrects the choice of this token and not how often its prefix was sampled.
    """
    return token_ratios(old, behavior, mask).clamp(max=cap)


def truncated_sequence_weights(old: Tensor, behavior: Tensor, mask: Tensor, cap: float) -> Tensor:
    """(B, T) min(cap, ratio of the whole reply) on each of its tokens; 0 under the mask.

    Without a limit the weighted mean over replies is unbiased.
    """
    weights = sequence_ratios(old, behavior, mask).clamp(max=cap)
    return keep(weights[:, None].expand(mask.shape), mask)


def decoupled_weights(old: Tensor, behavior: Tensor, mask: Tensor, cap: float) -> Tensor:
    """(B, T) the ratio of each token, 0 where it exceeds ``cap``, and 0 under the mask.

    Decoupled PPO (Hilton et al. 2021, arXiv 2110.00641, eq. 4; AReaL, arXiv 2505.24298, eq. 5) weights the clipped surrogate
    by pi_prox / pi_behavior, with the policy at the start of the updates as the proximal one.  The equations have no limit
    (``cap`` infinite); AReaL's code drops tokens above one.
    """
    ratios = token_ratios(old, behavior, mask)
    return torch.where(ratios > cap, 0.0, ratios)


@torch.no_grad()
def effective_share(weights: Tensor, mask: Tensor) -> float:
    """The effective sample size of the weights where ``mask`` is true, as a share of their number: (sum w)^2 / (n sum w^2).

    1 where all are equal (Kong 1992); 0 where nothing is counted, or no weight is above 0.  Scaling all weights changes
    nothing, so the largest one becomes 1 first: squares of large weights would overflow.
    """
    weights = keep(wide(weights), mask).double()
    largest = weights.max() if weights.numel() else weights.sum()
    if not largest > 0:
        return 0.0
    scaled = torch.ones_like(weights).where(weights == largest, weights / largest)
    return float(masked_mean(scaled, mask) ** 2 / masked_mean(scaled.square(), mask))
