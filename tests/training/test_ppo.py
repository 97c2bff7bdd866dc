"""PPO's core and its three policies: the first ratio, masks, the KL and its coefficient, stops, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accord.algorithms.ppo_core import ActionScores, PPOObjective, Progress, controller
from accord.algorithms.ppo_heads import HeadsSource
from accord.config.load import build
from accord.config.on_policy import KL, PPOOptimizer
from accord.config.ppo import PPO
from accord.errors import UserError
from accord.functional.kl import AdaptiveKL, FixedKL
from accord.models.heads import ActorCritic
from accord.models.open import open_backbone
from accord.models.reward import RewardMLP, RewardModel
from accord.rollout.env.tokens import Step, Vectors
from accord.runtime.run import Run
from accord.types import PPOBatch, TextActions, VectorActions

NewRun = Callable[..., Run]


def text_batch(rows: int = 5) -> PPOBatch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 3, 1, 2, 3])[:rows, None]
    numbers = [torch.randn(rows, 3, generator=generator) for _ in range(5)]
    prompts = tuple((i, i + 1) for i in range(rows))
    inputs = TextActions(prompts, torch.randint(5, 9, (rows, 3), generator=generator), mask, numbers[4])
    return PPOBatch(inputs, mask, *numbers[:4])


# ------------------------------------------------------------------------------------- objective
@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_objective_by_hand(placement: str, weight: float) -> None:
    batch = text_batch()
    new = [torch.randn(5, 3, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)]
    for x in new:
        x[~batch.mask] = math.nan  # whatever stands behind the end reaches nothing
    settings = PPOOptimizer(clip_range=0.3, clip_range_vf=0.25, vf_coef=0.4, ent_coef=0.02)
    kl = KL(placement=placement, estimator="k1" if placement == "reward" else "k2")  # type: ignore[arg-type]
    output = PPOObjective(lambda inputs: ActionScores(*new), settings, kl, 0.6, weight)(batch)
    total, count = 0.0, 0
    for b in range(5):
        for t in range(3):
            if not batch.mask[b, t]:
                continue
            names = ("logprobs", "values", "advantages", "returns")
            old_logprob, old_value, advantage, target = (float(getattr(batch, n)[b, t]) for n in names)
            logprob, entropy, value = (float(x[b, t]) for x in new)
            ratio = math.exp(logprob - old_logprob)
            policy = max(-advantage * ratio, -advantage * min(max(ratio, 0.7), 1.3))
            near = old_value + min(max(value - old_value, -0.25), 0.25)
            critic = max((value - target) ** 2, (near - target) ** 2) / 2
            penalty = 0.6 * (logprob - float(batch.inputs.ref_logprobs[b, t])) ** 2 / 2  # type: ignore[union-attr]
            total += weight * (policy - 0.02 * entropy) + 0.4 * critic
            total += weight * penalty * (placement == "loss")
            count += 1
    assert int(output.loss.count) == count == int(batch.mask.sum())
    assert output.loss.value() == pytest.approx(total / count, rel=1e-5)
    expected = {"policy_loss", "value_loss", "clip_fraction", "approx_kl", "ratio", "entropy", "value"}
    assert expected <= set(output.metrics)
    assert ("reference_kl" in output.metrics) is (placement == "loss")


# ------------------------------------------------------------------------------------- progress
NUMBERS = {"kl": 0.0, "replies": 5.0}


def taken(progress: Progress, run: Run, n: int | None = None, micro: int = 0) -> list[list[tuple[int, ...]]]:
    """The prompts in each minibatch; at most n minibatches."""
    found = []
    for parts in progress.minibatches(run, epochs=3, size=2, micro=micro):
        found.append([p for part in parts for p in part.inputs.prompts])  # type: ignore[union-attr]
        if len(found) == n:
            break
    return found


def test_every_row_comes_once_an_epoch_in_a_new_order(new_run: NewRun) -> None:
    run, progress = new_run(), Progress(FixedKL(0.1))
    progress.begin_rollout(text_batch(), NUMBERS)
    batches = taken(progress, run)
    assert [len(b) for b in batches] == [2, 2, 1] * 3
    epochs = [[row for batch in batches[i : i + 3] for row in batch] for i in (0, 3, 6)]
    assert all(sorted(e) == [(i, i + 1) for i in range(5)] for e in epochs)
    assert epochs[0] != epochs[1]
    progress.finish_rollout()
    assert progress.batch is None
    progress.begin_rollout(text_batch(), NUMBERS)
    assert taken(progress, run) != batches  # another iteration


def test_micro_batches_are_the_same_rows(new_run: NewRun) -> None:
    found = []
    for micro in (0, 1):
        progress = Progress(FixedKL(0.1))
        progress.begin_rollout(text_batch(), NUMBERS)
        parts = list(progress.minibatches(new_run(str(micro)), 1, 3, micro))
        assert [[len(p) for p in m] for m in parts] == ([[3], [2]] if micro == 0 else [[1, 1, 1], [1, 1]])
        found.append([[p for part in m for p in part.inputs.prompts] for m in parts])  # type: ignore[union-attr]
    assert found[0] == found[1]


@pytest.mark.parametrize("kl", [FixedKL(0.3), AdaptiveKL(0.2, 6.0, 100)])
@pytest.mark.parametrize("kind", ["text", "vector"])
def test_a_state_in_the_middle_gives_the_rest(new_run: NewRun, kl: FixedKL | AdaptiveKL, kind: str) -> None:
    run, progress = new_run(), Progress(kl)
    batch = text_batch()
    if kind == "vector":
        batch = PPOBatch(VectorActions(torch.randn(5, 4), torch.arange(5)), *(getattr(batch, n) for n in _NAMES))
    progress.begin_rollout(batch, {"kl": 9.0, "replies": 10.0})

    def rows(p: Progress, n: int) -> list[Tensor]:
        parts = p.minibatches(run, 3, 2, 0)
        return [torch.cat([x.advantages for x in next(parts)]) for _ in range(n)]

    rows(progress, 4)
    state = progress.state_dict()
    expected = rows(progress, 5)
    resumed = Progress(type(kl)(**{**kl.state(), "beta": 77.0}))
    resumed.load_state_dict(state)
    for a, b in zip(rows(resumed, 5), expected, strict=True):
        assert torch.equal(a, b)
    assert resumed.kl == kl
    assert resumed.batch is not None
    for name in _NAMES:
        assert torch.equal(getattr(resumed.batch, name), getattr(batch, name))
    resumed.finish_rollout()
    progress.finish_rollout()
    assert resumed.kl == progress.kl
    assert (resumed.kl.beta > kl.beta) is isinstance(kl, AdaptiveKL)  # trap 32: the KL measured before the stop counts


_NAMES = ("mask", "logprobs", "values", "advantages", "returns")


def test_a_stopped_rollout_gives_nothing_more_even_after_a_resume(new_run: NewRun) -> None:
    run, progress = new_run(), Progress(FixedKL(0.1))
    progress.begin_rollout(text_batch(), NUMBERS)
    assert len(taken(progress, run, 2)) == 2
    progress.stopped = True
    resumed = Progress(FixedKL(0.1))
    resumed.load_state_dict(progress.state_dict())
    assert taken(progress, run) == taken(resumed, run) == []
    resumed.finish_rollout()
    resumed.begin_rollout(text_batch(), NUMBERS)
    assert len(taken(resumed, run)) == 9


def test_the_controller_is_what_the_config_says() -> None:
    assert controller(KL(beta=0.2)) == FixedKL(0.2)
    assert controller(KL(beta=0.2, target=6.0, horizon=50)) == AdaptiveKL(0.2, 6.0, 50)


# ------------------------------------------------------------------------------------- language
def language(world: Any, rewards: str, **changes: Any) -> dict[str, Any]:
    training = {"replies": 8, "samples_per_prompt": 2, "batch_size": 4, "num_epochs": 2, "iterations": 2}
    return {
        "model": {"policy": "language", "base_model": world.mamba, "max_length": 64, **changes.pop("model", {})},
        "training": {**training, "learning_rate": 0.003, **changes.pop("training", {})},
        "sampling": {"max_new_tokens": 8, **changes.pop("sampling", {})},
        "prompts": world.prompts,
        "reward": {"source": f"{rewards}:share_of_a", **changes.pop("reward", {})},
        **changes,
    }


def rollouts(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [r for r in rows if "rollout/score" in r or "rollout/episode_return" in r]


def steps(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [r for r in rows if "ratio" in r]


@pytest.mark.parametrize("family", ["mamba", "transformer"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_language_run_starts_at_ratio_one_and_kl_zero(
    stage: Any, world: Any, rewards: str, lines: Any, family: str, temperature: float, critic: str
) -> None:
    """Traps 19, 21, 33 and 41."""
    model = {"base_model": getattr(world, family), "critic": critic}
    sampling = {"temperature": temperature}
    stage("ppo", language(world, rewards, model=model, sampling=sampling, training={"iterations": 1}))
    first = steps(lines("ppo"))[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-8)
    assert first["clip_fraction"] == 0
    assert first["value"] == 0  # the head is zero at the start
    assert first["entropy"] <= math.log(50) + 1e-4
    (rollout,) = rollouts(lines("ppo"))
    assert rollout["rollout/kl"] == pytest.approx(0.0, abs=1e-4)
    assert rollout["step"] == 0
    assert steps(lines("ppo"))[-1]["ratio"] != 1.0
    assert len(steps(lines("ppo"))) == 4


def test_each_rollout_starts_at_ratio_one(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    stage("ppo", language(world, rewards, training={"iterations": 3, "learning_rate": 0.01}))
    rows = steps(lines("ppo"))
    assert [r["ratio"] for r in rows if (r["step"] - 1) % 4 == 0] == pytest.approx([1.0] * 3, abs=1e-5)
    assert max(abs(r["ratio"] - 1) for r in rows) > 1e-4
    assert abs(rollouts(lines("ppo"))[-1]["rollout/kl"]) > 1e-3  # and the policy has moved away


def test_each_rollout_has_chance_of_its_own(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    """The same weights and prompts all along: only the draws are left to differ."""
    training = {"iterations": 4, "learning_rate": 0.0, "replies": 16}  # all eight prompts in every rollout
    stage("ppo", language(world, rewards, reward={"source": f"{rewards}:brevity"}, training=training))
    rows = rollouts(lines("ppo"))
    assert len({(r["rollout/score"], r["rollout/score_std"]) for r in rows}) > 2


def test_another_reference_is_measured_from_the_start(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    stage("ppo", language(world, rewards, reference=world.transformer, training={"iterations": 1}))
    assert abs(rollouts(lines("ppo"))[0]["rollout/kl"]) > 1e-3


@pytest.mark.parametrize("source", ["model", "terms"])
def test_rewards_of_models_and_of_several_terms(stage: Any, world: Any, rewards: str, lines: Any, source: str) -> None:
    reward: dict[str, Any] = {"source": world.reward}
    if source == "terms":
        terms = [(world.reward, 0.5), (f"{rewards}:brevity", 0.1), (world.reward, 2.0)]
        reward = {"terms": [{"source": s, "weight": w} for s, w in terms]}
    stage("ppo", language(world, rewards, reward=reward, training={"iterations": 1}))
    row = rollouts(lines("ppo"))[0]
    terms_found = {k: v for k, v in row.items() if k.startswith("rollout/term/")}
    assert len(terms_found) == (1 if source == "model" else 3)
    assert row["rollout/score"] == pytest.approx(sum(terms_found.values()), rel=1e-5)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_of_replies_change_nothing(
    stage: Any, world: Any, rewards: str, tmp_path: Path, weights_of: Any, micro: int
) -> None:
    for name, size in (("whole", 0), ("cut", micro)):
        training = {"micro_batch_size": size, "adam_eps": 1e-3, "iterations": 1}
        stage("ppo", language(world, rewards, training=training), name)
    whole, cut = (weights_of(tmp_path / "out" / n / "ppo_final.pt") for n in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=3e-6)


def test_the_coefficient_follows_the_measured_kl(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    """Trap 31: n is the replies of a rollout, the KL a sum over the reply."""
    kl = {"beta": 0.15, "target": 0.05, "horizon": 40}
    stage("ppo", language(world, rewards, kl=kl, training={"iterations": 4, "learning_rate": 0.02}))
    rows = rollouts(lines("ppo"))
    beta = 0.15
    for row in rows:
        assert row["rollout/beta"] == pytest.approx(beta, rel=1e-6)
        beta *= 1 + min(max(row["rollout/kl"] / 0.05 - 1, -0.2), 0.2) * 8 / 40
    assert len({r["rollout/beta"] for r in rows}) == 4


def test_the_kl_in_the_loss_leaves_the_rewards_alone(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    def final(name: str, **kl: Any) -> dict[str, float]:
        values = language(world, rewards, reference=world.transformer, kl=kl, training={"iterations": 1})
        stage("ppo", values, name)
        return steps(lines(name))[0]

    without, inside = final("without", beta=0.0), final("inside", beta=5.0, placement="loss", estimator="k2")
    reward = final("reward", beta=5.0)
    assert inside["value_loss"] == without["value_loss"]  # the same returns
    assert reward["value_loss"] != without["value_loss"]
    assert inside["loss"] > without["loss"]
    assert "reference_kl" in inside
    assert "reference_kl" not in reward


def test_a_large_kl_ends_the_updates_of_a_rollout(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    training = {"target_kl": 2e-3, "learning_rate": 0.01, "num_epochs": 4, "iterations": 3}
    stage("ppo", language(world, rewards, training=training))
    rows = lines("ppo")
    starts = [r["step"] for r in rollouts(rows)]
    taken_steps = steps(rows)
    assert len(starts) == 3
    assert len(taken_steps) < 3 * 4 * 2
    for begin, end in zip(starts, [*starts[1:], taken_steps[-1]["step"]], strict=True):
        mine = [r for r in taken_steps if begin < r["step"] <= end]
        over = [r["approx_kl"] > 3e-3 for r in mine]
        assert not any(over[:-1])
        assert over[-1] or len(mine) == 8


def test_the_rate_follows_the_kl(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    training = {"target_kl": 1e-4, "schedule": "kl_adaptive", "learning_rate": 0.01}
    stage("ppo", language(world, rewards, training=training))
    rows = steps(lines("ppo"))
    assert len(rows) == 8  # nothing is stopped
    rate = 0.01
    for row in rows:
        assert row["learning_rate"] == pytest.approx(rate)
        rate *= 1 / 1.5 if row["approx_kl"] > 2e-4 else 1.5 if row["approx_kl"] < 5e-5 else 1.0
    assert len({r["learning_rate"] for r in rows}) > 2


def test_a_warm_up_moves_the_critic_alone(stage: Any, world: Any, rewards: str, tmp_path: Path, lines: Any) -> None:
    with pytest.raises(UserError, match="value_warmup needs a critic that does not move"):
        stage("ppo", language(world, rewards, training={"value_warmup": 1}))
    for name, warmup in (("warm", 2), ("half", 1)):
        training = {"value_warmup": warmup, "iterations": 2}
        stage("ppo", language(world, rewards, model={"critic": "separate"}, training=training), name)
    start = open_backbone(world.mamba).state_dict()
    warm, half = (open_backbone(tmp_path / "out" / n / "model").state_dict() for n in ("warm", "half"))
    assert all(torch.equal(warm[k], v) for k, v in start.items())
    assert any(not torch.equal(half[k], v) for k, v in start.items())
    values = [r["value"] for r in steps(lines("warm"))]
    assert values[0] == 0
    assert values[-1] != 0


@pytest.mark.parametrize("critic", ["shared_detached", "separate", "reward"])
def test_the_critic_does_not_move_the_policy(stage: Any, world: Any, rewards: str, tmp_path: Path, critic: str) -> None:
    """With advantages of zero weight in the loss nothing but the value loss is left: whitened zeros stay zeros."""
    training = {"vf_coef": 1.0, "num_epochs": 2, "iterations": 1, "max_grad_norm": 1e9}
    reward = {"source": world.reward, "scale": 0.0}
    stage("ppo", language(world, rewards, model={"critic": critic}, reward=reward, kl={"beta": 0.0}, training={
        **training, "value_warmup": 1}))  # fmt: skip
    start = open_backbone(world.mamba).state_dict()
    end = open_backbone(tmp_path / "out" / "ppo" / "model").state_dict()
    assert all(torch.equal(end[k], v) for k, v in start.items())


def test_prompts_come_once_before_any_comes_again(world: Any, rewards: str, new_run: NewRun, tokenizer: Any) -> None:
    from accord.algorithms.ppo_language import LanguageSource
    from accord.data.prompts import load_prompts

    config = build(PPO, {**language(world, rewards)}, {}, "the test")
    prompts = load_prompts(world.prompts, tokenizer, 40)
    source = LanguageSource(config, new_run(), None, None, None, tokenizer, prompts)  # type: ignore[arg-type]
    drawn = [row for i in range(6) for row in source.rows(i)]
    assert [len(source.rows(i)) for i in range(2)] == [4, 4]  # 8 replies, 2 to a prompt
    for k in range(3):
        assert sorted(drawn[8 * k : 8 * (k + 1)]) == list(range(8))
    assert drawn[:8] != drawn[8:16]


def test_mistakes_in_a_language_config_are_named(stage: Any, world: Any, rewards: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.replies \(8\) must be a multiple"):
        stage("ppo", language(world, rewards, training={"samples_per_prompt": 3}))
    with pytest.raises(UserError, match=r"critic=reward starts from the reward model"):
        stage("ppo", language(world, rewards, model={"critic": "reward"}))  # the reward is a function
    terms = {"terms": [{"source": world.reward}]}
    with pytest.raises(UserError, match=r"critic=reward starts from the reward model"):
        stage("ppo", language(world, rewards, model={"critic": "reward"}, reward=terms))
    with pytest.raises(UserError, match="the score of reply 0 is nan"):
        stage("ppo", language(world, rewards, reward={"source": f"{rewards}:nan"}))


def test_a_critic_of_another_tokenizer_is_refused(stage: Any, world: Any, rewards: str, tmp_path: Path) -> None:
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(world.reward, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    values = language(world, rewards, reward={"source": str(other)}, training={"iterations": 1})
    stage("ppo", values)  # as a reward it serves: texts cross
    with pytest.raises(UserError, match="tokenizer"):
        stage("ppo", {**values, "model": {**values["model"], "critic": "reward"}})


# ------------------------------------------------------------------------------------- vectors
def heads(world: Any, rewards: str, **changes: Any) -> dict[str, Any]:
    training = {"total_timesteps": 64, "n_steps": 16, "n_envs": 2, "batch_size": 8, "num_epochs": 2}
    return {
        "model": {"policy": "heads", "base_model": world.mamba, "obs_dim": 32, "max_length": 64,
                  **changes.pop("model", {})},
        "training": {**training, **changes.pop("training", {})},
        "sampling": {"max_new_tokens": 5},
        "prompts": world.prompts,
        "reward": {"source": f"{rewards}:share_of_a", **changes.pop("reward", {})},
        **changes,
    }  # fmt: skip


def cartpole(**training: Any) -> dict[str, Any]:
    given = {"total_timesteps": 128, "n_steps": 32, "n_envs": 2, "batch_size": 16, "num_epochs": 2, **training}
    return {"model": {"policy": "control", "hidden_dim": 16}, "environment": "CartPole-v1", "training": given,
            "evaluation": {"episodes": 2, "curve": False}}  # fmt: skip


@pytest.mark.parametrize("policy", ["heads", "vector"])
def test_a_run_on_vectors_starts_at_ratio_one(
    stage: Any, world: Any, rewards: str, lines: Any, tmp_path: Path, policy: str
) -> None:
    values = heads(world, rewards) if policy == "heads" else cartpole()
    outcome = stage("ppo", values)
    rows = steps(lines("ppo"))
    per_rollout = 8
    firsts = [r for r in rows if (r["step"] - 1) % per_rollout == 0]
    assert len(firsts) == 2
    assert [r["ratio"] for r in firsts] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert firsts[0]["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert len(rows) == 16
    content = torch.load(tmp_path / "out" / "ppo" / "ppo_final.pt", weights_only=True)
    model = ActorCritic(content["obs_dim"], content["action_dim"], content["hidden_dim"])
    model.load_state_dict(content["model_state_dict"])
    assert outcome.done["metrics"]["episodes"] > 0
    if policy == "heads":
        first = rollouts(lines("ppo"))[0]
        assert abs(first["rollout/kl"]) > 1e-3  # an all but uniform policy against a language model
        assert first["rollout/episodes"] >= 6  # 32 steps of episodes of at most 5


def test_sizes_that_do_not_fit_are_named(stage: Any, world: Any, rewards: str) -> None:
    with pytest.raises(UserError, match=r"model\.obs_dim is 128, .* has 32; set model\.obs_dim=32"):
        stage("ppo", heads(world, rewards, model={"obs_dim": 128}))
    with pytest.raises(UserError, match=r"model\.action_dim is 51, .* has 50"):
        stage("ppo", heads(world, rewards, model={"action_dim": 51}))


def test_heads_refuse_a_kl_in_the_loss(stage: Any, world: Any, rewards: str) -> None:
    with pytest.raises(UserError, match=r"kl\.placement"):
        stage("ppo", heads(world, rewards, kl={"placement": "loss", "estimator": "k2"}))


def test_the_coefficient_of_heads_counts_replies_not_steps(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    """Trap 31: the horizon is in replies, and a rollout of heads has fewer of them than steps."""
    kl = {"beta": 0.1, "target": 0.01, "horizon": 100}
    stage("ppo", heads(world, rewards, kl=kl, training={"total_timesteps": 96}))
    rows = rollouts(lines("ppo"))
    beta, before = 0.1, 0.0
    for row in rows:
        assert row["rollout/beta"] == pytest.approx(beta, rel=1e-6)
        ended, before = row["rollout/episodes"] - before, row["rollout/episodes"]
        assert 0 < ended < 32
        beta *= 1 + min(max(row["rollout/kl"] / 0.01 - 1, -0.2), 0.2) * ended / 100
    assert len(rows) == 3


class Scripted:
    """Shows (episode, step); rewards 1 a step; ends at its 3rd step, is cut at its 2nd in every other episode."""

    def __init__(self) -> None:
        self.episode = -1
        self.steps = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0.0], dtype=np.float32), {}

    def step(self, action: int) -> Step:
        self.steps += 1
        cut = self.steps == 2 and self.episode % 2 == 1
        seen = np.array([self.episode, self.steps], dtype=np.float32)
        return seen, 1.0, self.steps == 3, cut, {"ref_logprob": -0.5}


def test_what_is_cut_is_bootstrapped_and_what_ends_is_not(new_run: NewRun) -> None:
    """Traps 36 and 37: held against a loop that knows the script.  The KL to the reference is paid on every step."""
    config = build(PPO, cartpole(n_steps=8, n_envs=1, normalize_advantages=False), {}, "the test")
    torch.manual_seed(0)
    model = ActorCritic(2, 2, 8)
    source = HeadsSource(config, new_run(), model, Vectors([Scripted()], lambda i, e: 0), 2)
    batch, metrics = source.collect(0, beta=0.1)
    seen = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    after: dict[int, tuple[int, int] | None] = {0: (0, 1), 1: (0, 2), 2: None, 3: (1, 1), 4: (1, 2), 5: (2, 1)}
    after |= {6: (2, 2), 7: None}
    assert isinstance(batch.inputs, VectorActions)
    assert batch.inputs.observations.tolist() == [list(map(float, s)) for s in seen]

    def value(state: tuple[int, int]) -> float:
        return float(model.value(torch.tensor([state], dtype=torch.float32)).detach())

    carried, expected = 0.0, [0.0] * 8
    for t in reversed(range(8)):
        reward = 1.0 - 0.1 * (float(batch.logprobs[t]) + 0.5)
        state = after[t]
        delta = reward + 0.99 * (0.0 if state is None else value(state)) - value(seen[t])
        carried = delta + (0.0 if t in (2, 4, 7) else 0.99 * 0.95 * carried)
        expected[t] = carried
    torch.testing.assert_close(batch.advantages[:, 0], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.returns, batch.advantages + batch.values)
    assert metrics["episodes"] == 3
    assert metrics["episode_return"] == pytest.approx((3 + 2 + 3) / 3)  # what the task gives, without the KL
    kl = sum(float(batch.logprobs[t]) + 0.5 for t in range(8))
    assert metrics["kl"] == pytest.approx(kl / 3, rel=1e-5)


def test_the_actions_of_an_iteration_are_those_of_its_number(new_run: NewRun) -> None:
    config = build(PPO, cartpole(n_steps=8, n_envs=1), {}, "the test")
    torch.manual_seed(0)
    model = ActorCritic(2, 2, 8)
    found = []
    for iteration in (0, 0, 1):
        source = HeadsSource(config, new_run(), model, Vectors([Scripted()], lambda i, e: 0), 2)
        inputs = source.collect(iteration, 0.0)[0].inputs
        assert isinstance(inputs, VectorActions)
        found.append(inputs.actions.tolist())
    assert found[0] == found[1] != found[2]


def test_an_mlp_reward_model_serves_as_reward(stage: Any, world: Any, rewards: str, tmp_path: Path, lines: Any) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "mlp"
    folder.mkdir()
    RewardModel(open_backbone(world.mamba), RewardMLP(32, 8), "mean").save(str(folder))
    from accord.data.tokenizer import small_tokenizer

    small_tokenizer().save(folder)
    stage("ppo", heads(world, rewards, reward={"source": str(folder)}, training={"total_timesteps": 32}))
    assert math.isfinite(rollouts(lines("ppo"))[0]["rollout/episode_return"])
