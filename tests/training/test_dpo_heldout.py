"""DPO's held-out accuracy is measured against the held-out pairs' own reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("turned", [False, True])
def test_held_out_pairs_meet_their_own_reference(stage: Any, world: Any, tmp_path: Path, turned: bool) -> None:
    """Held out are the training pairs in another order, as they are or turned around: all right, or all wrong.

    Against the reference of other pairs the lengths of the replies would decide.
    """
    rows = [json.loads(line) for line in Path(world.preferences).read_text(encoding="utf-8").splitlines()]
    swap = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"} if turned else {k: k for k in rows[0]}
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps({swap[k]: v for k, v in row.items()}) + "\n" for row in rows[::-1]))
    data = {"train": world.preferences, "heldout": str(heldout)}
    training = {"batch_size": 4, "num_epochs": 4, "learning_rate": 0.01}
    model = {"base_model": world.mamba, "max_length": 96}
    done = stage("dpo", {"model": model, "data": data, "training": training})
    assert done.done["metrics"]["heldout_accuracy"] == (0.0 if turned else 1.0)
