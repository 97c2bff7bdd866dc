"""Settings of the stage reward: an MLP on a frozen model's features, or a scalar head on the whole model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from accord.config.common import Optimizer, Positive, PrecisionStage, PromptedModel, Rate, SplitData
from accord.config.variants import Variants


class RewardModelSettings(PromptedModel):
    """What both kinds of reward model have."""

    base_model: str = "sft"
    objective: Literal["auto", "mse", "bradley_terry"] = "auto"
    """auto: mse for features (as specified), bradley_terry for language."""
    pooling: Literal["last", "mean"] = "mean"
    """Where the head reads: the last token of the reply, or the mean over the reply."""


class FeaturesRewardModel(RewardModelSettings):
    """An MLP on a frozen model's features."""

    kind: Literal["features"] = "features"
    """features: an MLP on a frozen model's features; language: a scalar head on the whole model."""
    input_dim: Positive = 128
    """Width of the frozen model."""
    hidden_dim: Positive = 64
    """Width of the MLP."""
    num_layers: Positive = 2
    """Linear layers of the MLP."""


class LanguageRewardModel(RewardModelSettings):
    """A scalar head on the whole model."""

    kind: Literal["language"] = "language"
    """features: an MLP on a frozen model's features; language: a scalar head on the whole model."""
    layers: Annotated[int, Field(ge=0)] = 0
    """Train and keep only the first layers of the base model; 0: all.  The middle of a pretrained model often says
    more about a text than its end, and costs less."""


class RewardOptimizer(Optimizer):
    """As every optimizer, and how pairs are grouped."""

    batch_size: Positive = 8
    """Rows in one optimizer step, however many passes that takes."""
    learning_rate: Rate = 1e-3
    group_by_prompt: bool = False
    """All pairs of a prompt go into one step, so that each reply is read once; batch_size then counts prompts."""


class LanguageRewardOptimizer(RewardOptimizer):
    """The same, and what only a scalar head has."""

    head_learning_rate: Rate = 0.0
    """For the scalar head; 0: the same as the rest."""
    probe_decay: Rate = 0.0
    """Above 0: the scalar head is first fitted to the untouched model's features, with this much decay of its weights.
    Then the whole model is trained from there.  Helps where pairs are few."""


class FeaturesRewardConfig(PrecisionStage):
    """Trains an MLP on a frozen model's features to score replies."""

    model: FeaturesRewardModel = FeaturesRewardModel()
    data: SplitData = SplitData()
    training: RewardOptimizer = RewardOptimizer()


class LanguageRewardConfig(PrecisionStage):
    """Trains a whole model with a scalar head to score replies."""

    model: LanguageRewardModel = LanguageRewardModel()
    data: SplitData = SplitData()
    training: LanguageRewardOptimizer = LanguageRewardOptimizer()


RewardConfig = FeaturesRewardConfig | LanguageRewardConfig

REWARD: Variants[RewardConfig] = Variants(
    description="Trains a reward model on preferences.",
    key="model.kind",
    classes={"language": LanguageRewardConfig, "features": FeaturesRewardConfig},
    signs={"model.input_dim": "features"},
)
"""The settings of the stage reward; a config with ``model.input_dim`` is one of features."""
