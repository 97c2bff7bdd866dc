"""Normalization of hidden states."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from accord.functional.masked import wide


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension, computed in float32 at least (Zhang & Sennrich 2019)."""
    x_wide = wide(x)
    return F.rms_norm(x_wide, weight.shape, weight.to(x_wide.dtype), eps).to(x.dtype)
