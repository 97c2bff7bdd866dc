"""PPO: the loop over rollouts and its resume, the loss, and runs on a whole language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.algorithms.ppo import (
    Algorithm,
    RolloutLoop,
    clip_range_at,
    kl_controller,
    ppo_loss,
    ppo_on_text,
    train_on_rollouts,
)
from accord.config.on_policy import KL, LanguagePPOConfig, LanguagePPOOptimizer, PPOOptimizer
from accord.errors import Interrupted, UserError
from accord.functional.kl import AdaptiveKL, FixedKL
from accord.models.language import LanguageActorCritic
from accord.models.open import open_backbone
from accord.runtime.run import Run
from accord.training.policy_loss import (
    ActionScores,
    ClippedSurrogate,
    EntropyBonus,
    LossTerm,
    PolicyLoss,
    ReferenceKL,
    ValueLoss,
)
from accord.training.rollout_progress import RolloutStats
from accord.types import PolicyBatch, TextActions, VectorActions

NewRun = Callable[..., Run]


# ------------------------------------------------------------------------------------- the loop
class Nothing:
    """A part of the saved state without contents."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Counting(Nothing):
    """A source whose rollout is its iteration."""

    def __init__(self) -> None:
        self.collected: list[int] = []

    def collect(self, iteration: int) -> int:
        self.collected.append(iteration)
        return iteration


CPU = torch.device("cpu")


@dataclass
class Recorder(Nothing):
    """An updater that records the rows of each minibatch and reports the approximate KL of the step's number."""

    device: torch.device = CPU
    kl_of_step: Callable[[int], float] = lambda step: 0.0
    stop_after: int = 0
    run: Run | None = None
    steps: list[tuple[int, list[list[int]]]] = field(default_factory=list)
    losses: list[PolicyLoss] = field(default_factory=list)
    adapted: list[tuple[float, float]] = field(default_factory=list)
    schedule_steps: list[int] = field(default_factory=list)

    def step(self, batch: Any, objective: PolicyLoss, schedule_step: int) -> dict[str, float]:
        self.schedule_steps.append(schedule_step)
        iteration = int(batch[0].advantages[0, 0])
        self.steps.append((iteration, [part.inputs.actions.tolist() for part in batch]))
        self.losses.append(objective)
        if self.run is not None and len(self.steps) == self.stop_after:
            self.run.stop.raised = True
        return {"loss": 0.0, "approx_kl": self.kl_of_step(len(self.steps))}

    def adapt_to_kl(self, approx_kl: float, target: float) -> None:
        self.adapted.append((approx_kl, target))


def numbered(iteration: int, beta: float) -> tuple[PolicyBatch, RolloutStats]:
    """Five rows that carry their number, and the iteration as advantage."""
    column = torch.full((5, 1), float(iteration))
    inputs = VectorActions(torch.zeros(5, 2), torch.arange(5))
    return PolicyBatch(inputs, column >= 0, column, column), RolloutStats(
        4.0 + iteration, 5, {"score": 1.0 + iteration}
    )


def algorithm(kl: FixedKL | AdaptiveKL) -> Algorithm[int]:
    """The loss has one term, whose weight is the KL coefficient."""

    def score(inputs: Any) -> ActionScores:
        raise NotImplementedError

    return Algorithm(
        lambda rollout, iteration, beta: numbered(rollout, beta),
        lambda iteration, beta: PolicyLoss(score, [(beta, ReferenceKL(str(iteration)))]),
        kl,
    )


LOOP = RolloutLoop(iterations=2, rows=5, epochs=3, batch_size=2)
STEPS = 18


def trained(run: Run, updater: Recorder, source: Counting, loop: RolloutLoop = LOOP) -> RolloutStats:
    kl = AdaptiveKL(0.2, 1.0, 20)
    return train_on_rollouts(run, torch.nn.Linear(1, 1), updater, source, algorithm(kl), loop)


def test_a_loop_counts_its_steps() -> None:
    assert LOOP.steps == STEPS
    assert RolloutLoop(4, 6, 2, 3).steps == 16


def test_each_epoch_takes_every_row_once_in_a_new_order(new_run: NewRun) -> None:
    source, updater = Counting(), Recorder()
    stats = trained(new_run(), updater, source)
    assert source.collected == [0, 1]
    assert stats == RolloutStats(5.0, 5, {"score": 2.0})
    assert [iteration for iteration, _ in updater.steps] == [0] * 9 + [1] * 9
    assert [[len(part) for part in parts] for _, parts in updater.steps] == [[2], [2], [1]] * 6
    epochs = [[row for _, parts in updater.steps[i : i + 3] for row in parts[0]] for i in range(0, STEPS, 3)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3  # another order for each epoch and each rollout
    again = Recorder()
    trained(new_run("again"), again, Counting())
    assert again.steps == updater.steps


def test_the_loop_cuts_forward_passes(new_run: NewRun) -> None:
    whole, cut = Recorder(), Recorder()
    trained(new_run("whole"), whole, Counting())
    trained(new_run("cut"), cut, Counting(), RolloutLoop(2, 5, 3, 2, micro_batch_size=1))
    assert [[len(part) for part in parts] for _, parts in cut.steps] == [[1, 1], [1, 1], [1]] * 6
    for (_, one), (_, two) in zip(whole.steps, cut.steps, strict=True):
        assert one[0] == [row for part in two for row in part]


def test_the_loss_of_a_rollout_has_its_iteration_and_kl_coefficient(new_run: NewRun) -> None:
    updater = Recorder()
    trained(new_run(), updater, Counting())
    seen = [(weight, term.estimator) for loss in updater.losses for weight, term in loss.terms]  # type: ignore[attr-defined]
    assert seen == [(0.2, "0")] * 9 + [(pytest.approx(0.2 * 1.05), "1")] * 9  # KL 4, target 1: + 0.2 * 5 / 20


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_a_run_stopped_at_any_minibatch_resumes_with_the_next(new_run: NewRun, stop: int) -> None:
    whole = Recorder()
    trained(new_run("whole"), whole, Counting())
    first, second, sources = Recorder(stop_after=stop), Recorder(), [Counting(), Counting()]
    first.run = new_run("cut")
    with pytest.raises(Interrupted):
        trained(first.run, first, sources[0])
    resumed = new_run("cut", resume=True)
    stats = trained(resumed, second, sources[1])
    assert len(first.steps) == stop
    assert first.steps + second.steps == whole.steps
    assert [loss.terms for loss in first.losses + second.losses] == [loss.terms for loss in whole.losses]
    assert sources[0].collected + sources[1].collected == [0, 1]  # no rollout is collected twice
    assert stats.metrics == {"score": 2.0}
    assert resumed.step == STEPS


def large_at(*numbers: int) -> Callable[[int], float]:
    """A KL above the limit at the named steps, and just below it at all others."""
    return lambda step: 0.16 if step in numbers else 0.15


STOPPING = RolloutLoop(2, 5, 3, 2, target_kl=0.1)


def test_a_large_kl_stops_a_rollout_and_not_the_next(new_run: NewRun) -> None:
    updater = Recorder(kl_of_step=large_at(4))
    trained(new_run(), updater, Counting(), STOPPING)
    assert [iteration for iteration, _ in updater.steps] == [0] * 4 + [1] * 9
    assert not updater.adapted


def test_a_rollout_that_its_kl_stopped_stays_stopped_after_a_resume(new_run: NewRun) -> None:
    """The state is saved with the step that exceeded the KL limit; the resumed run continues with the next rollout."""
    first = Recorder(kl_of_step=large_at(4), stop_after=4)
    first.run = new_run()
    with pytest.raises(Interrupted):
        trained(first.run, first, Counting(), STOPPING)
    second, source = Recorder(kl_of_step=large_at()), Counting()
    trained(new_run(resume=True), second, source, STOPPING)
    assert [iteration for iteration, _ in second.steps] == [1] * 9
    assert source.collected == [1]


def test_the_schedule_counts_skipped_steps_as_passed(new_run: NewRun) -> None:
    updater = Recorder(kl_of_step=large_at(4))
    trained(new_run(), updater, Counting(), STOPPING)
    assert updater.schedule_steps == [*range(4), *range(9, STEPS)]


def test_without_early_stopping_the_schedule_counts_the_steps_taken(new_run: NewRun) -> None:
    updater = Recorder()
    trained(new_run(), updater, Counting())
    assert updater.schedule_steps == list(range(STEPS))


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_resumed_run_goes_to_the_same_place_in_the_schedule(new_run: NewRun, stop: int) -> None:
    whole, first = Recorder(kl_of_step=large_at(4)), Recorder(kl_of_step=large_at(4), stop_after=stop)
    trained(new_run("whole"), whole, Counting(), STOPPING)
    first.run = new_run()
    with pytest.raises(Interrupted):
        trained(first.run, first, Counting(), STOPPING)
    second = Recorder(kl_of_step=large_at(4 - stop))
    trained(new_run(resume=True), second, Counting(), STOPPING)
    assert first.schedule_steps + second.schedule_steps == whole.schedule_steps


def test_an_adaptive_learning_rate_follows_the_kl_and_stops_nothing(new_run: NewRun) -> None:
    updater = Recorder(kl_of_step=float)
    trained(new_run(), updater, Counting(), RolloutLoop(2, 5, 3, 2, target_kl=0.1, adaptive_rate=True))
    assert updater.adapted == [(float(step), 0.1) for step in range(1, STEPS + 1)]


def test_without_a_target_no_kl_stops_or_adapts(new_run: NewRun) -> None:
    updater = Recorder(kl_of_step=float)
    trained(new_run(), updater, Counting())
    assert len(updater.steps) == STEPS
    assert not updater.adapted


def test_the_kl_controller_is_the_configured_one() -> None:
    assert kl_controller(KL(beta=0.2)) == FixedKL(0.2)
    assert kl_controller(KL(beta=0.2, target=6.0, horizon=50)) == AdaptiveKL(0.2, 6.0, 50)


def test_the_clip_range_is_constant_or_falls_linearly() -> None:
    for kind, expected in (("constant", [0.2] * 4), ("linear", [0.2, 0.15, 0.1, 0.05])):
        training = PPOOptimizer(clip_range=0.2, clip_schedule=kind)  # type: ignore[arg-type]
        assert [clip_range_at(training, i, 4) for i in range(4)] == pytest.approx(expected)


# ------------------------------------------------------------------------------------- the loss
def text_batch() -> PolicyBatch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 3, 1])[:, None]
    numbers = [torch.randn(5, 3, generator=generator) for _ in range(5)]
    inputs = TextActions(((1, 2),) * 5, torch.randint(5, 9, (5, 3), generator=generator), mask, numbers[4])
    return PolicyBatch(inputs, mask, *numbers[:4])


@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_loss_is_the_documented_formula(placement: str, weight: float) -> None:
    batch = text_batch()
    new = [torch.randn(5, 3, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)]
    for x in new:
        x[~batch.mask] = math.nan  # whatever comes after the end has no effect
    training = PPOOptimizer(clip_range=0.3, clip_range_vf=0.25, vf_coef=0.4, ent_coef=0.02)
    kl: list[tuple[float, LossTerm]] = [(weight * 0.6, ReferenceKL("k2"))] if placement == "loss" else []
    output = ppo_loss(lambda inputs: ActionScores(*new), training, 0.3, weight, kl)(batch)
    total, count = 0.0, 0
    for b in range(5):
        for t in range(3):
            if not batch.mask[b, t]:
                continue
            names = ("old_logprobs", "values", "advantages", "returns")
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


def test_in_the_warm_up_only_the_value_loss_counts(world: Any) -> None:
    """On a run's own loss, with the KL in it and an entropy bonus."""
    config = LanguagePPOConfig(
        training=LanguagePPOOptimizer(value_warmup=2, ent_coef=0.1, vf_coef=0.4, clip_schedule="linear", iterations=4),
        kl=KL(beta=0.3, placement="loss", estimator="k3"),
    )
    made = ppo_on_text(LanguageActorCritic(open_backbone(world.mamba), "separate"), config)
    for iteration, weight, clip_range in ((0, 0.0, 0.2), (1, 0.0, 0.15), (2, 1.0, 0.1)):
        assert made.loss(iteration, 0.6).terms == [
            (weight, ClippedSurrogate(pytest.approx(clip_range))),
            (0.4, ValueLoss(0.2)),
            (weight * 0.1, EntropyBonus()),
            (weight * 0.6, ReferenceKL("k3")),
        ]
    assert made.kl == FixedKL(0.3)


def test_the_entropy_costs_no_backward_pass_unless_it_is_rewarded() -> None:
    batch = text_batch()
    for coefficient in (0.0, 0.3):
        entropy = torch.rand(5, 3, requires_grad=True)
        new = ActionScores(torch.zeros(5, 3, requires_grad=True), entropy, torch.zeros(5, 3))
        output = ppo_loss(lambda _, new=new: new, PPOOptimizer(ent_coef=coefficient), 0.2)(batch)
        output.loss.total.backward()  # type: ignore[no-untyped-call]
        assert output.metrics["entropy"].value() == pytest.approx(float(entropy.detach()[batch.mask].mean()))
        if coefficient:
            assert entropy.grad is not None
            torch.testing.assert_close(entropy.grad, -0.3 * batch.mask.float())
        else:
            assert entropy.grad is None


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
    """Scoring uses the sampling temperature, dropout is off, the reference is the start, and the critic starts at zero."""
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


def test_each_rollout_draws_with_its_own_seed(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    """Weights and prompts are the same throughout, so only the draws can differ."""
    training = {"iterations": 4, "learning_rate": 0.0, "replies": 16}  # all eight prompts in every rollout
    stage("ppo", language(world, rewards, reward={"source": f"{rewards}:brevity"}, training=training))
    rows = rollouts(lines("ppo"))
    assert len({(r["rollout/score"], r["rollout/score_std"]) for r in rows}) > 2


def test_another_reference_is_measured_from_the_start(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    stage("ppo", language(world, rewards, reference=world.transformer, training={"iterations": 1}))
    assert abs(rollouts(lines("ppo"))[0]["rollout/kl"]) > 1e-3


@pytest.mark.parametrize("source", ["model", "terms"])
def test_the_score_is_the_weighted_sum_of_its_reward_terms(
    stage: Any, world: Any, rewards: str, lines: Any, source: str
) -> None:
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
    """n counts the replies of a rollout, and the KL is a sum over the reply."""
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


def test_a_linear_rate_follows_the_rollouts_where_they_stop_early(
    stage: Any, world: Any, rewards: str, lines: Any
) -> None:
    """Every rollout of 8 minibatches stops early; each step has the rate of its place among all 24."""
    training = {"target_kl": 1e-7, "learning_rate": 0.01, "num_epochs": 4, "iterations": 3, "schedule": "linear"}
    stage("ppo", language(world, rewards, training=training))
    rows = lines("ppo")
    starts = [r["step"] for r in rollouts(rows)]
    taken = steps(rows)
    assert len(taken) < 24
    for row in taken:
        rollout = sum(start < row["step"] for start in starts) - 1
        place = 8 * rollout + row["step"] - starts[rollout] - 1
        assert row["learning_rate"] == pytest.approx(0.01 * (1 - place / 24))
    assert taken[-1]["learning_rate"] <= 0.01 * 8 / 24


def test_the_learning_rate_follows_the_kl(stage: Any, world: Any, rewards: str, lines: Any) -> None:
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
        stage("ppo", language(world, rewards, model={"critic": "shared"}, training={"value_warmup": 1}))
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


def test_mistakes_in_a_language_config_are_named(stage: Any, world: Any, rewards: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.replies \(8\) must be a multiple"):
        stage("ppo", language(world, rewards, training={"samples_per_prompt": 3}))
    with pytest.raises(UserError, match=r"critic=reward starts from the reward model"):
        stage("ppo", language(world, rewards, model={"critic": "reward"}))  # the reward is a function
    terms = {"terms": [{"source": world.reward}]}
    with pytest.raises(UserError, match=r"critic=reward starts from the reward model"):
        stage("ppo", language(world, rewards, model={"critic": "reward"}, reward=terms))
    with pytest.raises(UserError, match=r"the score of reply 0 .* is nan"):
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
