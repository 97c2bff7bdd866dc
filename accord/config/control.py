"""Settings of PPO on a Gymnasium task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from accord.config.common import Stage
from accord.config.correction import StepCorrection
from accord.config.numbers import Count, CountOrZero, LogDeviation, PositiveCoefficient, Width
from accord.config.on_policy import StepsPPOOptimizer
from accord.config.rollout import RolloutEngine
from accord.config.section import Section


class ControlPolicy(Section):
    """ActorCritic, or MultiDiscreteActorCritic or GaussianActorCritic by the task's actions, on its observations."""

    policy: Literal["control"] = "control"
    """language: a whole language model; heads: ActorCritic on a frozen language model's features; control: a Gymnasium task."""
    hidden_dim: Width = 64
    """Hidden size of the actor and the critic."""
    log_std: LogDeviation = 0.0
    """Continuous actions: initial log standard deviation of the policy."""


class Normalization(Section):
    """Running normalization of observations and rewards; saved with the state and frozen in evaluation."""

    observations: bool = False
    """Normalize observations to mean 0 and standard deviation 1."""
    rewards: bool = False
    """Divide rewards by the standard deviation of the discounted return (training.gamma); reported returns stay unscaled."""
    clip: PositiveCoefficient = 10.0
    """Normalized observations and rewards are clipped to [-clip, clip]."""


class Evaluation(Section):
    """Evaluation episodes with the most likely action and their own seeds; training does not depend on them."""

    episodes: CountOrZero = 20
    """Episodes per evaluation; 0: no evaluation."""
    every: CountOrZero = 0
    """Environment steps between evaluations; 0: only at the end of training."""
    max_steps: Count = 10000
    """Steps after which an evaluation episode is cut off; its return so far counts, and eval_cut says how many were."""
    curve: bool = True
    """Write curve.png: returns over environment steps."""
    video: bool = False
    """Write episode.gif: the first evaluation episode."""


class ControlPPOConfig(Stage):
    """PPO on a Gymnasium task."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}
    later: ClassVar[frozenset[str]] = frozenset({"rollout", "correction"})

    model: ControlPolicy = ControlPolicy()
    training: StepsPPOOptimizer = StepsPPOOptimizer()
    environment: str = ""
    """A Gymnasium id, e.g. CartPole-v1, or a class of your own as module:Class."""
    environment_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of gymnasium.make or of the class, e.g. environment_args.max_episode_steps=200."""
    normalize: Normalization = Normalization()
    rollout: RolloutEngine = RolloutEngine()
    correction: StepCorrection = StepCorrection()
    evaluation: Evaluation = Evaluation()

    @property
    def correction_in_force(self) -> StepCorrection:
        """The correction, with ``auto`` decided by whether steps may be stale."""
        return self.correction.resolved(self.rollout.max_staleness > 0)

    @model_validator(mode="after")
    def _fits(self) -> ControlPPOConfig:
        if not self.environment:
            raise ValueError(
                "model.policy=control needs environment, a Gymnasium id such as CartPole-v1, or module:Class"
            )
        return self
