"""Settings of the stages that train on text: base and sft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from accord.config.common import Optimizer, PrecisionStage, TextData, TextModel


class BaseModelSettings(TextModel):
    """The small base model to create."""

    base_model: Literal["mamba", "transformer"] = "mamba"


class BaseConfig(PrecisionStage):
    """Trains a small base model on plain text and chats."""

    retired: ClassVar[Mapping[str, Any]] = {"model.max_prompt_length": 0}

    model: BaseModelSettings = BaseModelSettings()
    data: TextData = TextData()
    training: Optimizer = Optimizer(
        batch_size=16, learning_rate=3e-3, schedule="linear", warmup_steps=30, weight_decay=0.05, adam_beta2=0.95
    )


class SFTConfig(PrecisionStage):
    """Supervised fine-tuning on demonstrations."""

    retired: ClassVar[Mapping[str, Any]] = {"model.max_prompt_length": 0}

    model: TextModel = TextModel()
    data: TextData = TextData()
    training: Optimizer = Optimizer()
