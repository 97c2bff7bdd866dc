"""Settings of the stage reward: an MLP on a frozen model's features, or a scalar head on the whole model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from accord.config.common import DatedStage, Optimizer, ParallelStage, PromptedModel, SplitData
from accord.config.numbers import Coefficient, Count, Layers, LayersOrZero, LearningRate, Width
from accord.config.variants import Variants


class RewardModelSettings(PromptedModel):
    """Settings of both kinds of reward model."""

    base_model: str = "sft"
    objective: Literal["auto", "mse", "bradley_terry"] = "auto"
    """Training loss; auto: mse for features, bradley_terry for language."""
    pooling: Literal["last", "mean"] = "mean"
    """Features of the reply: its last token, or the mean over its tokens."""


class FeaturesRewardModel(RewardModelSettings):
    """An MLP on a frozen model's features."""

    kind: Literal["features"] = "features"
    """features: an MLP on a frozen model's features; language: a scalar head on the whole model."""
    input_dim: Width = 128
    """Hidden size of the frozen model."""
    hidden_dim: Width = 64
    """Hidden size of the MLP."""
    num_layers: Layers = 2
    """Number of linear layers of the MLP."""


class LanguageRewardModel(RewardModelSettings):
    """A scalar head on the whole model."""

    kind: Literal["language"] = "language"
    """features: an MLP on a frozen model's features; language: a scalar head on the whole model."""
    layers: LayersOrZero = 0
    """Use only the first layers of the base model; 0: all.  Middle layers of a pretrained model often give better features
    than the last ones, at lower cost."""
    ties: Literal["half", "rao_kupper", "davidson"] = "half"
    """What a row with label 0.5 is to Bradley-Terry: half a win for each reply, or an outcome of its own, after Rao and
    Kupper (1967) or Davidson (1970), with one parameter more."""
    tie_parameter: Coefficient = 0.0
    """θ of Rao and Kupper, above 1, or ν of Davidson, above 0; 0: learned with the model."""

    @model_validator(mode="after")
    def _ties_fit(self) -> LanguageRewardModel:
        if self.ties == "half" and self.tie_parameter:
            raise ValueError("model.tie_parameter needs model.ties=rao_kupper or model.ties=davidson")
        if self.ties != "half" and self.objective == "mse":
            raise ValueError(f"model.ties={self.ties} needs model.objective=bradley_terry")
        if self.ties == "rao_kupper" and 0 < self.tie_parameter <= 1:
            raise ValueError("model.tie_parameter is θ of Rao and Kupper, which is above 1 (or 0: learned)")
        return self


class RewardOptimizer(Optimizer):
    """Settings of AdamW, and how pairs are grouped."""

    usual_rate: ClassVar[float] = 1e-3

    batch_size: Count = 8
    """Pairs per optimizer step."""
    learning_rate: LearningRate | None = 1e-3
    group_by_prompt: bool = False
    """Put all pairs of a prompt into one step, so that each reply is encoded once; batch_size then counts prompts."""


class LanguageRewardOptimizer(RewardOptimizer):
    """Settings of AdamW, how pairs are grouped, and settings of the scalar head."""

    learning_rate: LearningRate | None = None
    head_learning_rate: LearningRate = 0.0
    """Learning rate of the scalar head; 0: learning_rate."""
    probe_decay: Coefficient = 0.0
    """Above 0: first fit the scalar head to the base model's features with this weight decay (a linear probe), then train
    the whole model.  Helps where pairs are few."""


class FeaturesRewardConfig(ParallelStage, DatedStage):
    """Trains an MLP on a frozen model's features to score replies."""

    model: FeaturesRewardModel = FeaturesRewardModel()
    data: SplitData = SplitData()
    training: RewardOptimizer = RewardOptimizer()


class LanguageRewardConfig(ParallelStage, DatedStage):
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
"""The settings of the stage reward; ``model.input_dim`` selects features."""
