"""The scores of a merged reward model: centered and scaled again on replies that the user names."""

from __future__ import annotations

from pathlib import Path

import torch

from accord.config.fusion import FuseConfig
from accord.data.packing import pack_preferences
from accord.data.preferences import PairLengths, load_preferences
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.fusion.head import read_head, write_head
from accord.models.reward import RewardModel
from accord.runtime.device import resolve_device

ROWS = 32


@torch.no_grad()
def calibrate(folder: Path, config: FuseConfig) -> tuple[float, float]:
    """Measures mean and deviation of the raw scores on the replies of ``config.calibrate`` and writes them to the head.

    The end of a reward model's training does the same.  An average of M models calibrated to deviation 1 has a smaller one: scores
    that agree with correlation ρ only have √((1 + (M − 1) ρ)/M).  Raises UserError where the file has no pairs.
    """
    device = resolve_device(config.device)
    lengths = PairLengths(max(1, config.max_length * 3 // 4), config.max_length)
    data = load_preferences(config.calibrate, Tokenizer.open(folder), lengths)
    if not data.pairs:
        raise UserError(f"calibrate: {config.calibrate} has no pairs that can be used; name another file.")
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
