"""DPO says so where chosen and rejected replies have both become less likely, though their margin rose (trap 52)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from accord.algorithms import dpo
from accord.functional.losses.preference import dpo_loss
from accord.training.last_metrics import LastMetrics


def test_the_margin_rises_while_both_fall() -> None:
    """By hand: the chosen reply loses a nat, the rejected one three; both stand in the metrics."""
    reference, policy = (-2.0, -2.0), (-3.0, -5.0)
    out = dpo_loss(*(torch.tensor([x]) for x in (*policy, *reference)), beta=0.5)
    found = {name: mean.value() for name, mean in out.metrics.items()}
    assert (found["margin"], found["accuracy"]) == (1.0, 1.0)
    assert (found["chosen_reward"], found["rejected_reward"]) == (-0.5, -1.5)
    assert (found["chosen_logprob"], found["rejected_logprob"]) == policy


@pytest.mark.parametrize(("chosen", "rejected", "said"), [(-0.1, -2.0, True), (0.1, -2.0, False), (0.3, 0.1, False)])
def test_the_note(
    stage: Any, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: float, rejected: float, said: bool
) -> None:
    def trained(*_: object) -> LastMetrics:
        return LastMetrics({"chosen_reward": chosen, "rejected_reward": rejected})

    monkeypatch.setattr(dpo, "train_epochs", trained)
    data = {"train": world.preferences, "heldout_fraction": 0.0}
    stage("dpo", {"model": {"base_model": world.transformer, "max_length": 96}, "data": data})
    log = (tmp_path / "logs" / "dpo" / "dpo.log").read_text(encoding="utf-8")
    assert ("chosen and rejected log-probs both fell" in log) is said
