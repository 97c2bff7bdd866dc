"""The specified tiny PPO (configs/ppo_train.yaml: 500 steps, rollouts of 32, 128 observations, 50 actions, width 64)
against stable-baselines3, on the same random environment with the same settings, in alternating runs.

    python benchmarks/ppo_specified.py            five rounds, a minute
    python benchmarks/ppo_specified.py --quick    three rounds

Each run is a separate process with one thread: environment, networks and trainer are built, 16 rollouts of 32 steps
are collected and trained on for 4 epochs of one minibatch of 32, and the weights are written to a file.  CPU seconds
are those of the process.  One warm-up run excludes imports and kernel compilation; reading accord's settings is
excluded too, and neither side logs.  Both sides must have the same number of environment steps, optimizer steps and
parameters.  Needs the extras control and oracles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TIMESTEPS, N_STEPS, SEEN, ACTIONS, WIDTH, EPOCHS, BATCH = 500, 32, 128, 50, 64, 4, 32
AT_LEAST, AIM = 12.0, 20.0


class RandomEnvironment(gymnasium.Env[Any, Any]):
    """Random normal observations and rewards; an episode has 20 steps.  Its cost is negligible."""

    taken = 0

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (SEEN,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        self.at = 0

    def _see(self) -> np.ndarray:
        return self.np_random.standard_normal(SEEN, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return self._see(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        RandomEnvironment.taken += 1
        return self._see(), float(self.np_random.standard_normal()), self.at == 20, False, {}


def run_sb3(folder: str) -> dict[str, Any]:
    import torch
    import torch._dynamo  # otherwise the first optimizer imports it within the measured time
    from stable_baselines3 import PPO

    torch.set_num_threads(1)
    began = time.process_time()
    model = PPO(
        "MlpPolicy", RandomEnvironment(), n_steps=N_STEPS, batch_size=BATCH, n_epochs=EPOCHS, gamma=0.99, gae_lambda=0.95,
        clip_range=0.2, clip_range_vf=0.2, policy_kwargs={"net_arch": [WIDTH, WIDTH]}, seed=0, device="cpu",
    )  # fmt: skip
    model.learn(TIMESTEPS)
    torch.save(model.policy.state_dict(), f"{folder}/policy.pt")
    seconds = time.process_time() - began
    updates = model.policy.optimizer.state[next(model.policy.parameters())]["step"]
    count = sum(p.numel() for p in model.policy.parameters())
    return {"cpu": seconds, "steps": RandomEnvironment.taken, "updates": int(updates), "parameters": count}


def run_accord(folder: str) -> dict[str, Any]:
    import torch
    import torch._dynamo

    from accord.algorithms.ppo_control import StepTask, new_policy, train_on_steps
    from accord.config.control import ControlPPOConfig
    from accord.io.readers import read_yaml
    from accord.rollout.env.gym import open_vectors
    from accord.rollout.env.normalization import Normalizer
    from accord.runtime.run import Run, StageIdentity
    from accord.training.numpy_updater import NumpyUpdater

    class Silent(Run):
        """Writes nothing while it runs, like stable-baselines3 without a logger."""

        def say(self, text: str) -> None:
            pass

        def record(self, metrics: Any, prefix: str = "") -> None:
            pass

    torch.set_num_threads(1)
    sys.modules.setdefault("ppo_specified", sys.modules[__name__])
    updates = []
    step = NumpyUpdater.step
    NumpyUpdater.step = lambda *given: (updates.append(1), step(*given))[1]  # type: ignore[method-assign]
    values, _ = read_yaml(ROOT / "configs" / "ppo_train.yaml")
    sizes = values["model"]
    config = ControlPPOConfig(
        environment="ppo_specified:RandomEnvironment",
        model={"hidden_dim": sizes["hidden_dim"]},
        training={**values["training"], "num_epochs": EPOCHS, "batch_size": BATCH},
    )
    training = config.training
    found = (sizes["obs_dim"], sizes["action_dim"], sizes["hidden_dim"], training.n_steps)
    assert found == (SEEN, ACTIONS, WIDTH, N_STEPS), "configs/ppo_train.yaml is not what the peer is given"
    began = time.process_time()
    identity = StageIdentity("ppo", Path(folder) / "ppo", Path(folder) / "logs", config.seed)
    with Silent(identity, log_every=10**9, save_every=10**9) as run:
        vectors = open_vectors(config.environment, training.n_envs, lambda i, e: run.derive("environment", i, e))
        model = new_policy(vectors.spaces, config)
        normalizer = Normalizer(SEEN, training.n_envs, training.gamma, observations=False, rewards=False)
        train_on_steps(run, model, StepTask(vectors, normalizer, {}), training)
        torch.save(model.state_dict(), f"{folder}/policy.pt")
    seconds = time.process_time() - began
    count = sum(p.numel() for p in model.parameters())
    return {"cpu": seconds, "steps": RandomEnvironment.taken, "updates": len(updates), "parameters": count}


def one(who: str) -> dict[str, Any]:
    """A run in a separate process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--one", who]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    if done.returncode:
        raise SystemExit(f"{who}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--one", choices=["accord", "sb3"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side = run_accord if options.one == "accord" else run_sb3
        for _ in range(2):  # the first is the warm-up
            RandomEnvironment.taken = 0
            with tempfile.TemporaryDirectory() as folder:
                figures = side(folder)
        print(json.dumps(figures))
        return 0
    runs = [(one("accord"), one("sb3")) for _ in range(3 if options.quick else options.rounds)]
    ratios = [theirs["cpu"] / ours["cpu"] for ours, theirs in runs]
    ratio = statistics.median(ratios)
    middle = {name: statistics.median(run[i]["cpu"] for run in runs) for i, name in enumerate(("accord", "sb3"))}
    work = ("steps", "updates", "parameters")
    same = all(ours[key] == theirs[key] for ours, theirs in runs for key in work)
    line = {
        "row": "ppo_specified", "ratio": ratio, "low": min(ratios), "high": max(ratios), "at_least": AT_LEAST,
        "aim": AIM, "met": ratio >= AT_LEAST and same, "cpu_s": middle, "same_work": same,
        **{key: runs[0][0][key] for key in work},
    }  # fmt: skip
    print(
        f"{'ppo_specified':14} {ratio:5.1f} x ({min(ratios):.1f} to {max(ratios):.1f}; at least {AT_LEAST:g}, aim {AIM:g})"
        f"  CPU s {middle['accord']:.3f} / {middle['sb3']:.3f}  same work: {same}"
    )
    print(json.dumps(line))
    print(f"{int(bool(line['met']))} of 1 rows met")
    return 0 if line["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
