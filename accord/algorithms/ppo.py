"""PPO on a whole language model: replies are sampled and scored, and every token is an action.

Schulman et al. 2017 (arXiv 1707.06347), with the details of Ziegler et al. 2019 and Huang et al. 2022, 2024:
 1. the sampling temperature divides the logits in old and new log-probs alike; no top-k, no top-p;
 2. old log-probs and values come from the sampling pass, so the first minibatch's ratio is 1; where sampler and trainer
    differ (bfloat16, an int8 sampler), the trainer recomputes the old log-probs and the mismatch is logged;
 3. there is no dropout;
 4. a reply ends at its EOS, which is an action; nothing after it is scored;
 5. the score is added once, at the last token; -beta (log pi - log pi_ref) on every token (or k2, k3 in the loss);
 6. beta is fixed or adapts to a target (Ziegler et al. 2019, section 2.2) and is part of the saved state;
 7. a reply without EOS gets ``reward.missing_eos_penalty`` instead of its score;
 8. GAE runs over valid tokens only;
 9. advantages are whitened once over the rollout's valid tokens (Huang et al. 2022 whiten each minibatch);
10. value loss: half the maximum of clipped and unclipped; the value head starts at zero, or from the reward model;
11. Adam's epsilon is 1e-5; gradients are clipped at norm 0.5.

``train_on_rollouts`` is the loop that every algorithm on rollouts shares (``ppo_heads``, ``ppo_control``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from accord.config.on_policy import KLCoefficient, LanguagePPOConfig, PPOOptimizer
from accord.config.rollout import TextRolloutEngine
from accord.data.prompts import PromptData, load_prompts
from accord.data.tokenizer import Tokenizer
from accord.distributed import mesh
from accord.distributed.rollouts import read_divided, require_prompts
from accord.distributed.shards import spread
from accord.distributed.sources import require_chunks, text_rollouts
from accord.errors import UserError
from accord.functional.advantages import explained_variance, token_gae
from accord.functional.corrections import (
    decoupled_weights,
    truncated_sequence_weights,
    truncated_token_weights,
)
from accord.functional.kl import AdaptiveKL, FixedKL
from accord.functional.masked import whiten, wide
from accord.functional.vtrace import token_vtrace_parts
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.models.quantized import sampling_model
from accord.models.reference import FrozenReference
from accord.models.reward import RewardModel, is_reward_model
from accord.rollout.collect import TextTask, pack_texts, to_rows
from accord.rollout.generate import Decoding
from accord.rollout.score import model_rewards, open_rewards, reward_models
from accord.rollout.shaping import shape_scores, token_rewards, whiten_rewards
from accord.rollout.staleness import is_stale, staleness_metrics
from accord.rollout.text_source import TextSource
from accord.runtime.device import autocast
from accord.runtime.run import Run
from accord.training.artifact import open_policy, open_tokenizer, require_fit, require_same_tokens, save_model
from accord.training.checkpoint import Checkpoint, Resumable
from accord.training.describe import describe_memory, describe_model, memory_by_strategy
from accord.training.fit import finish_step
from accord.training.policy_loss import (
    ActionScores,
    ClippedSurrogate,
    EntropyBonus,
    LossTerm,
    PolicyLoss,
    ReferenceKL,
    ValueLoss,
)
from accord.training.rollout_progress import RolloutProgress, RolloutStats, minibatches
from accord.training.updater import Updater
from accord.types import PolicyBatch, Rollout, TextActions

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


# ------------------------------------------------------------------------------------- the loop
class PolicyUpdater(Resumable, Protocol):
    """``Updater`` or ``NumpyUpdater``."""

    device: torch.device

    def step(self, batch: Sequence[Any], objective: Any, schedule_step: int) -> dict[str, float]: ...

    def adapt_to_kl(self, approx_kl: float, target: float) -> None: ...


class Source(Resumable, Protocol[R_co]):
    """Where rollouts come from; its state is what it carries from one rollout to the next."""

    def collect(self, iteration: int) -> R_co: ...


@dataclass(frozen=True, slots=True)
class Algorithm(Generic[R]):
    """How a rollout becomes a batch with advantages, and the loss over its minibatches."""

    prepare: Callable[[R, int, float], tuple[PolicyBatch, RolloutStats]]  # (rollout, iteration, KL coefficient)
    loss: Callable[[int, float], PolicyLoss]  # (iteration, KL coefficient)
    kl: FixedKL | AdaptiveKL


@dataclass(frozen=True, slots=True)
class RolloutLoop:
    """The number of rollouts, and how each is split into optimizer steps."""

    iterations: int
    rows: int  # of a rollout
    epochs: int  # passes over a rollout
    batch_size: int  # rows of a minibatch
    micro_batch_size: int = 0  # rows of a forward pass; 0: the whole minibatch
    target_kl: float = 0.0  # 0: approximate KLs stop nothing
    adaptive_rate: bool = False  # the learning rate follows the approximate KL, in place of early stopping

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps on a rollout that is not stopped early."""
        return self.epochs * -(-self.rows // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps where nothing stops early."""
        return self.iterations * self.steps_per_rollout


def train_on_rollouts(
    run: Run, model: nn.Module, updater: PolicyUpdater, source: Source[R], algorithm: Algorithm[R], loop: RolloutLoop
) -> RolloutStats:
    """Collect, prepare, optimize, adapt the KL coefficient, ``loop.iterations`` times; returns the last rollout's statistics.

    The learning rate's schedule follows the rollouts, as the clip range does: steps that early stopping skips count as
    passed.  A run that resumes continues with the next minibatch of the rollout that it was in.
    """
    progress = RolloutProgress(algorithm.kl)
    parts: dict[str, Resumable] = {"model": model, "updater": updater, "source": source, "progress": progress}
    checkpoint = Checkpoint(run.directory / "state.pt", run.key, parts)
    run.begin(loop.steps, checkpoint.restore() if run.resume else 0)

    while progress.iteration < loop.iterations:
        iteration, beta = progress.iteration, progress.kl.beta
        batch = progress.batch
        if batch is None:
            batch, stats = algorithm.prepare(source.collect(iteration), iteration, beta)
            progress.begin_rollout(batch, stats)
            run.record({**stats.metrics, "beta": beta}, prefix="rollout/")
        batch = batch.to(updater.device)
        loss = algorithm.loss(iteration, beta)
        done = 0
        for epoch in range(loop.epochs):
            order = run.derive("minibatches", iteration, epoch)
            for minibatch in minibatches(batch, loop.batch_size, loop.micro_batch_size, order):
                done += 1
                if done <= progress.minibatch or progress.stopped_early:
                    continue  # done before this run resumed, or the rollout has moved the policy far enough
                metrics = updater.step(minibatch, loss, iteration * loop.steps_per_rollout + done - 1)
                progress.minibatch = done
                if loop.adaptive_rate:
                    updater.adapt_to_kl(metrics["approx_kl"], loop.target_kl)
                elif loop.target_kl and metrics["approx_kl"] > 1.5 * loop.target_kl:
                    progress.stopped_early = True
                finish_step(run, checkpoint, metrics)
        progress.finish_rollout()
    return progress.stats


# ------------------------------------------------------------------------------------- the loss
def ppo_loss(
    score: Callable[[Any], ActionScores],
    training: PPOOptimizer,
    clip_range: float,
    policy_weight: float = 1.0,
    more_terms: Sequence[tuple[float, LossTerm]] = (),
) -> PolicyLoss:
    """policy_weight · (clipped surrogate − ent_coef · entropy) + vf_coef · value loss + more terms."""
    return PolicyLoss(
        score,
        [
            (policy_weight, ClippedSurrogate(clip_range)),
            (training.vf_coef, ValueLoss(training.clip_range_vf)),
            (policy_weight * training.ent_coef, EntropyBonus(metric_only=not training.ent_coef)),
            *more_terms,
        ],
    )


def clip_range_at(training: PPOOptimizer, iteration: int, iterations: int) -> float:
    """The clip range of a rollout: constant, or falling linearly to zero over the rollouts."""
    return training.clip_range * (1.0 - iteration / iterations * (training.clip_schedule == "linear"))


def kl_controller(settings: KLCoefficient) -> FixedKL | AdaptiveKL:
    """The KL coefficient: fixed, or adapting to ``target`` nats per reply."""
    return AdaptiveKL(settings.beta, settings.target, settings.horizon) if settings.target else FixedKL(settings.beta)


# ------------------------------------------------------------------------------------- replies to a batch
IMPORTANCE_WEIGHTS: Mapping[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "token_tis": truncated_token_weights,
    "sequence_tis": truncated_sequence_weights,
    "decoupled": decoupled_weights,
}
"""(old log-probs, behavior log-probs, mask, limit) to the weights of the policy loss, by ``correction.kind``."""


def prepare(
    rollout: Rollout, version: int, policy: LanguageActorCritic, beta: float, config: LanguagePPOConfig
) -> tuple[PolicyBatch, RolloutStats]:
    """Old log-probs and values of a rollout under the weights ``version``, then the batch of ``token_batch``."""
    stale = is_stale(rollout, version)
    old_logprobs, values, mismatch = policy_pass(rollout, policy, config, recompute=stale)
    batch, explained = token_batch(rollout, old_logprobs, values, beta, config)
    log_ratios = torch.where(batch.mask, old_logprobs - rollout.ref_logprobs, 0.0)
    if stale or config.correction_in_force.kind != "none":
        mismatch = {**mismatch, **staleness_metrics(rollout, version, old_logprobs)}
    return batch, text_stats(rollout, float(log_ratios.sum(1).mean()), {"explained_variance": explained, **mismatch})


def token_batch(
    rollout: Rollout, old_logprobs: Tensor, values: Tensor, beta: float, config: LanguagePPOConfig
) -> tuple[PolicyBatch, float]:
    """Token rewards with the KL penalty of coefficient ``beta``, and GAE; also the explained variance of the values."""
    training, shaping, generation, mask = config.training, config.reward, rollout.generation, rollout.generation.mask
    scores = shape_scores(
        rollout.scores,
        generation.ended,
        scale=shaping.scale,
        clip=shaping.clip,
        missing_eos_penalty=shaping.missing_eos_penalty,
    )
    penalty = beta if config.kl.placement == "reward" else 0.0
    rewards = token_rewards(scores, old_logprobs, rollout.ref_logprobs, mask, penalty)
    if shaping.whiten:
        rewards = whiten_rewards(rewards, mask)
    behavior, correction = generation.logprobs, config.correction_in_force
    weights = None
    if correction.kind == "vtrace":
        limits = (training.gamma, training.gae_lambda, correction.rho_bar, correction.c_bar)
        advantages, weights, returns = token_vtrace_parts(old_logprobs, behavior, rewards, values, mask, *limits)
    else:
        advantages, returns = token_gae(rewards, values, mask, training.gamma, training.gae_lambda)
        if correction.kind != "none":
            cap = correction.cap or torch.inf
            weights = IMPORTANCE_WEIGHTS[correction.kind](old_logprobs, behavior, mask, cap)
    explained = explained_variance(values, returns, mask)
    if training.normalize_advantages:
        advantages = whiten(advantages, mask)
    if weights is not None:  # factors of 0 or more: the same on the advantages as on the clipped surrogate
        advantages = advantages * weights
    inputs = TextActions(generation.prompts, generation.responses, mask, rollout.ref_logprobs)
    return PolicyBatch(inputs, mask, old_logprobs, advantages, values, returns), float(explained)


def policy_pass(
    rollout: Rollout, policy: LanguageActorCritic, config: LanguagePPOConfig, recompute: bool = False
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Old log-probs (B, T), values (B, T), and metrics of the mismatch between sampler and trainer.

    Log-probs come from the sampling pass where the policy itself sampled in float32, values where it sampled and the
    critic shares its trunk; otherwise, and with ``recompute``, for replies that older weights sampled, they are computed
    again in passes over whole replies.
    """
    generation, temperature = rollout.generation, config.sampling.temperature
    size = config.training.micro_batch_size or config.training.batch_size
    logprobs, values = generation.logprobs, rollout.readout
    mismatch: dict[str, float] = {}
    with autocast(next(policy.parameters()).device, config.precision):
        if values is None or recompute:
            values = read_divided(generation, size, policy.critic_values)
        differs = bool({config.precision, config.sampling.weights, config.rollout.weights_dtype} - {"auto", "float32"})
        if differs or recompute:
            logprobs = read_divided(
                generation, size, lambda packed, at: reply_logprobs(policy.policy, packed, at, temperature)
            )
        if differs and not recompute:
            difference = (logprobs - generation.logprobs)[generation.mask].abs()
            mismatch = {"mismatch_mean": float(difference.mean()), "mismatch_max": float(difference.max())}
    return logprobs, values, mismatch


def text_stats(rollout: Rollout, kl: float, more: dict[str, float]) -> RolloutStats:
    """The logged metrics of a rollout of text; ``kl`` in nats per reply."""
    generation = rollout.generation
    metrics = {
        "score": float(rollout.scores.mean()),
        "score_std": float(rollout.scores.std(correction=0)),
        "kl": kl,
        "length": float(generation.lengths.float().mean()),
        "replies": float(len(generation.prompts)),
        "eos_rate": float(generation.ended.float().mean()),
        **more,
        **{f"term/{name}": float(values.mean()) for name, values in rollout.terms.items()},
    }
    return RolloutStats(kl, len(generation.prompts), metrics)


def score_texts(policy: LanguageActorCritic, temperature: float, inputs: TextActions) -> ActionScores:
    """(B, T) log-probs, entropies and values of replies under the current policy."""
    packed, at = pack_texts(inputs.prompts, inputs.responses, inputs.mask)
    scores = policy.score(packed, at, temperature)
    return ActionScores(*(to_rows(wide(x), inputs.mask) for x in (scores.logprobs, scores.entropy, scores.values)))


def ppo_on_text(policy: LanguageActorCritic, config: LanguagePPOConfig) -> Algorithm[Rollout]:
    """PPO's batch, loss and KL coefficient for replies of ``policy``."""
    training, kl = config.training, config.kl

    def loss(iteration: int, beta: float) -> PolicyLoss:
        weight = 0.0 if iteration < training.value_warmup else 1.0  # in the warm-up the critic alone learns
        kl_terms: list[tuple[float, LossTerm]] = (
            [(weight * beta, ReferenceKL(kl.estimator))] if kl.placement == "loss" else []
        )
        score = partial(score_texts, policy, config.sampling.temperature)
        return ppo_loss(score, training, clip_range_at(training, iteration, training.iterations), weight, kl_terms)

    return Algorithm(
        lambda rollout, version, beta: prepare(rollout, version, policy, beta, config), loss, kl_controller(kl)
    )


# ------------------------------------------------------------------------------------- the stage
def train(config: LanguagePPOConfig, run: Run) -> dict[str, float]:
    """Trains policy and critic and saves the policy as the stage's model; returns the last rollout's metrics."""
    _check(config)
    device, training, sampling = mesh.local_device(config.device), config.training, config.sampling
    tokenizer = open_tokenizer(config.model.base_model)
    if config.reference:
        require_same_tokens("reference", config.reference, config.model.base_model, tokenizer)
    backbone, reference, task = open_task(config, tokenizer, device)
    judges, prompts = list(reward_models(task.reward)), task.prompts
    policy = LanguageActorCritic(backbone, config.model.critic, initial_critic(config, tokenizer)).to(device)
    loop = RolloutLoop(
        training.iterations,
        training.replies,
        training.num_epochs,
        training.batch_size,
        training.micro_batch_size,
        training.target_kl,
        adaptive_rate=training.schedule == "kl_adaptive",
    )
    trunks = [backbone, policy.critic_backbone, reference, *(judge.backbone for judge in judges)]
    processes = spread([trunk for trunk in trunks if trunk is not None], config.parallel)
    describe(run, config, policy, prompts, loop, [reference, *judges], processes)
    updater = Updater(
        [
            (policy.policy_parameters(), training.peak_rate),
            (policy.critic_parameters(), training.critic_learning_rate or training.peak_rate),
        ],
        training,
        loop.steps,
        config.precision,
    )
    itself = sampling.weights == "float32" and config.rollout == TextRolloutEngine()  # not in chunks, nor by workers
    alone = TextSource(
        run,
        task,
        partial(sampling_model, backbone, sampling.weights),
        training.replies // training.samples_per_prompt,
        device,
        config.precision,
        policy.values if policy.values_come_with_sampling and itself else None,
    )
    with text_rollouts(config, alone, backbone, judges, open_worker_task) as source:
        last = dict(train_on_rollouts(run, policy, updater, source, ppo_on_text(policy, config), loop).metrics)
    save_model(run, backbone, tokenizer, "ppo", last, {"policy": "language"})
    return last


def open_task(
    config: LanguagePPOConfig, tokenizer: Tokenizer, device: torch.device
) -> tuple[Backbone, Backbone, TextTask]:
    """The model that training starts from, the reference, and the task.  Raises UserError where they do not fit."""
    sampling, training = config.sampling, config.training
    backbone = open_policy(config.model.base_model, tokenizer, device)
    reference = open_policy(config.reference or config.model.base_model, tokenizer, device).requires_grad_(False)
    reward = open_rewards(config.reward, tokenizer, device)
    prompts = load_prompts(config.prompts, tokenizer, config.model.max_length - sampling.max_new_tokens)
    for path, model in (
        (config.model.base_model, backbone),
        (config.reference or config.model.base_model, reference),
    ):
        require_fit(path, model, tokenizer, prompts.longest + sampling.max_new_tokens)
    for term in model_rewards(
        reward
    ):  # a reward with another tokenizer counts other tokens, which are checked as they come
        longest = prompts.longest + sampling.max_new_tokens if term.same_tokens else 0
        require_fit("the reward model", term.model.backbone, term.tokenizer, longest)
    task = TextTask(
        prompts,
        tokenizer,
        Decoding(sampling.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, sampling.temperature),
        training.samples_per_prompt,
        reward,
        FrozenReference(reference, sampling.temperature),
        training.micro_batch_size or training.batch_size,
    )
    return backbone, reference, task


def open_worker_task(config: LanguagePPOConfig, device: torch.device) -> tuple[Backbone, TextTask]:
    """What a worker samples and scores with: a model of the policy's form, and the task."""
    backbone, _, task = open_task(config, open_tokenizer(config.model.base_model), device)
    return backbone, task


def _check(config: LanguagePPOConfig) -> None:
    """Raises UserError for settings that contradict each other."""
    training = config.training
    if training.replies % training.samples_per_prompt:
        raise UserError(
            f"training.replies ({training.replies}) must be a multiple of training.samples_per_prompt"
            f" ({training.samples_per_prompt})."
        )
    prompts = training.replies // training.samples_per_prompt
    require_chunks(config, prompts)
    require_prompts(prompts)
    if config.rollout.lag and (mesh.size() > 1 or config.parallel.strategy == "fsdp"):
        raise UserError(
            "rollout.lag simulates old weights on one process; use parallel.nproc=1 and parallel.strategy=ddp."
        )
    if config.parallel.strategy == "fsdp" and config.sampling.weights != "float32":
        raise UserError(
            f"sampling.weights={config.sampling.weights} copies the whole policy, which no rank of fsdp holds; use"
            " sampling.weights=float32, or parallel.strategy=ddp."
        )
    if training.value_warmup and config.model.critic == "shared":
        raise UserError(
            "training.value_warmup needs a critic that does not move the policy's trunk:"
            " model.critic=shared_detached, separate or reward."
        )


def initial_critic(config: LanguagePPOConfig, tokenizer: Tokenizer) -> RewardModel | None:
    """The reward model that ``critic=reward`` starts from; None for another critic.

    Raises UserError where ``reward.source`` is no reward model, or has another tokenizer than the policy.
    """
    if config.model.critic != "reward":
        return None
    source = config.reward.source
    if config.reward.terms or not is_reward_model(source):
        raise UserError(
            "model.critic=reward starts from the reward model; set reward.source to one, without reward.terms."
        )
    if Tokenizer.open(source).digest() != tokenizer.digest():
        raise UserError(f"model.critic=reward: {source} has another tokenizer than the policy; use critic=separate.")
    return RewardModel.open(source)


def describe(
    run: Run,
    config: LanguagePPOConfig,
    policy: LanguageActorCritic,
    prompts: PromptData,
    loop: RolloutLoop,
    frozen_models: list[nn.Module],
    processes: Mapping[str, str],
) -> None:
    """Prints what the run will do."""
    training, sampling = config.training, config.sampling
    tokens = training.micro_batch_size or training.batch_size
    tokens *= sampling.max_new_tokens + sum(map(len, prompts.prompts)) // len(prompts.prompts)
    source = " + ".join(f"{t.weight} x {t.source}" for t in config.reward.terms) or config.reward.source
    adapts = f", adapting to {config.kl.target} nats per reply" if config.kl.target else ", fixed"
    run.plan(
        {
            "policy": describe_model(policy, f"{config.model.base_model} with a {config.model.critic} critic"),
            "prompts": prompts.report.describe(),
            "reward": source,
            "KL": f"beta {config.kl.beta}{adapts}, in the {config.kl.placement} ({config.kl.estimator})",
            "rollout": f"{training.replies} replies ({training.samples_per_prompt} to a prompt) of up to"
            f" {sampling.max_new_tokens} tokens at temperature {sampling.temperature}",
            "steps": f"{loop.iterations} rollouts x {loop.epochs} epochs x {-(-loop.rows // loop.batch_size)}"
            f" minibatches of {loop.batch_size} replies = {loop.steps} steps",
            **processes,
            "memory": describe_memory(policy, policy.policy.width, tokens, frozen_models),
        },
        memory_by_strategy(config, policy, policy.policy.width, tokens, frozen_models),
    )
