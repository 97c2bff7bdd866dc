"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, eq. 2 with the simplified step for B, section 3.6).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t        y_t = C_t . h_t + D x_t

over segments that start at zero or where another segment ended: one prompt, read once, under several replies.

``E`` is the number of channels (d_inner), ``N`` the size of a channel's state, ``K`` the taps of the convolution.
Every scan takes

    x, dt (L, E) · A (E, N), negative · B, C (L, N) · D (E,) · offsets (S+1,) · parents (S,), int64, as in ``Packed``

with dt after its softplus, and gives y (L, E) and the state after each segment, (S, E, N).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reference_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, offsets: Tensor, parents: Tensor
) -> tuple[Tensor, Tensor]:
    """One token after another, as in the equations: the reference for the fast scans."""
    bounds = offsets.tolist()
    outputs: list[Tensor] = []
    finals: list[Tensor] = []
    for s, parent in enumerate(parents.tolist()):
        h = torch.zeros_like(A) if parent < 0 else finals[parent]
        for t in range(bounds[s], bounds[s + 1]):
            h = torch.exp(dt[t, :, None] * A) * h + (dt[t] * x[t])[:, None] * B[t]
            outputs.append(h @ C[t] + D * x[t])
        finals.append(h)
    return torch.stack(outputs), torch.stack(finals)


def causal_windows(x: Tensor, previous: Tensor, taps: int) -> Tensor:
    """(L, K, E): of x (L, E), a token's row after those of its K-1 predecessors in its text, zeros before the start.

    ``previous`` (L,) as in ``Packed``.
    """
    nowhere = len(x)
    follow = torch.cat([torch.where(previous < 0, nowhere, previous), previous.new_tensor([nowhere])])
    back = [torch.arange(nowhere, device=x.device)]
    for _ in range(taps - 1):
        back.append(follow[back[-1]])
    return F.embedding(torch.stack(back[::-1], 1), torch.cat([x, x.new_zeros(1, x.shape[1])]))


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, previous: Tensor) -> Tensor:
    """(L, E) SiLU of the depthwise convolution over the ``causal_windows`` of x (L, E).

    weight (E, 1, K) · bias (E,) · previous (L,), as in ``Packed``.
    """
    window = causal_windows(x, previous, weight.shape[2])
    return F.silu(torch.einsum("lke,ek->le", window, weight[:, 0]) + bias)
