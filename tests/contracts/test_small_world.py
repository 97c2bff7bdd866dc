"""The whole pipeline on the small world, as a user runs it: minutes.  pytest -m slow tests/contracts/test_small_world.py"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[2]
SEED = os.environ.get("ACCORD_SEED", "0")


def run(out: Path, *overrides: str) -> dict[str, Any]:
    pipeline = str(REPO / "configs" / "pipeline.yaml")
    assert main(["run", pipeline, f"seed={SEED}", f"out={out / 'c'}", f"logs={out / 'l'}", *overrides]) == 0
    return dict(json.loads((out / "c" / "results.json").read_text()))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small_world")


def test_the_trained_policy_wins_more_often_than_sft(out: Path) -> None:
    results = run(out)
    for name in ("ppo", "dpo"):
        model = results[name]
        assert model["win_rate_vs_sft"] >= 0.70, name
        assert model["win_rate_ci95"][0] > 0.55, name
        assert model["kl_mean"] <= 15, name
        assert model["eos_rate"] >= 0.95, name
    assert results["reward"]["gold_agreement"] >= 0.78
    again = results["sft_again"]
    assert again["win_rate_ci95"][0] < 0.55
    assert again["win_rate_ci95"][1] > 0.45


def test_with_the_true_gold_as_reward_ppo_wins_more(out: Path) -> None:
    results = run(out, "ppo_lm.reward.source=accord.data.demo:gold_scores")
    assert results["ppo"]["win_rate_vs_sft"] >= 0.80
