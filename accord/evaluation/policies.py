"""Evaluation of a policy on a Gymnasium task: episodes with the most likely action, a learning curve, a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.config.control import ControlPPOConfig
from accord.io.atomic import replacing
from accord.io.installation import install_command
from accord.io.records import read_metrics
from accord.models.heads import AnyActorCritic
from accord.rollout.env.checked import CheckedEnvironment
from accord.rollout.env.gym import make_environment, open_vectors
from accord.rollout.env.normalization import Normalizer
from accord.runtime.run import Run

PARALLEL = 20
"""Episodes that run at once."""


@torch.no_grad()
def _act(model: AnyActorCritic, normalizer: Normalizer, observations: np.ndarray) -> np.ndarray:
    """The most likely actions at (n, obs_dim) raw observations, with frozen normalization."""
    normalized = torch.from_numpy(normalizer.observations(observations, learn=False))
    device = next(model.parameters()).device
    actions: np.ndarray = model.get_action_and_value(normalized.to(device), deterministic=True)[0].cpu().numpy()
    return actions


def evaluate(config: ControlPPOConfig, run: Run, model: AnyActorCritic, normalizer: Normalizer) -> dict[str, float]:
    """Returns of ``evaluation.episodes`` episodes, in the task's unscaled rewards.

    Environments and seeds are the same each time and separate from training, whose random state is not used.
    """
    episodes, returns, lengths, cut = config.evaluation.episodes, [], [], 0
    for first in range(0, episodes, PARALLEL):
        numbers = range(first, min(first + PARALLEL, episodes))
        part, steps, active = _run_episodes(config, run, model, normalizer, numbers)
        returns.append(part)
        lengths.append(steps)
        cut += int(active.sum())
    all_returns = np.concatenate(returns)
    return {
        "eval_return": float(all_returns.mean()),
        "eval_return_std": float(all_returns.std()),
        "eval_return_min": float(all_returns.min()),
        "eval_length": float(np.concatenate(lengths).mean()),
        "eval_cut": float(cut),
    }


def _run_episodes(
    config: ControlPPOConfig, run: Run, model: AnyActorCritic, normalizer: Normalizer, numbers: range
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) returns, (n,) lengths, and (n,) bool, true where ``max_steps`` cut the episode off.

    One episode in each of n environments, so that short episodes are not overrepresented.
    """
    n = len(numbers)
    vectors = open_vectors(
        config.environment,
        n,
        lambda i, episode: run.derive("evaluation", numbers[i], episode),
        config.environment_args,
    )
    returns, lengths, active = np.zeros(n), np.zeros(n), np.ones(n, dtype=bool)
    for _ in range(config.evaluation.max_steps):
        stepped = vectors.step(_act(model, normalizer, vectors.observations))
        returns += stepped.rewards * active
        lengths += active
        active &= ~(stepped.terminated | stepped.truncated)
        if not active.any():
            break
    vectors.close()
    return returns, lengths, active


def write_curve(config: ControlPPOConfig, run: Run) -> None:
    """Writes ``curve.png`` from the run's metrics, or a note where matplotlib is not installed."""
    if not config.evaluation.curve:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        run.say(f"no curve.png: matplotlib is not installed ({install_command('control')})")
        return
    rows = read_metrics(run.logs / "metrics.jsonl")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (
        ("rollout/episode_return", "training (episodes of each rollout)", "-"),
        ("rollout/eval_return", f"evaluation ({config.evaluation.episodes} episodes, deterministic)", "o"),
    ):
        points = [(row["rollout/timesteps"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(xlabel="environment steps", ylabel="return", title=f"{config.environment}, seed {config.seed}")
    axes.legend()
    axes.grid(alpha=0.3)
    with replacing(run.directory / "curve.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    run.say(f"wrote {run.directory / 'curve.png'}")


def write_video(config: ControlPPOConfig, run: Run, model: AnyActorCritic, normalizer: Normalizer) -> None:
    """Writes ``episode.gif`` where ``evaluation.video`` is set, or a note on why it cannot be made."""
    if not config.evaluation.video:
        return
    import gymnasium

    try:
        from PIL import Image
    except ImportError:
        run.say(f"no episode.gif: Pillow is not installed ({install_command('control')})")
        return
    environment = make_environment(config.environment, config.environment_args, render_mode="rgb_array")
    try:
        frames = [
            Image.fromarray(np.asarray(frame)).reduce(2)
            for frame in _frames(config, run, model, normalizer, environment)
        ]
    except (gymnasium.error.Error, ImportError) as error:
        run.say(f"no episode.gif: {error}")
        return
    finally:
        environment.close()
    if not frames:
        run.say(f"no episode.gif: {config.environment} does not render (render_mode rgb_array)")
        return
    _write_gif(run.directory / "episode.gif", frames, 2000 // environment.metadata.get("render_fps", 30))
    run.say(f"wrote {run.directory / 'episode.gif'} ({len(frames)} frames, every second step)")


def _frames(
    config: ControlPPOConfig, run: Run, model: AnyActorCritic, normalizer: Normalizer, environment: CheckedEnvironment
) -> Iterator[Any]:
    """Every second frame of one episode."""
    observation, _ = environment.reset(seed=run.derive("evaluation", 0, 0) % 2**31)
    for step in range(config.evaluation.max_steps):
        if step % 2 == 0 and (frame := environment.render()) is not None:
            yield frame
        action = environment.spaces.to_task(_act(model, normalizer, observation[None]))[0]
        observation, _, terminated, truncated, _ = environment.step(action)
        if terminated or truncated:
            return


def _write_gif(path: Path, frames: list[Any], milliseconds: int) -> None:
    first, *rest = frames
    with replacing(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
