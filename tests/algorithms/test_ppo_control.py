"""PPO on Gymnasium's tasks: what is trained on, which files are written, and the returns that the recipes reach."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accord.algorithms.ppo_control import networks_for, new_collector, prepare_steps, rollout_loop
from accord.config.load import load
from accord.config.on_policy import StepsPPOOptimizer
from accord.config.ppo import PPO
from accord.errors import UserError
from accord.models.heads import (
    ActorCritic,
    AnyActorCritic,
    GaussianActorCritic,
    MultiDiscreteActorCritic,
    numpy_networks,
)
from accord.pipeline.stage import run_stage
from accord.rollout.env.collect import StepActor, StepCollector
from accord.rollout.env.episodes import EpisodeVectors, Stepped, Vectors
from accord.rollout.env.gym import open_vectors
from accord.rollout.env.normalization import Normalizer
from accord.rollout.env.spaces import Spaces
from accord.runtime.run import Run
from accord.training.numpy_updater import NumpyUpdater
from accord.training.policy_loss import ClippedSurrogate, PolicyLoss
from accord.training.updater import Updater
from accord.types import VectorActions

NewRun = Callable[..., Run]
REPO = Path(__file__).parents[2]


def values(environment: str, **changes: Any) -> dict[str, Any]:
    training = {"total_timesteps": 128, "n_steps": 32, "n_envs": 2, "batch_size": 16, "num_epochs": 2}
    return {
        "model": {"policy": "control", "hidden_dim": 16},
        "environment": environment,
        "training": {**training, **changes.pop("training", {})},
        "evaluation": {"episodes": 2, "max_steps": 20, "curve": False, **changes.pop("evaluation", {})},
        **changes,
    }


def collector(
    run: Run, model: AnyActorCritic, vectors: Vectors, normalizer: Normalizer, quick: bool = True, **training: Any
) -> StepCollector:
    settings = StepsPPOOptimizer(n_envs=len(vectors.observations), **training)
    return new_collector(run, StepActor(model, numpy_networks(model) if quick else None), vectors, normalizer, settings)


# ------------------------------------------------------------------------------------- steps to a batch
class Scripted:
    """Two environments that show (number, episode, step) and give the step as reward.

    The first resets within the step: it ends at step 3 and, in every other episode, is truncated at step 2.
    The second waits one step after each end, as autoreset at the next step does; it is cut at step 3.
    """

    def __init__(self, continuous: bool) -> None:
        bounds = np.ones(2, dtype=np.float32)
        self.spaces = Spaces(3, 2, continuous, 0, -bounds, bounds)
        self.at = [[0, 0], [0, 0]]
        self.waiting = np.zeros(2, dtype=bool)
        self.actions: list[np.ndarray] = []

    def _seen(self) -> np.ndarray:
        return np.array([[i, *at] for i, at in enumerate(self.at)], dtype=np.float32)

    @property
    def observations(self) -> np.ndarray:
        return self._seen()

    def step(self, actions: np.ndarray) -> Stepped:
        self.actions.append(actions)
        valid = ~self.waiting
        rewards, terminated, truncated = np.zeros(2), np.zeros(2, dtype=bool), np.zeros(2, dtype=bool)
        for i in range(2):
            if self.waiting[i]:
                self.at[i] = [self.at[i][0] + 1, 0]
            else:
                self.at[i][1] += 1
                rewards[i] = self.at[i][1]
        terminated[0] = self.at[0][1] == 3
        truncated[0] = self.at[0][1] == 2 and self.at[0][0] % 2 == 1
        truncated[1] = valid[1] and self.at[1][1] == 3
        final = self._seen()
        if terminated[0] or truncated[0]:
            self.at[0] = [self.at[0][0] + 1, 0]
        self.waiting = np.array([False, bool(truncated[1])])
        return Stepped(rewards, terminated, truncated, valid, final)

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_no_transition_crosses_the_end_of_an_episode(
    new_run: NewRun, continuous: bool, normalize: bool, quick: bool
) -> None:
    """Truncation is bootstrapped and resets are masked, against a plain loop over each environment's scripted episodes."""
    torch.manual_seed(0)
    model = GaussianActorCritic(3, 2, 8) if continuous else ActorCritic(3, 2, 8)
    vectors = Scripted(continuous)
    normalizer = Normalizer(3, 2, 0.99, observations=False, rewards=False)
    rollout = collector(new_run(), model, vectors, normalizer, quick, n_steps=13).collect(0)
    batch, stats = prepare_steps(rollout, 0.1, normalize)  # without a reference the KL coefficient does nothing
    assert isinstance(batch.inputs, VectorActions)
    seen = batch.inputs.observations.reshape(13, 2, 3)

    def value(*state: float) -> float:
        return float(model.value(torch.tensor([state], dtype=torch.float32)).detach())

    valid, advantages = batch.mask.reshape(13, 2), torch.zeros(13, 2)
    for i in range(2):
        carried, following = 0.0, value(*map(float, vectors.observations[i]))
        for t in reversed(range(13)):
            _, episode, step = map(int, seen[t, i])
            if i == 1 and step == 3:  # the final observation, on which nothing was done
                assert not valid[t, i]
                continue
            assert valid[t, i]
            over = i == 0 and step == 2
            cut = (i == 1 and step == 2) or (i == 0 and step == 1 and episode % 2 == 1)
            if over or cut:
                carried, following = 0.0, value(i, episode, step + 1) if cut else 0.0
            now = value(i, episode, step)
            carried = step + 1 + 0.99 * following - now + 0.99 * 0.95 * carried
            advantages[t, i], following = carried, now
    if normalize:
        some = advantages[valid]
        advantages = torch.where(valid, (advantages - some.mean()) / some.std(correction=0), 0.0)
    torch.testing.assert_close(batch.advantages.reshape(13, 2)[valid], advantages[valid], rtol=1e-4, atol=1e-5)
    assert int((~valid).sum()) == 3
    metrics = stats.metrics
    assert metrics["episodes"] == metrics["replies"] == stats.replies == 5 + 3
    # the first: 1+2+3, 1+2, 1+2+3, 1+2, 1+2+3 in 13 steps; the second 1+2+3 thrice
    assert metrics["episode_return"] == pytest.approx((3 * 6 + 2 * 3 + 3 * 6) / 8)
    assert metrics["timesteps"] == 26
    assert metrics["kl"] == stats.kl == 0.0
    log_probs, found, _ = model.evaluate(batch.inputs.observations, batch.inputs.actions)
    torch.testing.assert_close(log_probs[:, None], batch.old_logprobs)
    torch.testing.assert_close(found[:, None], batch.values)


class ScriptedEpisode:
    """Observes (episode, step); rewards 1 a step; ends at step 3, and is truncated at step 2 in every other episode."""

    def __init__(self) -> None:
        self.episode = -1
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0.0], dtype=np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        cut = self.steps == 2 and self.episode % 2 == 1
        seen = np.array([self.episode, self.steps], dtype=np.float32)
        return seen, 1.0, self.steps == 3, cut, {"ref_logprob": -0.5}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_kl_to_a_reference_is_a_penalty_on_each_step(new_run: NewRun, quick: bool, beta: float) -> None:
    """Truncation and resets as well, against a loop that knows the script; for token environments and Gymnasium tasks."""
    torch.manual_seed(0)
    model = ActorCritic(2, 2, 8)
    vectors = EpisodeVectors([ScriptedEpisode()], Spaces(2, 2), lambda i, e: 0, with_reference=True)
    plain = Normalizer(2, 1, 0.99, observations=False, rewards=False)
    rollout = collector(new_run(), model, vectors, plain, quick, n_steps=8).collect(0)
    batch, stats = prepare_steps(rollout, beta, normalize=False)
    seen = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    after: dict[int, tuple[int, int] | None] = {0: (0, 1), 1: (0, 2), 2: None, 3: (1, 1), 4: (1, 2), 5: (2, 1)}
    after |= {6: (2, 2), 7: None}
    assert isinstance(batch.inputs, VectorActions)
    assert batch.inputs.observations.tolist() == [list(map(float, s)) for s in seen]

    def value(state: tuple[int, int]) -> float:
        return float(model.value(torch.tensor([state], dtype=torch.float32)).detach())

    carried, expected = 0.0, [0.0] * 8
    for t in reversed(range(8)):
        reward = 1.0 - beta * (float(batch.old_logprobs[t]) + 0.5)
        state = after[t]
        delta = reward + 0.99 * (0.0 if state is None else value(state)) - value(seen[t])
        carried = delta + (0.0 if t in (2, 4, 7) else 0.99 * 0.95 * carried)
        expected[t] = carried
    torch.testing.assert_close(batch.advantages[:, 0], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.returns, batch.advantages + batch.values)
    assert stats.metrics["episodes"] == stats.replies == 3
    assert stats.metrics["episode_return"] == pytest.approx((3 + 2 + 3) / 3)  # the task's own, without the KL
    kl = sum(float(batch.old_logprobs[t]) + 0.5 for t in range(8))
    assert stats.kl == stats.metrics["kl"] == pytest.approx(kl / 3, rel=1e-5)
    assert abs(stats.kl) > 0.1


def test_real_valued_actions_are_trained_on_as_drawn(new_run: NewRun) -> None:
    """What is stored is what was drawn, beyond the bounds too; the task clips."""
    vectors = open_vectors("Pendulum-v1", 2, lambda i, episode: i)
    torch.manual_seed(0)
    model = GaussianActorCritic(3, 1, 8, log_std=1.5)
    rollout = collector(new_run(), model, vectors, Normalizer(3, 2, 0.9, False, False), n_steps=32).collect(0)
    batch, _ = prepare_steps(rollout, 0.0, normalize=True)
    assert isinstance(batch.inputs, VectorActions)
    assert batch.inputs.actions.shape == (64, 1)
    assert batch.inputs.actions.abs().max() > 2
    log_probs, _, _ = model.evaluate(batch.inputs.observations, batch.inputs.actions)
    torch.testing.assert_close(log_probs[:, None], batch.old_logprobs)


def test_rewards_are_scaled_for_learning_and_reported_as_they_are(new_run: NewRun) -> None:
    torch.manual_seed(0)
    model = ActorCritic(3, 2, 8)
    normalizer = Normalizer(3, 2, 0.99, observations=True, rewards=True)
    rollout = collector(new_run(), model, Scripted(False), normalizer, n_steps=13).collect(0)
    batch, stats = prepare_steps(rollout, 0.0, normalize=True)
    assert stats.metrics["episode_return"] == pytest.approx((3 * 6 + 2 * 3 + 3 * 6) / 8)
    # 3 without scaling; the first few, with no deviation to speak of, are cut at 10
    assert rollout.buffer.rewards[5:].max() < 2
    assert isinstance(batch.inputs, VectorActions)
    assert batch.inputs.observations.abs().max() < 4
    assert normalizer.seen is not None
    assert normalizer.seen.count == 2 * 14 - 3  # each observation that was acted on, and those to act on next; once


def test_a_loop_has_as_many_rollouts_as_the_timesteps_ask_for() -> None:
    training = StepsPPOOptimizer(
        total_timesteps=130, n_steps=16, n_envs=2, num_epochs=3, batch_size=10, micro_batch_size=4
    )
    loop = rollout_loop(training)
    assert (loop.iterations, loop.rows, loop.epochs, loop.batch_size, loop.micro_batch_size) == (5, 32, 3, 10, 4)
    assert loop.steps == 5 * 3 * 4
    assert (loop.target_kl, loop.adaptive_rate) == (0.0, False)
    assert rollout_loop(StepsPPOOptimizer(target_kl=0.1, schedule="kl_adaptive")).adaptive_rate


# ------------------------------------------------------------------------------------- a run
@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_a_run_starts_each_rollout_at_ratio_one(stage: Any, lines: Any, tmp_path: Path, environment: str) -> None:
    given = values(environment, normalize={"observations": True, "rewards": True})
    outcome = stage("ppo", given)
    rows = [r for r in lines("ppo") if "ratio" in r]
    assert len(rows) == 16
    firsts = [r for r in rows if (r["step"] - 1) % 8 == 0]
    assert [r["ratio"] for r in firsts] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert firsts[0]["approx_kl"] == pytest.approx(0, abs=1e-8)
    content = torch.load(tmp_path / "out" / "ppo" / "ppo_final.pt", weights_only=True)
    kind = GaussianActorCritic if environment == "Pendulum-v1" else ActorCritic
    model = kind(content["obs_dim"], content["action_dim"], content["hidden_dim"])
    model.load_state_dict(content["model_state_dict"])
    assert content["continuous"] is (environment == "Pendulum-v1")
    assert 120 < content["normaliser"]["seen"]["count"] <= 130
    found = outcome.done["metrics"]
    assert found["timesteps"] == 128
    assert found["episodes"] > 0 or environment == "Pendulum-v1"  # whose episodes have 200 steps
    last = lines("ppo")[-1]
    assert found["eval_return"] == last["rollout/eval_return"]
    assert {"eval_return_std", "eval_return_min", "eval_length"} <= found.keys()
    if environment == "CartPole-v1":
        assert 1 <= found["eval_return"] == found["eval_length"] <= 20  # a reward of 1 a step, at most max_steps
    else:
        assert found["eval_length"] == 20


def test_evaluation_changes_nothing_that_is_learned(stage: Any, lines: Any, tmp_path: Path, weights_of: Any) -> None:
    normalize = {"observations": True, "rewards": True}
    given = values("CartPole-v1", normalize=normalize, training={"total_timesteps": 256})
    stage("ppo", {**given, "evaluation": {"episodes": 0, "curve": False}}, "without")
    stage("ppo", {**given, "evaluation": {"episodes": 3, "every": 64, "curve": False}}, "with")
    one, other = (weights_of(tmp_path / "out" / n / "ppo_final.pt") for n in ("without", "with"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    evaluated = [r["rollout/timesteps"] for r in lines("with") if "rollout/eval_return" in r]
    assert evaluated == [64, 128, 192, 256]
    assert not [r for r in lines("without") if "rollout/eval_return" in r]
    trained = [[r for r in lines(n) if "rollout/eval_return" not in r] for n in ("without", "with")]
    assert trained[0] == trained[1]


def test_the_clip_range_falls_linearly(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    step = NumpyUpdater.step

    def noting(updater: NumpyUpdater, batch: Any, objective: PolicyLoss, schedule_step: int) -> dict[str, float]:
        found.extend(term.clip_range for _, term in objective.terms if isinstance(term, ClippedSurrogate))
        return step(updater, batch, objective, schedule_step)

    monkeypatch.setattr(NumpyUpdater, "step", noting)
    for kind, expected in (("constant", [0.2] * 4), ("linear", [0.2, 0.15, 0.1, 0.05])):
        found.clear()
        training = {"total_timesteps": 256, "batch_size": 64, "num_epochs": 1, "clip_schedule": kind}
        stage("ppo", values("CartPole-v1", training=training))
        assert found == pytest.approx(expected)


def test_the_rate_and_the_clip_range_fall_over_the_rollouts_where_they_stop_early(stage: Any, lines: Any) -> None:
    """Four rollouts of 4 minibatches; the KL of the second minibatch always exceeds the target."""
    training = {"total_timesteps": 256, "num_epochs": 1, "learning_rate": 0.01, "target_kl": 1e-9}
    stage("ppo", values("CartPole-v1", training={**training, "schedule": "linear"}))
    rates = [r["learning_rate"] for r in lines("ppo") if "ratio" in r]
    assert rates == pytest.approx([0.01 * (1 - place / 16) for place in (0, 1, 4, 5, 8, 9, 12, 13)])


def test_weight_decay_is_trained_by_the_plain_updater(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[type] = []
    for updater in (Updater, NumpyUpdater):
        step = updater.step

        def noting(self: Any, batch: Any, objective: Any, schedule_step: int, step: Any = step) -> dict[str, float]:
            steps.append(type(self))
            return dict(step(self, batch, objective, schedule_step))

        monkeypatch.setattr(updater, "step", noting)
    for decay, kind in ((0.0, NumpyUpdater), (0.1, Updater)):
        steps.clear()
        stage("ppo", values("CartPole-v1", training={"weight_decay": decay}))
        assert steps == [kind] * 16


def test_a_kl_is_refused_since_a_task_has_no_reference(stage: Any) -> None:
    with pytest.raises(UserError, match=r"kl\.beta is a setting of model\.policy=language and heads"):
        stage("ppo", values("CartPole-v1", kl={"beta": 0.1}))


def test_a_curve_and_a_video_are_written(stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pygame")
    from PIL import Image

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    stage("ppo", values("CartPole-v1", evaluation={"curve": True, "video": True, "episodes": 1}))
    folder = tmp_path / "out" / "ppo"
    assert Image.open(folder / "curve.png").size == (840, 480)
    video = Image.open(folder / "episode.gif")
    assert video.size == (300, 200)
    assert 2 <= video.n_frames <= 10  # type: ignore[attr-defined]  # every second of at most 20 steps


def test_packages_missing_for_curve_and_video_are_named(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = values("CartPole-v1", evaluation={"curve": True, "video": True, "episodes": 1})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "pygame", None)
    stage("ppo", given)
    said = (tmp_path / "logs" / "ppo" / "ppo.log").read_text(encoding="utf-8")
    assert "no curve.png: matplotlib is not installed" in said
    assert "no episode.gif: pygame is not installed" in said
    assert not list((tmp_path / "out" / "ppo").glob("*.gif"))
    assert (tmp_path / "out" / "ppo" / "done.json").exists()


# ------------------------------------------------------------------------------------- other tasks
OWN = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Echo(gymnasium.Env):
    # Shows a choice of three and a bit; rewards each component of the action that repeats it.
    observation_space = spaces.Dict({"choice": spaces.Discrete(3), "bit": spaces.MultiBinary(1)})
    action_space = spaces.MultiDiscrete([3, 2])

    def _seen(self):
        self.shown = (int(self.np_random.integers(3)), int(self.np_random.integers(2)))
        return {"choice": self.shown[0], "bit": np.array(self.shown[1:])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        reward = float(np.sum(np.array(self.shown) == action))
        self.steps += 1
        return self._seen(), reward, self.steps == 4, False, {}

class Bits(Echo):
    observation_space = spaces.MultiBinary(2)
    action_space = spaces.MultiBinary(2)

    def _seen(self):
        self.shown = self.np_random.integers(2, size=2)
        return self.shown

class Endless(Echo):
    def __init__(self, gain=1):
        self.gain = gain

    def step(self, action):
        seen, _, _, _, info = super().step(action)
        return seen, self.gain, False, False, info

class Far(Endless):
    # Rewards an action near 70 of [0, 100].
    action_space = spaces.Box(0, 100, (1,))

    def step(self, action):
        assert 0 <= action[0] <= 100
        return self._seen(), -abs(float(action[0]) - 70) / 100, False, True, {}

class Broken(Echo):
    def step(self, action):
        return self._seen(), float("nan"), False, False, {}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_tasks_of_control.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_tasks_of_control"


LEARNING = {
    "total_timesteps": 1536,
    "n_steps": 32,
    "n_envs": 8,
    "batch_size": 64,
    "num_epochs": 3,
    "learning_rate": 0.03,
}


@pytest.mark.parametrize(("task", "bound"), [("Echo", 7.5), ("Bits", 7.5)])
def test_several_discrete_actions_are_learned(stage: Any, tmp_path: Path, own: str, task: str, bound: float) -> None:
    """The best return is 8; choosing at random gives 4 x (1/3 + 1/2) or 4 x (1/2 + 1/2)."""
    found = stage("ppo", values(f"{own}:{task}", training=LEARNING, evaluation={"episodes": 10}, log_every=100)).done[
        "metrics"
    ]
    assert found["eval_return"] >= bound
    content = torch.load(tmp_path / "out" / "ppo" / "ppo_final.pt", weights_only=True)
    model = MultiDiscreteActorCritic(content["obs_dim"], content["sizes"], content["hidden_dim"])
    model.load_state_dict(content["model_state_dict"])
    assert (content["sizes"], content["action_dim"]) == (([3, 2], 5) if task == "Echo" else ([2, 2], 4))


def test_actions_with_bounds_far_from_one_are_learned(stage: Any, tmp_path: Path, own: str) -> None:
    """Unscaled, actions would stay near 1 of [0, 100], with a return of -0.69."""
    found = stage("ppo", values(f"{own}:Far", training=LEARNING, evaluation={"episodes": 10}, log_every=100)).done[
        "metrics"
    ]
    assert found["eval_return"] > -0.1
    content = torch.load(tmp_path / "out" / "ppo" / "ppo_final.pt", weights_only=True)
    assert (float(content["action_scale"]), float(content["action_offset"])) == (50.0, 50.0)
    said = (tmp_path / "logs" / "ppo" / "ppo.log").read_text(encoding="utf-8")
    assert "1 of 1 components of an action have bounds far from [-1, 1]" in said


def test_an_evaluation_that_was_cut_short_says_so(stage: Any, tmp_path: Path, own: str) -> None:
    found = stage("ppo", values(f"{own}:Endless", environment_args={"gain": 2})).done["metrics"]
    assert (found["eval_cut"], found["eval_length"], found["eval_return"]) == (2, 20, 40)
    said = (tmp_path / "logs" / "ppo" / "ppo.log").read_text(encoding="utf-8")
    assert "2 of these episodes were cut off after evaluation.max_steps=20 steps" in said
    assert "no episode ended in 128 steps: returns are unknown; train longer, or give the environment" in said
    ended = stage("ppo", values(f"{own}:Echo"), "ended").done["metrics"]
    assert ended["eval_cut"] == 0
    said = (tmp_path / "logs" / "ended" / "ended.log").read_text(encoding="utf-8")
    assert "cut off" not in said
    assert "no episode ended" not in said


def test_a_wrong_value_of_a_task_is_named_and_not_blamed_on_the_learning_rate(stage: Any, own: str) -> None:
    with pytest.raises(
        UserError, match=r"'own_tasks_of_control:Broken' \(number 0, episode 0, seed \d+, step 1\): step\(\) gave"
    ):
        stage("ppo", values(f"{own}:Broken"))


# ------------------------------------------------------------------------------------- returns
def trained(recipe: str, tmp_path: Path, *overrides: str) -> dict[str, float]:
    """The record of a recipe's run."""
    folders = (f"out={tmp_path / 'out'}", f"logs={tmp_path / 'logs'}", "evaluation.curve=false", "device=cpu")
    config = load(PPO, REPO / "configs" / "recipes" / f"{recipe}.yaml", [*folders, *overrides])
    run_stage("ppo", config, resume=False, reuse=False)
    done = json.loads((tmp_path / "out" / recipe / "done.json").read_text(encoding="utf-8"))
    assert done["metrics"]["timesteps"] < config.training.total_timesteps * 1.02
    return dict(done["metrics"])


def test_the_cartpole_recipe_reaches_its_documented_return(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        found = trained("cartpole", tmp_path, "seed=0")
    finally:
        torch.set_num_threads(threads)
    assert found["eval_return"] >= 475


PROMISED = {"cartpole": 475, "acrobot": -100, "pendulum": -250, "lunar_lander": 200}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("recipe", PROMISED)
def test_a_recipe_reaches_its_documented_return(tmp_path: Path, recipe: str, seed: int) -> None:
    if recipe == "lunar_lander":
        pytest.importorskip("Box2D")
    assert trained(recipe, tmp_path, f"seed={seed}")["eval_return"] >= PROMISED[recipe]


@pytest.mark.slow
def test_mountain_car_stays_at_the_bottom_without_normalization(tmp_path: Path) -> None:
    """The known negative control: a PPO that solves it this way has a fault, or explores differently."""
    plain = ("normalize.observations=false", "normalize.rewards=false")
    assert trained("mountain_car", tmp_path, *plain)["eval_return"] == -200


def test_a_rollout_over_a_large_vocabulary_does_not_draw_its_noise_at_once() -> None:
    model = ActorCritic(4, 2**16, 8)
    small, large = (StepsPPOOptimizer(n_steps=steps, n_envs=1) for steps in (256, 257))
    assert networks_for(model, small) is not None
    assert networks_for(model, large) is None
