"""Settings of PPO on text: a whole language model, or heads on a frozen one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from accord.config.common import Optimizer, Positive, Rate, Share, Stage, TextModel
from accord.config.section import Section


class PPOOptimizer(Optimizer):
    """PPO's numbers; the names are the field's."""

    batch_size: Positive = 32
    """Rows in a minibatch: replies of a language policy, steps of the others."""
    num_epochs: Positive = 4
    """Passes over each rollout."""
    learning_rate: Rate = 3e-4
    schedule: Literal["constant", "linear", "cosine", "kl_adaptive"] = "constant"  # type: ignore[assignment]
    """linear and cosine fall over the rollouts: steps that target_kl skips count as passed.  kl_adaptive: divide by 1.5
    where the approximate KL exceeds 2 x target_kl, multiply where it is under half."""
    adam_eps: Rate = 1e-5
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.5
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    """The ratio counts only within [1 - this, 1 + this]."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """linear: clip_range falls to zero over the rollouts, by the same rule as the learning rate, once a rollout."""
    clip_range_vf: Annotated[float, Field(ge=0)] = 0.2
    """Value clipping around the old values; 0: none."""
    gamma: Share = 0.99
    """Discount."""
    gae_lambda: Share = 0.95
    """0: one-step advantages; 1: returns less values."""
    vf_coef: Rate = 0.5
    """Weight of the value loss."""
    ent_coef: Rate = 0.0
    """Weight of the entropy bonus."""
    normalize_advantages: bool = True
    """Over the rollout's valid actions, once."""
    target_kl: Rate = 0.0
    """End a rollout's updates when the approximate KL from the sampling policy exceeds 1.5 x this; 0: never."""

    @model_validator(mode="after")
    def _fits(self) -> PPOOptimizer:
        if self.schedule == "kl_adaptive" and not self.target_kl:
            raise ValueError("training.schedule=kl_adaptive needs training.target_kl, the KL to steer to")
        return self


class LanguagePPOOptimizer(PPOOptimizer):
    """The same over replies."""

    gamma: Share = 1.0
    """Discount."""
    iterations: Positive = 30
    """Rollouts in all."""
    replies: Positive = 64
    """Replies in a rollout."""
    samples_per_prompt: Positive = 1
    """Replies to the same prompt within a rollout."""
    critic_learning_rate: Rate = 0.0
    """For the value head and a critic's own trunk; 0: the same as the policy's."""
    value_warmup: Annotated[int, Field(ge=0)] = 0
    """First iterations in which only the critic learns."""


class StepsPPOOptimizer(PPOOptimizer):
    """The same over steps of environments."""

    total_timesteps: Positive = 500
    """Environment steps in all."""
    n_steps: Positive = 32
    """Steps in each environment before an update."""
    n_envs: Positive = 1
    """Environments side by side."""


class KLCoefficient(Section):
    """The weight of the KL to the reference model."""

    beta: Rate = 0.05
    """Weight of the KL; with a target, where it starts."""
    target: Rate = 0.0
    """Nats per reply at which beta settles; 0: beta stays."""
    horizon: Positive = 10000
    """Replies over which beta adapts."""


class KL(KLCoefficient):
    """The same, and where the KL stands."""

    placement: Literal["reward", "loss"] = "reward"
    """reward: -beta x k1 on each token; loss: beta x the estimator added to the loss."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 in the reward; k2 (the KL's gradient) or k3 (biased gradient) in the loss."""

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
    weight: float = 1.0
    """The score is multiplied by this before the terms are added."""


class RewardSettings(Section):
    """What is rewarded, and how the score is shaped."""

    source: str = "reward"
    """A trained reward model (stage or folder) or module:function."""
    terms: tuple[RewardTerm, ...] = ()
    """Several rewards with weights, instead of source; each is logged apart."""
    missing_eos_penalty: float | None = None
    """Replaces the score of a reply that did not end within the budget; null: none."""
    clip: Rate = 0.0
    """Scores are clipped to [-clip, clip]; 0: not."""
    scale: float = 1.0
    """Scores are multiplied by this."""


class LanguageRewardSettings(RewardSettings):
    """The same, and how the rewards of tokens are shaped."""

    whiten: bool = False
    """Token rewards are divided by their deviation over the rollout, mean kept."""


class HeadsSampling(Section):
    """How replies are sampled."""

    max_new_tokens: Positive = 64
    """The budget of a reply."""


class Sampling(HeadsSampling):
    """How replies are sampled.  No top-k and no top-p: the policy that is trained is the policy that is sampled."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The same in sampling and in scoring."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """What samples.  float32: the policy itself.  bfloat16, int8: a copy made for each rollout; the policy then
    computes the log-probs again, and the difference is logged as mismatch_mean and mismatch_max."""


class LanguagePolicy(TextModel):
    """A whole language model and its critic."""

    policy: Literal["language"] = "language"
    """language: the whole model; heads: ActorCritic on a frozen language model's features; control: a Gymnasium task."""
    base_model: str = "sft"
    critic: Literal["shared", "shared_detached", "separate", "reward"] = "shared"
    """A value head on the policy's trunk (detached: its gradient stops at the head), on a model of its own, or on a
    copy of the reward model."""


class HeadsPolicy(TextModel):
    """ActorCritic on a frozen language model's features."""

    policy: Literal["heads"] = "heads"
    """language: the whole model; heads: ActorCritic on a frozen language model's features; control: a Gymnasium task."""
    base_model: str = "sft"
    obs_dim: Positive = 128
    """Width of the frozen model."""
    action_dim: Positive = 50
    """Its vocabulary."""
    hidden_dim: Positive = 64
    """Width of the actor's and the critic's hidden layers."""


class LanguagePPOConfig(Stage):
    """PPO on a whole language model."""

    model: LanguagePolicy = LanguagePolicy()
    training: LanguagePPOOptimizer = LanguagePPOOptimizer()
    kl: KL = KL()
    reward: LanguageRewardSettings = LanguageRewardSettings()
    sampling: Sampling = Sampling()
    prompts: str = "demo"
    """Prompts (a folder, a stage or a file)."""
    reference: str = ""
    """The reference model; empty: the model that training starts from."""


class HeadsPPOConfig(Stage):
    """PPO on heads over a frozen language model's features, which is the reference."""

    model: HeadsPolicy = HeadsPolicy()
    training: StepsPPOOptimizer = StepsPPOOptimizer()
    kl: KLCoefficient = KLCoefficient()
    reward: RewardSettings = RewardSettings()
    sampling: HeadsSampling = HeadsSampling()
    prompts: str = "demo"
    """Prompts (a folder, a stage or a file)."""
