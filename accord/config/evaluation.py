"""Settings of the stage compare: models on held-out prompts, or a reward model alone on pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from accord.config.common import DatedStage
from accord.config.numbers import Count, CountOrZero, Temperature, Tokens, TokensOrZero
from accord.config.variants import Choice, Variants

RESAMPLED = "sft again"
"""Label of a second sample of the SFT model's replies (null baseline): how much figures differ by chance."""


class CompareConfig(DatedStage):
    """Compares models on held-out prompts: gold reward, win rate, KL, reply length and share of ended replies."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}
    later: ClassVar[frozenset[str]] = frozenset({"what"})

    what: Literal["models"] = "models"
    """models: their replies to held-out prompts; reward: a reward model alone, on pairs."""
    models: dict[str, str] = Field(default_factory=lambda: {"sft": "sft", "dpo": "dpo"})
    """Models to compare, as label: stage or folder.  Win rates are against the one labeled 'sft'."""
    reference: str = "sft"
    """Reference model of the KL."""
    reward_model: str = ""
    """Reward model to check: accuracy on held-out labels and agreement with gold; empty: none."""
    pairs: str = "pairs"
    """Held-out pairs for the reward model (a stage, a folder or a file)."""
    base: str = ""
    """Model for fluency (negative log-likelihood of the replies); empty: none."""
    prompts: str = "demo"
    """Held-out prompts (a stage, a folder or a file)."""
    gold: str = "accord.data.demo:gold_scores"
    """Gold reward, which should be none that training saw: module:function(prompts, replies) -> scores."""
    replies: Count = 4
    """Replies sampled per prompt."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_new_tokens: Tokens = 64
    """Maximum tokens of a reply; one that has not ended by then counts as it is."""
    batch_size: Count = 128
    """Replies sampled in parallel."""
    limit: CountOrZero = 0
    """Use only the first prompts; 0: all."""
    samples: Count = 3
    """Prompts whose replies are printed side by side."""
    redraw: bool = True
    """Also compare the SFT model with a second sample of its own replies (null baseline)."""

    @field_validator("models")
    @classmethod
    def _labels(cls, models: dict[str, str]) -> dict[str, str]:
        if "sft" not in models:
            raise ValueError("name one of them 'sft': the win rates compare the others with it")
        reserved = ("reward", "sft_again", RESAMPLED, "stages", "seed", "versions", "prompts", "replies_per_prompt")
        for label in models:
            if "." in label or label in reserved or not (label.strip() and label.isprintable()):
                raise ValueError(
                    f"the label {label!r:.60} cannot be a key of results.json; choose another, without dots"
                )
        return models

    @model_validator(mode="after")
    def _pairs_for_the_reward_model(self) -> CompareConfig:
        if self.reward_model and not self.pairs:
            raise ValueError("reward_model needs pairs, the held-out pairs to check it on")
        return self


class RewardCompareConfig(DatedStage):
    """Judges a reward model alone: its accuracy on pairs of yours, with intervals, by category."""

    what: Literal["reward"] = "reward"
    """models: their replies to held-out prompts; reward: a reward model alone, on pairs."""
    reward_model: str
    """Reward model to judge: a stage, a folder, or a Hugging Face id."""
    pairs: str
    """Pairs to judge it on: a stage, a folder, a file, or a data set of the Hugging Face hub."""
    category: str = ""
    """Column whose values have an accuracy of their own; empty: subset or category, where rows have one."""
    limit: CountOrZero = 0
    """Use only the first pairs; 0: all."""
    max_length: TokensOrZero = 0
    """Maximum tokens of prompt and reply together; 0: as in the reward model's training, or as many as it can read."""
    batch_size: Count = 32
    """Pairs scored in one pass.  Changes memory use, and results only by rounding."""

    @field_validator("reward_model", "pairs")
    @classmethod
    def _is_named(cls, value: str) -> str:
        if not value:
            raise ValueError("name one: what=reward judges a reward model on pairs")
        return value


_OF_MODELS = frozenset(CompareConfig.model_fields) - frozenset(RewardCompareConfig.model_fields)


def _reward_alone(values: Mapping[str, Any]) -> Choice | None:
    """A reward model and pairs, and nothing about models whose replies would be compared."""
    both = all(values.get(key) not in (None, "") for key in ("reward_model", "pairs"))
    if both and not any(key in _OF_MODELS for key in values):
        return Choice("reward", " because it has reward_model and pairs, and no models")
    return None


COMPARE: Variants[CompareConfig | RewardCompareConfig] = Variants(
    description="Compares models on held-out prompts, or judges a reward model alone on pairs.",
    key="what",
    classes={"models": CompareConfig, "reward": RewardCompareConfig},
    signs={},
    implied=_reward_alone,
)
"""The settings of the stage compare; ``reward_model`` and ``pairs`` without ``models`` judge the reward model alone."""
