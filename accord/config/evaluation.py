"""Settings of the stage compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from accord.config.common import DatedStage
from accord.config.numbers import Count, CountOrZero, Temperature, Tokens

RESAMPLED = "sft again"
"""Label of a second sample of the SFT model's replies (null baseline): how much figures differ by chance."""


class CompareConfig(DatedStage):
    """Compares models on held-out prompts: gold reward, win rate, KL, reply length and share of ended replies."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

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
    """Gold reward, which no trainer sees: module:function(prompts, replies) -> scores."""
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
