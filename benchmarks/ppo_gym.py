"""Plain PPO against stable-baselines3 on CartPole-v1: the same settings, the same Gymnasium, one core, alternating runs.

    python benchmarks/ppo_gym.py               10 seeds each, some minutes
    python benchmarks/ppo_gym.py --quick       3 seeds, 30,000 steps each

Each run is a separate process with one thread.  It stops at the end of the first rollout after which the mean return
of the last 100 training episodes is 475 or more, or after 100,000 steps.  CPU seconds are those of the process, counted
from the first rollout on: imports, construction and a short warm-up training are excluded on both sides.
Needs the extras control and oracles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOAL, BUDGET, AT_LEAST, AIM = 475.0, 100_000, 4.0, 10.0
WARM_UP = 512  # untimed steps, in the same process
QUICK = {"seeds": 3, "steps": 30_000}  # fewer than 2,000 optimizer steps would run without compiled passes
# rl-baselines3-zoo's settings for CartPole-v1; ours, in configs/recipes/cartpole.yaml, are the same.
SB3: dict[str, Any] = {
    "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
    "learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.2 * left, "vf_coef": 0.5,
}  # fmt: skip


def run_sb3(seed: int, budget: int) -> dict[str, float]:
    """Steps to the goal (0: not reached), steps taken and CPU seconds."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)

    class UntilGoal(BaseCallback):
        def _on_training_start(self) -> None:
            self.episodes: deque[float] = deque(maxlen=100)
            self.reached, self.began = 0, time.process_time()

        def _on_step(self) -> bool:
            self.episodes += (info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            return not self.reached

        def _on_rollout_end(self) -> None:
            if len(self.episodes) == 100 and statistics.fmean(self.episodes) >= GOAL:
                self.reached = self.num_timesteps

    def new() -> PPO:
        return PPO("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=seed), seed=seed, device="cpu", **SB3)

    new().learn(WARM_UP)
    until, model = UntilGoal(), new()
    model.learn(budget, callback=until)
    return {"reached": until.reached, "steps": model.num_timesteps, "cpu": time.process_time() - until.began}


def run_accord(seed: int, budget: int) -> dict[str, float]:
    """The same for accord, through the public command; the return is read from a rollout's line of metrics."""
    from accord.cli import main
    from accord.runtime.run import Run

    seen: dict[str, float] = {"reached": 0, "steps": 0, "cpu": 0.0}
    began = 0.0
    begin, record = Run.begin, Run.record

    class Reached(BaseException):
        pass

    def begun(run: Run, *given: Any) -> None:
        nonlocal began
        begin(run, *given)
        began = time.process_time()

    def recorded(run: Run, metrics: Any, prefix: str = "") -> None:
        record(run, metrics, prefix)
        if "episode_return_100" in metrics:
            seen.update(steps=metrics["timesteps"], cpu=time.process_time() - began)
            if metrics["episodes"] >= 100 and metrics["episode_return_100"] >= GOAL:
                seen["reached"] = metrics["timesteps"]
                raise Reached

    def train(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            recipe = str(ROOT / "configs" / "recipes" / "cartpole.yaml")
            given = [f"seed={seed}", f"out={folder}", f"logs={folder}/logs", "evaluation.episodes=0"]
            main(["ppo", "--config", recipe, f"training.total_timesteps={steps}", *given])

    train(WARM_UP)
    Run.begin, Run.record = begun, recorded  # type: ignore[method-assign]
    with contextlib.suppress(Reached):
        train(budget)
    return seen


def one(who: str, seed: int, budget: int) -> dict[str, float]:
    """A run in a separate process."""
    command = [sys.executable, __file__, "--one", who, "--seeds", str(seed), "--steps", str(budget)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    if done.returncode:
        raise SystemExit(f"{who}, seed {seed}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    reached = [r for r in runs if r["reached"]]
    return {
        "success_rate": len(reached) / len(runs),
        "steps_to_goal": statistics.median(r["reached"] for r in reached) if reached else float("nan"),
        "cpu_to_goal": statistics.median(r["cpu"] for r in reached) if reached else float("nan"),
        "steps_per_cpu_second": statistics.median(r["steps"] / r["cpu"] for r in runs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each side")
    parser.add_argument("--steps", type=int, default=BUDGET, help="environment steps of a run at most")
    parser.add_argument("--quick", action="store_true", help="3 seeds, 30,000 steps each")
    parser.add_argument("--one", choices=["accord", "sb3"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps((run_accord if options.one == "accord" else run_sb3)(options.seeds, options.steps)))
        return 0
    if options.quick:
        options.seeds, options.steps = QUICK["seeds"], QUICK["steps"]
    runs: dict[str, list[dict[str, float]]] = {"accord": [], "sb3": []}
    for seed in range(options.seeds):
        for who, done in runs.items():
            done.append(one(who, seed, options.steps))
            print(f"seed {seed}  {who:6}  " + "  ".join(f"{k} {v:,.2f}" for k, v in done[-1].items()), file=sys.stderr)
    ours, theirs = summary(runs["accord"]), summary(runs["sb3"])
    ratios = sorted(
        (a["steps"] / a["cpu"]) / (b["steps"] / b["cpu"]) for a, b in zip(runs["accord"], runs["sb3"], strict=True)
    )
    ratio = ours["steps_per_cpu_second"] / theirs["steps_per_cpu_second"]
    met = ratio >= AT_LEAST
    print(f"{'CartPole-v1':22}{'accord':>12}{'sb3':>12}")
    for name in ours:
        print(f"{name:22}{ours[name]:12,.2f}{theirs[name]:12,.2f}")
    print(f"environment steps per CPU second: {ratio:.1f} x ({ratios[0]:.1f} to {ratios[-1]:.1f}); at least 4, aim 10")
    line = {"row": "ppo_gym", "ratio": ratio, "low": ratios[0], "high": ratios[-1], "accord": ours, "sb3": theirs}
    print(json.dumps({**line, "at_least": AT_LEAST, "aim": AIM, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
