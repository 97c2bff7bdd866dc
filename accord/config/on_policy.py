"""Settings of PPO on text: a whole language model, or heads on a frozen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from accord.config.common import DatedStage, Optimizer, ParallelStage, TextModel, require_room
from accord.config.correction import Correction
from accord.config.numbers import (
    Coefficient,
    Count,
    CountOrZero,
    GradientNorm,
    LearningRate,
    Parallel,
    PositiveCoefficient,
    Share,
    Temperature,
    Timesteps,
    Tokens,
    Vocabulary,
    Weight,
    Width,
)
from accord.config.rollout import TextRolloutEngine
from accord.config.section import Section


class PPOOptimizer(Optimizer):
    """Settings of PPO."""

    usual_rate: ClassVar[float] = 3e-4

    batch_size: Count = 32
    """Minibatch size: replies of a language policy, environment steps otherwise."""
    num_epochs: Count = 4
    """Epochs over each rollout."""
    schedule: Literal["constant", "linear", "cosine", "kl_adaptive"] = "constant"  # type: ignore[assignment]
    """linear and cosine fall over the rollouts: steps that target_kl skips count as passed.  kl_adaptive: divide by 1.5
    where the approximate KL exceeds 2 x target_kl, multiply where it is under half."""
    adam_eps: Share = 1e-5
    max_grad_norm: GradientNorm = 0.5
    clip_range: PositiveCoefficient = 0.2
    """Clip range ε: the probability ratio is clipped to [1 - ε, 1 + ε]."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """linear: clip_range falls to zero over the rollouts, by the same rule as the learning rate, once a rollout."""
    clip_range_vf: Coefficient = 0.2
    """Clip range of the value around the old value; 0: no clipping."""
    gamma: Share = 0.99
    """Discount factor."""
    gae_lambda: Share = 0.95
    """λ of GAE.  0: one-step advantages; 1: Monte Carlo returns minus values."""
    vf_coef: Coefficient = 0.5
    """Coefficient of the value loss."""
    ent_coef: Coefficient = 0.0
    """Coefficient of the entropy bonus."""
    normalize_advantages: bool = True
    """Normalize advantages over the rollout's valid actions."""
    target_kl: Coefficient = 0.0
    """Stop a rollout's updates early when the approximate KL to the behavior policy exceeds 1.5 x this; 0: never."""

    @model_validator(mode="after")
    def _fits(self) -> PPOOptimizer:
        if self.schedule == "kl_adaptive" and not self.target_kl:
            raise ValueError("training.schedule=kl_adaptive needs training.target_kl, the KL to adapt to")
        return self


class LanguagePPOOptimizer(PPOOptimizer):
    """Settings of PPO on replies of a language model."""

    schedule: Literal["constant", "linear", "cosine", "kl_adaptive"] = "linear"
    """linear and cosine fall over the rollouts: steps that target_kl skips count as passed.  kl_adaptive: divide by 1.5
    where the approximate KL exceeds 2 x target_kl, multiply where it is under half."""
    gamma: Share = 1.0
    """Discount factor."""
    iterations: Count = 30
    """Number of rollouts."""
    replies: Count = 64
    """Replies per rollout."""
    samples_per_prompt: Count = 1
    """Replies per prompt within a rollout."""
    critic_learning_rate: LearningRate = 0.0
    """Learning rate of the value head and of a separate critic; 0: the policy's."""
    value_warmup: CountOrZero = 0
    """Iterations at the start that train only the critic."""


class StepsPPOOptimizer(PPOOptimizer):
    """Settings of PPO on environment steps."""

    learning_rate: LearningRate | None = 3e-4
    total_timesteps: Timesteps = 500
    """Total environment steps."""
    n_steps: Count = 32
    """Steps per environment and rollout."""
    n_envs: Parallel = 1
    """Parallel environments."""


class KLCoefficient(Section):
    """The KL penalty to the reference model."""

    beta: Coefficient = 0.05
    """Coefficient of the KL; with a target, its initial value."""
    target: Coefficient = 0.0
    """Target KL in nats per reply (adaptive KL); 0: fixed beta."""
    horizon: Count = 10000
    """Horizon of the adaptive KL, in replies (Ziegler et al. 2019)."""


class KL(KLCoefficient):
    """The KL penalty, and where and how it is computed."""

    placement: Literal["reward", "loss"] = "reward"
    """reward: -beta x k1 on each token; loss: beta x the estimator added to the loss."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 in the reward; k2 (unbiased gradient) or k3 (biased gradient) in the loss."""

    @model_validator(mode="after")
    def _fits(self) -> KL:
        if (self.estimator == "k1") != (self.placement == "reward"):
            raise ValueError(
                f"kl.placement={self.placement} takes estimator k1 for 'reward', k2 or k3 for 'loss', not {self.estimator}"
                " (k1 in the loss has no gradient on average)"
            )
        return self


class RewardTerm(Section):
    """One term of the reward."""

    source: str
    """A trained reward model (stage or folder) or module:function(prompts, replies) -> scores."""
    weight: Weight = 1.0
    """Weight of the score in the sum of the terms."""


class RewardSettings(Section):
    """The reward, and how scores are shaped."""

    source: str = "reward"
    """A trained reward model (stage or folder) or module:function(prompts, replies) -> scores."""
    terms: tuple[RewardTerm, ...] = ()
    """Several weighted rewards instead of source; each is logged separately."""
    missing_eos_penalty: Weight | None = None
    """Score of a reply that did not end within max_new_tokens, in place of its own; null: its own."""
    clip: Coefficient = 0.0
    """Clip scores to [-clip, clip]; 0: no clipping."""
    scale: Weight = 1.0
    """Factor of the scores, applied before clip."""


class LanguageRewardSettings(RewardSettings):
    """The reward, and how scores and token rewards are shaped."""

    whiten: bool = False
    """Divide token rewards by their standard deviation over the rollout.  They are not centered: the mean is divided too."""


class HeadsSampling(Section):
    """How replies are sampled."""

    max_new_tokens: Tokens = 64
    """Maximum tokens of a reply."""


class Sampling(HeadsSampling):
    """How replies are sampled.  There is no top-k or top-p: the sampled policy is the trained policy."""

    temperature: Temperature = 1.0
    """Temperature of sampling, used for log-probs as well."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Weights of the sampling model.  float32: the policy itself; bfloat16, int8: a copy made for each rollout, after which
    the policy recomputes the log-probs, and the difference is logged as mismatch_mean and mismatch_max."""


class LanguagePolicy(TextModel):
    """A whole language model and its critic."""

    policy: Literal["language"] = "language"
    """language: a whole language model; heads: ActorCritic on a frozen language model's features; control: a Gymnasium task."""
    base_model: str = "sft"
    critic: Literal["shared", "shared_detached", "separate", "reward"] = "separate"
    """Where the value head sits: on a copy of the policy (separate), on a copy of the reward model (reward), or on the
    policy's own trunk (shared; shared_detached: without gradient into the trunk), which takes less memory."""


class HeadsPolicy(TextModel):
    """ActorCritic on a frozen language model's features."""

    policy: Literal["heads"] = "heads"
    """language: a whole language model; heads: ActorCritic on a frozen language model's features; control: a Gymnasium task."""
    base_model: str = "sft"
    obs_dim: Width = 128
    """Hidden size of the frozen model."""
    action_dim: Vocabulary = 50
    """Vocabulary size of the frozen model."""
    hidden_dim: Width = 64
    """Hidden size of the actor and the critic."""


class LanguagePPOConfig(ParallelStage, DatedStage):
    """PPO on a whole language model."""

    retired: ClassVar[Mapping[str, Any]] = {"model.max_prompt_length": 0}
    later: ClassVar[frozenset[str]] = frozenset({"rollout", "correction"})

    model: LanguagePolicy = LanguagePolicy()
    training: LanguagePPOOptimizer = LanguagePPOOptimizer()
    kl: KL = KL()
    reward: LanguageRewardSettings = LanguageRewardSettings()
    sampling: Sampling = Sampling()
    rollout: TextRolloutEngine = TextRolloutEngine()
    correction: Correction = Correction()
    prompts: str = "demo"
    """Prompts (a folder, a stage or a file)."""
    reference: str = ""
    """Reference model of the KL; empty: the model that training starts from."""

    @property
    def correction_in_force(self) -> Correction:
        """The correction, with ``auto`` decided by whether replies may be stale."""
        return self.correction.resolved(self.rollout.may_be_stale)

    @model_validator(mode="after")
    def _has_room(self) -> LanguagePPOConfig:
        require_room(self.model.max_length, self.sampling.max_new_tokens, "sampling.max_new_tokens")
        return self


class HeadsPPOConfig(DatedStage):
    """PPO on heads over a frozen language model's features, which is the reference."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32", "model.max_prompt_length": 0}

    model: HeadsPolicy = HeadsPolicy()
    training: StepsPPOOptimizer = StepsPPOOptimizer()
    kl: KLCoefficient = KLCoefficient()
    reward: RewardSettings = RewardSettings()
    sampling: HeadsSampling = HeadsSampling()
    prompts: str = "demo"
    """Prompts (a folder, a stage or a file)."""

    @model_validator(mode="after")
    def _has_room(self) -> HeadsPPOConfig:
        require_room(self.model.max_length, self.sampling.max_new_tokens, "sampling.max_new_tokens")
        return self
