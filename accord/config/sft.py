"""Settings of the stages that train on text: base and sft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from accord.config.common import DatedStage, Examples, Optimizer, ParallelStage, SplitData, TextModel
from accord.config.numbers import CountOrZero, Share


class TextData(SplitData):
    """Training rows and held-out rows; without a setting all rows of train are trained on."""

    heldout: str = ""
    """Held-out rows, for the held-out loss: a stage, folder, file or data set; empty: the held-out rows of the stage or
    folder that train names, where it has any and heldout_fraction is 0."""
    heldout_fraction: Share = 0.0
    """Fraction of train's prompts (of plain texts: of the texts) to hold out; all rows of a prompt fall on the same side."""

    @model_validator(mode="after")
    def _one_source(self) -> TextData:
        if self.heldout and self.heldout_fraction:
            raise ValueError(
                "heldout names a file of held-out rows and heldout_fraction splits them off train; set only one of them"
            )
        return self


class TextStage(ParallelStage, DatedStage):
    """Settings of stages that learn texts by cross-entropy."""

    runtime: ClassVar[frozenset[str]] = ParallelStage.runtime | {"eval_every"}
    retired: ClassVar[Mapping[str, Any]] = {"model.max_prompt_length": 0}

    eval_every: CountOrZero = 0
    """Steps between held-out losses; 0: before the first step and after the last one only."""
    model: TextModel = TextModel()
    data: TextData = TextData()
    training: Optimizer = Optimizer()


class BaseModelSettings(TextModel):
    """The small base model to create."""

    base_model: Literal["mamba", "transformer"] = "mamba"


class BaseConfig(TextStage):
    """Trains a small base model on plain text and chats."""

    model: BaseModelSettings = BaseModelSettings()
    training: Optimizer = Optimizer(
        batch_size=16, learning_rate=3e-3, schedule="linear", warmup_steps=30, weight_decay=0.05, adam_beta2=0.95
    )


class SFTData(TextData):
    """Demonstrations to learn, and held-out ones."""

    examples: Examples = "conversation"
    """Of a conversation with several replies: conversation is one example with labels on all replies; turn is one example for
    each reply, with the conversation up to it, for templates that leave out the thoughts of earlier turns."""


class SFTConfig(TextStage):
    """Supervised fine-tuning on demonstrations."""

    data: SFTData = SFTData()
