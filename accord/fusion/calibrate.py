"""Normalizes the scores of a merged reward model on given replies."""

from __future__ import annotations

from pathlib import Path

import torch

from accord.config.fusion import FuseConfig
from accord.data.packing import pack_preferences
from accord.data.preferences import PairLengths, PreferenceData, load_preferences
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.fusion.head import read_head, write_head
from accord.models.reward import RewardModel
from accord.runtime.device import resolve_device

ROWS = 32


def read_calibration(folder: Path, config: FuseConfig) -> PreferenceData:
    """The pairs to calibrate on, in the tokens of the model in ``folder``.  Raises UserError where the file has none."""
    lengths = PairLengths(max(1, config.max_length * 3 // 4), config.max_length)
    data = load_preferences(config.calibrate, Tokenizer.open(folder), lengths)
    if not data.pairs:
        raise UserError(f"calibrate: {config.calibrate} has no usable pairs; name another file.")
    return data


@torch.no_grad()
def calibrate(folder: Path, config: FuseConfig) -> tuple[float, float]:
    """Writes mean and standard deviation of the raw scores on the replies of ``config.calibrate`` to the head.

    Training a reward model ends in the same way.  The average of M models with standard deviation 1 has a smaller one:
    √((1 + (M − 1) ρ)/M) for scores with correlation ρ.  Raises UserError where the file has no pairs.
    """
    device = resolve_device(config.device)
    data = read_calibration(folder, config)
    model = RewardModel.open(folder).to(device).eval()
    scores = []
    for rows in torch.split(torch.arange(len(data.pairs)), ROWS):
        batch = pack_preferences([data.pairs[int(r)] for r in rows], rows.tolist()).to(device)
        scores.append(model.raw(batch.packed, torch.cat([batch.chosen, batch.rejected])).float().cpu())
    model.normalize(torch.cat(scores).to(device))
    shape, state = read_head(folder)
    mean, deviation = model.mean.cpu(), model.deviation.cpu()
    write_head(folder, shape, {**state, "mean": mean, "deviation": deviation})
    return float(mean), float(deviation)
