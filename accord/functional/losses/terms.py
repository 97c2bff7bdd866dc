"""Several losses over one count become one."""

from __future__ import annotations

import torch

from accord.types import LossOutput, Mean


def combine(*terms: tuple[float, LossOutput]) -> LossOutput:
    """The weighted sum of losses over the same count, with all their metrics.

    Raises ValueError where two terms name the same metric.
    """
    metrics: dict[str, Mean] = {}
    for _, term in terms:
        if doubled := metrics.keys() & term.metrics.keys():
            raise ValueError(f"two losses report {', '.join(sorted(doubled))}")
        metrics.update(term.metrics)
    total = torch.stack([weight * term.loss.total for weight, term in terms]).sum()
    return LossOutput(Mean(total, terms[0][1].loss.count), metrics)
