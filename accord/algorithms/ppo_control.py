"""PPO on vectors: Gymnasium tasks, and any other environments that are stepped (``ppo_heads``).

The loop with its minibatches and early stopping, and the loss, are those of ``ppo``; here are the batch made from
steps, and the stage that trains on a Gymnasium task.  Details follow "The 37 Implementation Details
of PPO" (Huang et al. 2022).  Departures:
1. advantages are whitened once over the rollout, not in each minibatch;
2. an episode cut by a time limit bootstraps from its final observation;
3. small float32 networks on a CPU are run and differentiated in NumPy (``kernels/numpy_actor_critic``), to rounding.

With ``rollout.engine=ray`` workers act in the environments with weights of a bounded age, and V-trace corrects (IMPALA,
Espeholt et al. 2018, arXiv 1802.01561).  Departures: the ratios are those at the start of a rollout's updates, and the updates
after the first are PPO's; with one epoch and one minibatch the step is IMPALA's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accord.algorithms.ppo import (
    Algorithm,
    PolicyUpdater,
    RolloutLoop,
    Source,
    clip_range_at,
    ppo_loss,
    train_on_rollouts,
)
from accord.config.control import ControlPPOConfig
from accord.config.correction import StepCorrection
from accord.config.on_policy import StepsPPOOptimizer
from accord.distributed.ray.steps import Learner, remote_steps, require_step_workers
from accord.evaluation.policies import evaluate, write_curve, write_video
from accord.functional.advantages import compute_gae, explained_variance, normalize_advantages
from accord.functional.corrections import effective_share, token_ratios
from accord.functional.kl import AdaptiveKL, FixedKL
from accord.functional.vtrace import compute_vtrace_parts
from accord.kernels.numpy_actor_critic import NumpyActorCritic
from accord.models.heads import (
    ActorCritic,
    AnyActorCritic,
    GaussianActorCritic,
    MultiDiscreteActorCritic,
    numpy_networks,
)
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.collect import StepActor, StepCollector, StepRollout
from accord.rollout.env.episodes import Vectors
from accord.rollout.env.gym import open_vectors
from accord.rollout.env.normalization import Normalizer
from accord.rollout.env.spaces import Spaces
from accord.runtime.device import resolve_device
from accord.runtime.run import Run
from accord.training.artifact import save_pt
from accord.training.describe import describe_model
from accord.training.numpy_updater import MIN_STEPS_FOR_JIT, NumpyUpdater
from accord.training.policy_loss import ActionScores
from accord.training.rollout_progress import RolloutStats
from accord.training.updater import Updater
from accord.types import PolicyBatch, VectorActions


# ------------------------------------------------------------------------------------- steps to a batch
def prepare_steps(rollout: StepRollout, beta: float, normalize: bool) -> tuple[PolicyBatch, RolloutStats]:
    """A batch with one row of one action per step, advantages by GAE; with a reference, ``beta`` weights its KL penalty."""
    buffer = rollout.buffer
    kl = 0.0
    if rollout.ref_logprobs is not None:
        log_ratio = buffer.log_probs.numpy() - rollout.ref_logprobs
        buffer.rewards.copy_(torch.from_numpy(buffer.rewards.numpy() - beta * log_ratio))
        kl = float(log_ratio.sum()) / max(len(rollout.returns), 1)
    buffer.compute(rollout.last_values)
    rows, valid = buffer.steps(), rollout.valid
    mask = np.ones(len(rows["actions"]), dtype=bool) if valid is None else valid
    advantages, where = rows["advantages"], slice(None) if valid is None else valid
    if normalize:
        advantages[where] = normalize_advantages(advantages[where])
    explained = explained_variance(rows["values"][where], rows["returns"][where])
    columns = (
        torch.from_numpy(x)[:, None] for x in (mask, rows["log_probs"], advantages, rows["values"], rows["returns"])
    )
    inputs = VectorActions(torch.from_numpy(rows["observations"]), torch.from_numpy(rows["actions"]))
    return PolicyBatch(inputs, *columns), step_stats(rollout, kl, explained)


def prepare_stale_steps(
    rollout: StepRollout, version: int, actor: StepActor, training: StepsPPOOptimizer, correction: StepCorrection
) -> tuple[PolicyBatch, RolloutStats]:
    """As ``prepare_steps``, for steps that older weights may have taken: log-probs and values are those of ``version``.

    The policy loss's ratio is against these log-probs; V-trace's is of these against the behavior policy's.
    """
    buffer, versions = rollout.buffer, rollout.versions
    assert versions is not None
    shape = (buffer.n_steps, buffer.n_envs)
    rows = buffer.rows()
    behavior = rows["log_probs"].copy()
    flat = (rows[name].reshape(-1, *rows[name].shape[2:]) for name in ("observations", "actions"))
    rows["log_probs"][:], rows["values"][:] = (found.reshape(shape) for found in actor.score(*flat))
    for t, cut, final in rollout.cuts:
        rows["bootstraps"][t, cut] = actor.values(final)
    last_values = actor.values(rollout.last_observations)
    mask = np.ones(shape, dtype=bool) if rollout.valid is None else rollout.valid.reshape(shape)
    old, sampled, rewards, values, dones, bootstraps, valid = map(
        torch.from_numpy,
        (rows["log_probs"], behavior, rows["rewards"], rows["values"], rows["dones"], rows["bootstraps"], mask),
    )
    rho: Tensor | None = None
    rest = (rewards, values, dones, torch.from_numpy(last_values), training.gamma, training.gae_lambda)
    if correction.kind == "vtrace":
        limits = (correction.rho_bar, correction.c_bar, bootstraps)
        advantages, rho, targets = compute_vtrace_parts(old, sampled, *rest, *limits)
    else:
        advantages, targets = compute_gae(*rest, bootstraps)
    explained = explained_variance(values, targets, valid)
    if training.normalize_advantages:
        advantages = normalize_advantages(advantages, valid)
    if rho is not None:
        advantages = advantages * rho
    columns = (x.reshape(-1, 1).clone() for x in (valid, old, advantages, values, targets))
    inputs = VectorActions(
        *(torch.from_numpy(rows[name]).flatten(0, 1).clone() for name in ("observations", "actions"))
    )
    stats = step_stats(rollout, 0.0, float(explained))
    ages = version - versions
    more = {
        "age_mean": float(ages.mean()),
        "age_max": float(ages.max()),
        "staleness_mean": float((old - sampled)[valid].abs().mean()),
        "ess": effective_share(token_ratios(old, sampled, valid), valid),
    }
    return PolicyBatch(inputs, *columns), replace(stats, metrics={**stats.metrics, **more})


def step_stats(rollout: StepRollout, kl: float, explained: float) -> RolloutStats:
    """The logged metrics of a rollout of steps; ``kl`` in nats per episode."""
    returns, recent = rollout.returns, rollout.recent_returns
    shown = returns or recent[-20:]
    metrics = {
        "episode_return": sum(shown) / max(len(shown), 1),
        "episode_return_100": sum(recent) / max(len(recent), 1),
        "episodes": float(rollout.episodes),
        "timesteps": float(rollout.timesteps),
        "kl": kl,
        "replies": float(len(returns)),
        "explained_variance": explained,
    }
    return RolloutStats(kl, len(returns), metrics)


# ------------------------------------------------------------------------------------- training
def rollout_loop(training: StepsPPOOptimizer) -> RolloutLoop:
    """As many rollouts as ``total_timesteps`` asks for."""
    rows = training.n_steps * training.n_envs
    return RolloutLoop(
        -(-training.total_timesteps // rows),
        rows,
        training.num_epochs,
        training.batch_size,
        training.micro_batch_size,
        training.target_kl,
        adaptive_rate=training.schedule == "kl_adaptive",
    )


@dataclass(frozen=True, slots=True)
class EvaluatedSource:
    """A collector that calls ``evaluate(timesteps)`` before each rollout."""

    collector: Source[StepRollout]
    rows: int  # of a rollout
    evaluate: Callable[[int], None]

    def collect(self, iteration: int) -> StepRollout:
        self.evaluate(iteration * self.rows)
        return self.collector.collect(iteration)

    def state_dict(self) -> dict[str, Any]:
        return self.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.collector.load_state_dict(state)


def new_collector(
    run: Run, actor: StepActor, vectors: Vectors, normalizer: Normalizer, training: StepsPPOOptimizer
) -> StepCollector:
    """A collector with a buffer of the rollout's size."""
    return StepCollector(run, actor, vectors, normalizer, new_buffer(vectors.spaces, training))


def new_buffer(spaces: Spaces, training: StepsPPOOptimizer) -> RolloutBuffer:
    """A buffer of the rollout's size."""
    sizes = (training.n_steps, spaces.obs_dim, training.n_envs, training.gamma, training.gae_lambda)
    return RolloutBuffer(*sizes, continuous=spaces.action_length)


NO_PENALTY = FixedKL(0.0)
NO_CORRECTION = StepCorrection(kind="none")
NO_END = "give the environment a time limit (environment_args.max_episode_steps=…, or truncated=True from a class of your own)"
MAX_NOISE = 2**24
"""Numbers of a rollout's sampling noise in NumPy, which draws it at once (64 MB); beyond it torch samples step by step."""


OpenSource = Callable[[AnyActorCritic, RolloutBuffer], AbstractContextManager[Source[StepRollout]]]
"""(policy, buffer of a rollout's size) to a source of rollouts, which lasts until the end of the block."""


@dataclass(frozen=True, slots=True)
class StepTask:
    """The environments that a policy is trained in, and their extras."""

    vectors: Vectors
    normalizer: Normalizer
    description: Mapping[str, str]  # lines of the plan that is printed before training
    kl: FixedKL | AdaptiveKL = NO_PENALTY  # where the environments have a reference
    evaluate: Callable[[int], None] = lambda timesteps: None  # called before each rollout
    correction: StepCorrection = NO_CORRECTION  # where steps come from elsewhere
    elsewhere: OpenSource | None = None  # where steps do not come from ``vectors``


def networks_for(model: AnyActorCritic, training: StepsPPOOptimizer) -> NumpyActorCritic | None:
    """The model's networks in NumPy; None where NumPy does not train them, or a rollout's noise would be too large."""
    loop = rollout_loop(training)
    if training.weight_decay or loop.rows * model.action_dim > MAX_NOISE:
        return None
    return numpy_networks(model, compiled=loop.steps >= MIN_STEPS_FOR_JIT)


def train_on_steps(run: Run, model: AnyActorCritic, task: StepTask, training: StepsPPOOptimizer) -> dict[str, float]:
    """Trains ``model`` in the task's environments; returns the last rollout's metrics."""
    loop = rollout_loop(training)
    networks = networks_for(model, training)
    updater: PolicyUpdater = (
        NumpyUpdater(networks, training, loop.steps)
        if networks
        else Updater([(model.parameters(), training.peak_rate)], training, loop.steps)
    )
    run.plan(
        {
            "policy": describe_model(model, type(model).__name__),
            **task.description,
            "rollout": f"{training.n_envs} environments x {training.n_steps} steps = {loop.rows} steps",
            "steps": f"{loop.iterations} rollouts (at least {training.total_timesteps} environment steps) x"
            f" {loop.epochs} epochs x {-(-loop.rows // loop.batch_size)} minibatches of {loop.batch_size}",
        }
    )
    actor = StepActor(model, networks)

    def score(inputs: VectorActions) -> ActionScores:
        log_probs, values, entropy = model.evaluate(inputs.observations, inputs.actions)
        return ActionScores(log_probs[:, None], entropy[:, None], values[:, None])

    scaled = task.normalizer.seen is not None  # workers act by older statistics even in step

    def prepare(rollout: StepRollout, version: int, beta: float) -> tuple[PolicyBatch, RolloutStats]:
        versions, uncorrected = rollout.versions, task.correction.kind == "none" and not scaled
        if versions is None or (uncorrected and (versions == version).all()):
            return prepare_steps(rollout, beta, training.normalize_advantages)
        return prepare_stale_steps(rollout, version, actor, training, task.correction)

    algorithm: Algorithm[StepRollout] = Algorithm(
        prepare,
        lambda iteration, beta: ppo_loss(score, training, clip_range_at(training, iteration, loop.iterations)),
        task.kl,
    )
    with ExitStack() as stack:
        steps: Source[StepRollout] = (
            stack.enter_context(task.elsewhere(model, new_buffer(task.vectors.spaces, training)))
            if task.elsewhere
            else new_collector(run, actor, task.vectors, task.normalizer, training)
        )
        source = EvaluatedSource(steps, loop.rows, task.evaluate)
        return dict(train_on_rollouts(run, model, updater, source, algorithm, loop).metrics)


def open_actor(config: ControlPPOConfig, spaces: Spaces) -> StepActor:
    """A policy of the learner's form, for a worker."""
    model = new_policy(spaces, config)
    return StepActor(model, networks_for(model, config.training))


def new_policy(spaces: Spaces, config: ControlPPOConfig) -> AnyActorCritic:
    """A new policy and critic for a task's spaces."""
    if spaces.continuous:
        return GaussianActorCritic(spaces.obs_dim, spaces.action_dim, config.model.hidden_dim, config.model.log_std)
    if spaces.sizes:
        return MultiDiscreteActorCritic(spaces.obs_dim, spaces.sizes, config.model.hidden_dim)
    return ActorCritic(spaces.obs_dim, spaces.action_dim, config.model.hidden_dim)


# ------------------------------------------------------------------------------------- the stage
def train(config: ControlPPOConfig, run: Run) -> dict[str, float]:
    """Trains a policy on a Gymnasium task; saves ``ppo_final.pt``, the curve and, where asked, a video.

    Returns the last rollout's metrics and the evaluation's.
    """
    training, normalize, evaluation = config.training, config.normalize, config.evaluation
    remote = config.rollout.engine == "ray"
    if remote:
        require_step_workers(config)
    vectors = open_vectors(
        config.environment,
        1 if remote else training.n_envs,
        lambda i, e: run.derive("environment", i, e),
        config.environment_args,
    )
    spaces = vectors.spaces
    for note in spaces.notes:
        run.say(note)
    torch.manual_seed(run.derive("init"))
    model = new_policy(spaces, config).to(resolve_device(config.device))
    normalizer = Normalizer(
        spaces.obs_dim, training.n_envs, training.gamma, normalize.observations, normalize.rewards, normalize.clip
    )
    rows = training.n_steps * training.n_envs

    def evaluate_if_due(timesteps: int) -> None:
        every = evaluation.every
        if every and timesteps and timesteps // every > (timesteps - rows) // every:
            numbers = evaluate(config, run, model, normalizer)
            run.record({"timesteps": float(timesteps), **numbers}, prefix="rollout/")

    scaled = " and ".join(name for name in ("observations", "rewards") if getattr(normalize, name))
    description = {
        "acts in": f"{config.environment}: {spaces.words()}",
        "normalized": scaled or "nothing",
    }
    task = StepTask(vectors, normalizer, description, evaluate=evaluate_if_due)
    if remote:
        correction = config.correction_in_force
        workers = (
            f"{config.rollout.workers} on Ray, weights at most {config.rollout.max_staleness} rollouts old; correction:"
        )
        task = replace(
            task,
            description={**description, "workers": f"{workers} {correction.kind}"},
            correction=correction,
            elsewhere=lambda model, buffer: remote_steps(config, Learner(model, normalizer, buffer), open_actor, run),
        )
    last = train_on_steps(run, model, task, training)
    vectors.close()
    if not last["episodes"]:
        run.say(f"no episode ended in {int(last['timesteps'])} steps: returns are unknown; train longer, or {NO_END}")
    if evaluation.episodes:
        numbers = evaluate(config, run, model, normalizer)
        run.record({"timesteps": last["timesteps"], **numbers}, prefix="rollout/")
        run.say(
            f"evaluation: return {numbers['eval_return']:.1f} ± {numbers['eval_return_std']:.1f} over"
            f" {evaluation.episodes} episodes (from {numbers['eval_return_min']:.1f})"
        )
        if cut := int(numbers["eval_cut"]):
            run.say(
                f"{cut} of these episodes were cut off after evaluation.max_steps={evaluation.max_steps} steps, so that their"
                f" returns are those so far; raise it, or {NO_END}"
            )
        last = {**last, **numbers}
    sizes = {"obs_dim": spaces.obs_dim, "action_dim": spaces.action_dim, "hidden_dim": config.model.hidden_dim}
    more: dict[str, Any] = {
        "environment": config.environment,
        "continuous": spaces.continuous,
        "normaliser": normalizer.state_dict(),
    }
    if spaces.sizes:
        more["sizes"] = list(spaces.sizes)
    if spaces.scale is not None and spaces.offset is not None:
        more |= {"action_scale": torch.from_numpy(spaces.scale), "action_offset": torch.from_numpy(spaces.offset)}
    save_pt(run, "ppo_final.pt", model, {**sizes, **more, "metrics": last})
    run.say(f"wrote {run.directory / 'ppo_final.pt'} (load_state_dict of {type(model).__name__})")
    run.write_later("curve.png", lambda: write_curve(config, run))
    run.write_later("episode.gif", lambda: write_video(config, run, model, normalizer))
    return last
