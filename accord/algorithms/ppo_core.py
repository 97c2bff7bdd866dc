"""The PPO that serves every policy: one objective, one loop over rollouts, resumable at every optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accord.config.on_policy import KL, KLCoefficient, LanguagePPOOptimizer, PPOOptimizer
from accord.functional.kl import AdaptiveKL, FixedKL
from accord.functional.losses import combine, entropy_bonus, kl_penalty_loss, ppo_policy_loss, ppo_value_loss
from accord.runtime.run import Run
from accord.training.checkpoint import Checkpoint, Resumable
from accord.training.fit import Steps, fit
from accord.types import LossOutput, PPOBatch, TextActions, VectorActions


@dataclass(frozen=True, slots=True)
class ActionScores:
    """What the policy of now says of actions taken before; (B, T) each, anything where masked."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


Score = Callable[[Any], ActionScores]


class PolicyUpdater(Steps, Resumable, Protocol):
    """``Updater``, or the quick one of small networks."""

    device: torch.device

    def adapt_to_kl(self, approx_kl: float, target: float) -> None: ...


class Source(Protocol):
    """Where rollouts come from.  Whatever it must remember between rollouts is in its state."""

    def collect(self, iteration: int, beta: float) -> tuple[PPOBatch, dict[str, float]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def controller(settings: KLCoefficient) -> FixedKL | AdaptiveKL:
    """The coefficient of the KL: fixed, or steered to ``target`` nats a reply."""
    return AdaptiveKL(settings.beta, settings.target, settings.horizon) if settings.target else FixedKL(settings.beta)


@dataclass(frozen=True, slots=True)
class PPOObjective:
    """Policy loss + vf_coef · value loss − ent_coef · entropy (+ beta · KL estimate), over the valid actions."""

    score: Score
    settings: PPOOptimizer
    kl: KLCoefficient
    beta: float
    policy_weight: float  # of all terms but the value's; 0 while only the critic learns

    def __call__(self, batch: PPOBatch) -> LossOutput:
        new, settings, weight = self.score(batch.inputs), self.settings, self.policy_weight
        clip_value = settings.clip_range_vf or None
        policy = ppo_policy_loss(new.logprobs, batch.logprobs, batch.advantages, batch.mask, settings.clip_range)
        value = ppo_value_loss(new.values, batch.values, batch.returns, batch.mask, clip_value)
        entropy = new.entropy if settings.ent_coef else new.entropy.detach()  # no pass over the logits for nothing
        terms = [
            (weight, policy),
            (settings.vf_coef, value),
            (weight * settings.ent_coef, entropy_bonus(entropy, batch.mask)),
        ]
        if isinstance(self.kl, KL) and self.kl.placement == "loss" and isinstance(batch.inputs, TextActions):
            penalty = kl_penalty_loss(new.logprobs, batch.inputs.ref_logprobs, batch.mask, self.kl.estimator)
            terms.append((weight * self.beta, penalty))
        output = combine(*terms)
        named = {"policy_loss": policy.loss.detach(), "value_loss": value.loss.detach()}
        return LossOutput(output.loss, {**named, **output.metrics})


class Progress:
    """Where PPO stands: the iteration, the rollout being consumed and its numbers, the minibatch in it, the KL
    coefficient."""

    def __init__(self, kl: FixedKL | AdaptiveKL) -> None:
        self.iteration = 0
        self.position = 0
        self.batch: PPOBatch | None = None
        self.kl = kl
        self.numbers: dict[str, float] = {}
        self.stopped = False

    def begin_rollout(self, batch: PPOBatch, numbers: Mapping[str, float]) -> None:
        self.batch, self.numbers = batch, dict(numbers)
        self.position, self.stopped = 0, False

    def finish_rollout(self) -> None:
        """On to the next iteration, with the coefficient that the measured KL of its replies asks for."""
        self.kl = self.kl.update(self.numbers["kl"], int(self.numbers["replies"]))
        self.iteration += 1
        self.batch = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "position": self.position,
            "stopped": self.stopped,
            "kl": self.kl.state(),
            "numbers": self.numbers,
            "batch": {} if self.batch is None else _batch_state(self.batch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration, self.position = int(state["iteration"]), int(state["position"])
        self.stopped = bool(state["stopped"])
        self.kl, self.numbers = type(self.kl)(**state["kl"]), dict(state["numbers"])
        self.batch = _batch_of(state["batch"]) if state["batch"] else None

    def minibatches(self, run: Run, epochs: int, size: int, micro: int) -> Iterator[list[PPOBatch]]:
        """The rest of this rollout's minibatches, each as its micro-batches.

        The order is a function of (seed, iteration, epoch), so that a resumed run takes the same ones.
        """
        assert self.batch is not None
        rows = len(self.batch)
        for index in range(self.position, epochs * -(-rows // size)):
            if self.stopped:
                return
            self.position = index + 1
            if size >= rows and not micro:  # one batch of all: any order gives the same sums
                yield [self.batch]
                continue
            epoch, place = divmod(index, -(-rows // size))
            order = torch.randperm(rows, generator=run.generator("minibatches", self.iteration, epoch))
            chosen = order[place * size : (place + 1) * size]
            yield [self.batch[part.to(self.batch.mask.device)] for part in torch.split(chosen, micro or size)]


def _batch_state(batch: PPOBatch) -> dict[str, Any]:
    names = ("mask", "logprobs", "values", "advantages", "returns")
    state: dict[str, Any] = {name: getattr(batch, name) for name in names}
    if isinstance(batch.inputs, TextActions):
        state["text"] = {
            "prompts": [list(p) for p in batch.inputs.prompts],
            "responses": batch.inputs.responses,
            "ref_logprobs": batch.inputs.ref_logprobs,
        }
    else:
        state["vector"] = {"observations": batch.inputs.observations, "actions": batch.inputs.actions}
    return state


def _batch_of(state: Mapping[str, Any]) -> PPOBatch:
    inputs: TextActions | VectorActions
    if "text" in state:
        text = state["text"]
        prompts = tuple(tuple(p) for p in text["prompts"])
        inputs = TextActions(prompts, text["responses"], state["mask"], text["ref_logprobs"])
    else:
        inputs = VectorActions(**state["vector"])
    names = ("mask", "logprobs", "values", "advantages", "returns")
    return PPOBatch(inputs, *(state[name] for name in names))


def train_policy(
    run: Run,
    model: nn.Module,
    updater: PolicyUpdater,
    source: Source,
    score: Score,
    settings: PPOOptimizer,
    kl: KLCoefficient,
    iterations: int,
    rows_per_rollout: int,
) -> dict[str, float]:
    """Collect, optimise, adapt the KL coefficient; ``iterations`` times.  Returns the last rollout's numbers."""
    progress = Progress(controller(kl))
    parts: dict[str, Resumable] = {"model": model, "updater": updater, "source": source, "progress": progress}
    checkpoint = Checkpoint(run.directory / "state.pt", run.key, parts)
    steps = iterations * settings.num_epochs * -(-rows_per_rollout // settings.batch_size)
    run.begin(steps, checkpoint.restore() if run.resume else 0)
    device = updater.device
    if progress.batch is not None:
        progress.batch = progress.batch.to(device)

    def after_step(metrics: dict[str, float]) -> None:
        if settings.schedule == "kl_adaptive" and settings.target_kl:
            updater.adapt_to_kl(metrics["approx_kl"], settings.target_kl)
        elif settings.target_kl and metrics["approx_kl"] > 1.5 * settings.target_kl:
            progress.stopped = True

    while progress.iteration < iterations:
        if progress.batch is None:
            batch, numbers = source.collect(progress.iteration, progress.kl.beta)
            progress.begin_rollout(batch.to(device), numbers)
            run.record({**numbers, "beta": progress.kl.beta}, prefix="rollout/")
        warmup = settings.value_warmup if isinstance(settings, LanguagePPOOptimizer) else 0
        weight = 0.0 if progress.iteration < warmup else 1.0
        clip = settings.clip_range * (1.0 - progress.iteration / iterations * (settings.clip_schedule == "linear"))
        fit(
            run,
            updater,
            progress.minibatches(run, settings.num_epochs, settings.batch_size, settings.micro_batch_size),
            PPOObjective(score, settings.model_copy(update={"clip_range": clip}), kl, progress.kl.beta, weight),
            save=lambda: checkpoint.save(run.step),
            after_step=after_step,
        )
        progress.finish_rollout()
    return progress.numbers
