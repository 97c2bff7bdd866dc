"""The README's table of what size can be trained in which memory: the prediction of ``--dry-run`` for models of known shapes.

    python benchmarks/memory_sizes.py

A pass has 1,024 tokens (four rows of 256).  DPO computes the reference's log-probs once and keeps no second model, so it
takes what SFT takes; PPO as configured by default trains a policy and a separate critic beside a frozen reference and a reward
model, all of the same size.  ``tests/training/test_memory.py`` compares the prediction with what torch counts.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from accord.models.transformer import Transformer
from accord.models.transformer_config import TransformerConfig
from accord.training.memory import NAMED, Layout, ModelSize, gib, predict, size_of

TOKENS = 1024
SHAPES = {
    "135M (SmolLM2)": TransformerConfig(49_152, 576, 30, 9, 3, 64, 1536),
    "360M (SmolLM2)": TransformerConfig(49_152, 960, 32, 15, 5, 64, 2560),
    "1B (Llama 3.2)": NAMED["1B"],
    "3B (Llama 3.2)": TransformerConfig(128_256, 3072, 28, 24, 8, 128, 8192),
    "8B (Llama 3.1)": TransformerConfig(128_256, 4096, 32, 32, 8, 128, 14_336, tied=False),
}
FLOAT32, BFLOAT16 = Layout(), Layout(bfloat16=True)
LAYOUTS = {
    "SFT, DPO, reward model: CPU": (False, FLOAT32),
    "CUDA, bfloat16": (False, BFLOAT16),
    "with parallel.activation_checkpointing": (False, replace(BFLOAT16, checkpointing=True)),
    "PPO: CPU": (True, FLOAT32),
    "PPO: CUDA, bfloat16": (True, BFLOAT16),
}


def sizes(shape: TransformerConfig) -> tuple[ModelSize, ModelSize]:
    """The size of one trained model, and of PPO's two trained ones beside two frozen ones."""
    with torch.device("meta"):
        model = Transformer(shape)
    one = size_of(model, model.width)
    two = replace(one, trained=2 * one.trained, frozen=2 * one.trained, layers=2 * one.layers, outside=2 * one.outside)
    return one, two


def table() -> str:
    """Markdown: GiB by model and by what is trained."""
    lines = [f"| GiB | {' | '.join(LAYOUTS)} |", f"|---|{'---:|' * len(LAYOUTS)}"]
    for name, shape in SHAPES.items():
        both = sizes(shape)
        cells = [gib(predict(both[is_ppo], layout, TOKENS)) for is_ppo, layout in LAYOUTS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
