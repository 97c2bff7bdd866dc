"""The settings that several stage kinds share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.section import Section

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Stage(Section):
    """What every stage has."""

    runtime: ClassVar[frozenset[str]] = frozenset(
        {"name", "out", "logs", "device", "log_every", "save_every", "threads"}
    )

    seed: int = 0
    """Decides everything random."""
    name: str = ""
    """The folder under out and logs; the stage's own name where empty."""
    out: str = "checkpoints/rlhf"
    """Where results go: out/<name>/."""
    logs: str = "logs/rlhf"
    """Where logs go: logs/<name>/<name>.log, metrics.jsonl and TensorBoard events."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of matrix products; weights, log-softmax and sums are float32 always."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves torch's choice."""
    log_every: Positive = 10
    """Steps between two lines in metrics.jsonl."""
    save_every: Positive = 50
    """Steps between two resumable states."""


class Optimizer(Section):
    """AdamW's numbers, and how rows become steps."""

    batch_size: Positive = 4
    """Rows in one optimizer step, however many passes that takes."""
    micro_batch_size: Annotated[int, Field(ge=0)] = 0
    """Rows in one forward pass (gradient accumulation); 0: all of the batch.  Changes memory, not results."""
    num_epochs: Positive = 1
    """Passes over the data."""
    learning_rate: Rate = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warmup: constant, or falling to zero linearly or as half a cosine, by optimizer steps (PPO: by rollouts)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from zero."""
    weight_decay: Rate = 0.0
    """AdamW's, on matrices only."""
    adam_beta2: Share = 0.999
    """Decay of the second moment."""
    adam_eps: Rate = 1e-8
    """PPO's default is 1e-5, which tames the first updates."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""


class TextModel(Section):
    """A language model to start from."""

    base_model: str = "mamba"
    """mamba, transformer (the small bases), a stage (sft, …), a folder in the Hugging Face layout, or a .gguf file."""
    d_model: Positive = 128
    """Width of the small bases; other models bring their own."""
    n_layers: Positive = 4
    """Depth of the small bases."""
    max_length: Positive = 256
    """Tokens of prompt and reply together; longer texts are cut, counted and reported."""
    max_prompt_length: Annotated[int, Field(ge=0)] = 0
    """Tokens of the prompt, which keeps its end; 0: three quarters of max_length."""

    @property
    def prompt_room(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_prompt_length or max(1, self.max_length * 3 // 4)


class TextData(Section):
    """Where the rows come from."""

    train: str = "demo"
    """demo (the small world), a stage, a folder, or a JSON Lines file."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Use only the first rows; 0: all."""


class SplitData(TextData):
    """Rows with a held-out part."""

    heldout: str = ""
    """A stage, folder or JSON Lines file; where empty, heldout_fraction of train's prompts is kept out of training."""
    heldout_fraction: Share = 0.1
    """By prompt: no prompt stands on both sides."""
