"""Settings of the stages that train a policy on preferences: dpo."""

from __future__ import annotations

from accord.config.common import DatedStage, Optimizer, ParallelStage, PromptedModel, SplitData
from accord.config.numbers import FlippedShare, PositiveCoefficient


class DPOOptimizer(Optimizer):
    """Settings of AdamW, and of DPO."""

    beta: PositiveCoefficient = 0.1
    """β of DPO: strength of the KL constraint to the reference."""
    label_smoothing: FlippedShare = 0.0
    """Assumed fraction of flipped labels (conservative DPO)."""
    group_by_prompt: bool = False
    """Put all pairs of a prompt into one step, so that each reply is encoded once; batch_size then counts prompts."""


class DPOConfig(ParallelStage, DatedStage):
    """Direct preference optimization."""

    model: PromptedModel = PromptedModel(base_model="sft")
    data: SplitData = SplitData()
    training: DPOOptimizer = DPOOptimizer()
