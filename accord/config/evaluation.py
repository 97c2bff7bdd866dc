"""Settings of the stage compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from accord.config.common import Positive, Stage


class CompareConfig(Stage):
    """Writes results.json: gold reward, win rates, KL, length, endings of several models on held-out prompts."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    models: dict[str, str] = Field(default_factory=lambda: {"sft": "sft", "dpo": "dpo"})
    """Label: stage or folder.  The others are compared with 'sft'."""
    reference: str = "sft"
    """KL is measured to this model."""
    reward_model: str = ""
    """Its accuracy on the annotator's held-out labels, and its agreement with gold on them; empty: none."""
    pairs: str = "pairs"
    """Held-out pairs for the reward model (a stage, a folder or a file)."""
    base: str = ""
    """A model under which fluency (negative log-likelihood) is measured; empty: none."""
    prompts: str = "demo"
    """Held-out prompts."""
    gold: str = "accord.data.demo:gold_scores"
    """module:function(prompts, replies) -> scores that no trainer sees."""
    replies: Positive = 4
    """For each prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    max_new_tokens: Positive = 64
    """A reply that has not ended by then is left out."""
    batch_size: Positive = 128
    limit: Annotated[int, Field(ge=0)] = 0
    """Use only the first prompts; 0: all."""
    samples: Positive = 3
    """Sample answers to print side by side."""
    redraw: bool = True
    """Also hold the SFT model against a second draw of its own replies: what no difference looks like."""

    @field_validator("models")
    @classmethod
    def _labels(cls, models: dict[str, str]) -> dict[str, str]:
        if "sft" not in models:
            raise ValueError("name one of them 'sft': the win rates compare the others with it")
        taken = ("reward", "sft_again", "stages", "seed", "versions", "prompts", "replies_per_prompt")
        for label in models:
            if "." in label or label in taken:
                raise ValueError(f"the label {label!r} cannot be a key of results.json; choose another, without dots")
        return models
