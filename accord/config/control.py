"""Settings of PPO on a Gymnasium task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from accord.config.common import Positive, Stage
from accord.config.on_policy import StepsPPOOptimizer
from accord.config.section import Section


class ControlPolicy(Section):
    """ActorCritic, or for continuous actions GaussianActorCritic, on what a task shows."""

    policy: Literal["control"] = "control"
    """language: the whole model; heads: ActorCritic on a frozen language model's features; control: a Gymnasium task."""
    hidden_dim: Positive = 64
    """Width of the actor's and the critic's hidden layers."""
    log_std: float = 0.0
    """Continuous actions: logarithm of the standard deviation that the policy starts with."""


class Normalization(Section):
    """Running scales, part of the saved state, unchanged in evaluation."""

    observations: bool = False
    """To mean 0 and deviation 1."""
    rewards: bool = False
    """Divided by the deviation of their discounted sum (training.gamma), for learning only."""
    clip: Annotated[float, Field(gt=0)] = 10.0
    """Both are clipped to [-clip, clip]."""


class Evaluation(Section):
    """Whole episodes by the likeliest action, with seeds of their own; training does not depend on them."""

    episodes: Annotated[int, Field(ge=0)] = 20
    """At the end, and each time that every asks for; 0: none."""
    every: Annotated[int, Field(ge=0)] = 0
    """Environment steps between evaluations during training; 0: only at the end."""
    max_steps: Positive = 10000
    """A longer episode counts as it stands then."""
    curve: bool = True
    """Draw curve.png: returns over environment steps."""
    video: bool = False
    """Write episode.gif: the first evaluation episode."""


class ControlPPOConfig(Stage):
    """PPO on a Gymnasium task."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    model: ControlPolicy = ControlPolicy()
    training: StepsPPOOptimizer = StepsPPOOptimizer()
    environment: str = ""
    """A Gymnasium id, e.g. CartPole-v1, or a class of your own, module:Class."""
    normalize: Normalization = Normalization()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _fits(self) -> ControlPPOConfig:
        if not self.environment:
            raise ValueError(
                "model.policy=control needs environment, a Gymnasium id such as CartPole-v1, or module:Class"
            )
        return self
