"""The whole pipeline on the small world, as a user runs it, seeds 0 to 4: an hour.

pytest -m slow tests/contracts/test_small_world.py
ACCORD_SEEDS=7,8 pytest -m slow tests/contracts/test_small_world.py     other seeds
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accord.cli import main

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[2]
SEEDS = tuple(map(int, os.environ.get("ACCORD_SEEDS", "0,1,2,3,4").split(",")))
GOLD = "ppo_lm.reward.source=accord.data.demo:gold_scores"
WITHOUT_CRITIC = ("ppo_lm.model.critic=shared_detached", "ppo_lm.training.vf_coef=0", "ppo_lm.training.gae_lambda=1.0")
"""Values that are never trained stay 0: advantages are the returns."""


class Worlds:
    """The pipeline's folder of each seed; a variant of PPO is trained and compared beside the stages it needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[tuple[int, tuple[str, ...]], dict[str, Any]] = {}

    def results(self, seed: int, *overrides: str) -> dict[str, Any]:
        """``results.json`` of a run of the pipeline with overrides; finished stages are reused."""
        if (seed, overrides) not in self.found:
            out, logs = self.folder / str(seed) / "out", self.logs(seed)
            pipeline = str(REPO / "configs" / "pipeline.yaml")
            assert main(["run", pipeline, f"seed={seed}", f"out={out}", f"logs={logs}", *overrides]) == 0
            found = json.loads((out / "results.json").read_text())
            rollouts = [json.loads(line) for line in (logs / "ppo_lm" / "metrics.jsonl").read_text().splitlines()]
            found["explained_variance"] = [
                row["rollout/explained_variance"] for row in rollouts if "rollout/explained_variance" in row
            ]
            self.found[seed, overrides] = found
        return self.found[seed, overrides]

    def logs(self, seed: int) -> Path:
        return self.folder / str(seed) / "logs"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("small_world"))


def objective(model: dict[str, Any], beta: float = 0.1) -> float:
    """What PPO maximizes: the reward model's score less the KL penalty, on held-out prompts."""
    return float(model["proxy_mean"] - beta * model["kl_mean"])


@pytest.mark.parametrize("seed", SEEDS)
def test_trained_policies_win_more_often_than_sft(worlds: Worlds, seed: int) -> None:
    results = worlds.results(seed)
    ppo, dpo, again = results["ppo"], results["dpo"], results["sft_again"]
    assert ppo["win_rate_vs_sft"] >= 0.85
    assert ppo["win_rate_ci95"][0] >= 0.80
    assert ppo["kl_mean"] <= 6
    assert ppo["eos_rate"] >= 0.98
    assert dpo["win_rate_vs_sft"] >= 0.70
    assert dpo["win_rate_ci95"][0] > 0.55
    assert dpo["kl_mean"] <= 15
    assert dpo["eos_rate"] >= 0.95
    assert results["reward"]["gold_agreement"] >= 0.78
    assert again["win_rate_ci95"][0] < 0.55
    assert again["win_rate_ci95"][1] > 0.45


@pytest.mark.parametrize("seed", SEEDS)
def test_with_the_true_gold_as_reward_ppo_wins_more(worlds: Worlds, seed: int) -> None:
    ppo = worlds.results(seed, GOLD)["ppo"]
    assert ppo["win_rate_vs_sft"] >= 0.90
    assert ppo["kl_mean"] <= 12


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_maximizes_its_objective_at_least_as_well_as_dpo(worlds: Worlds, seed: int) -> None:
    results = worlds.results(seed)
    assert objective(results["ppo"]) >= objective(results["dpo"])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_critic_explains_the_returns_that_it_bootstraps(worlds: Worlds, seed: int) -> None:
    """lambda = 0.95: advantages contain the critic's values.  Over the second half of training, any five rollouts in a row:
    the figure of a single one is of 64 replies, and noisy."""
    explained = worlds.results(seed)["explained_variance"]
    later = np.array(explained[len(explained) // 2 :])
    assert later.mean() > 0.2
    assert np.convolve(later, np.full(5, 0.2), "valid").min() > 0


def test_ppo_is_not_inferior_to_the_same_run_without_a_critic(worlds: Worlds) -> None:
    """Paired over the seeds: the lower end of the 95 % interval of the mean difference of win rates."""
    rates = [
        [worlds.results(seed, *overrides)["ppo"]["win_rate_vs_sft"] for seed in SEEDS]
        for overrides in ((), WITHOUT_CRITIC)
    ]
    gains = np.subtract(*rates)
    if len(gains) > 1:
        t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(gains), 2.6)  # of Student, two-sided 95 %
        low = gains.mean() - t * gains.std(ddof=1) / np.sqrt(len(gains))
    else:
        low = gains.mean()
    assert low > -0.03, gains.tolist()
