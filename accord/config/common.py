"""Settings that several stage kinds share."""

from __future__ import annotations

import re
from datetime import date
from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from accord.config.numbers import (
    Coefficient,
    Context,
    Count,
    CountOrZero,
    DecayRate,
    GradientNorm,
    Layers,
    LearningRate,
    Ranks,
    Seed,
    Share,
    Threads,
    TimeLimit,
    TokensOrZero,
    Width,
)
from accord.config.section import Section

TEMPLATE_DATE = "2024-07-26"
"""What chat templates that write a date write by default: the date that Llama 3's templates fall back to."""
Examples = Literal["conversation", "turn"]
"""What a conversation is learned as: one example with labels on all its replies, or one for each reply."""
RESERVED = ("results.json", "pipeline.json", "journal.jsonl")
"""Files of a pipeline beside the folders of its stages."""
MAX_NAME = 100


def name_problem(name: str) -> str:
    """What is wrong with a stage's name, which names its folders and its model in the registry; empty where it is good."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name, re.ASCII):
        return (
            f"{name!r} is not a name: use letters, digits, '.', '_' and '-', beginning with a letter or digit (out= and logs="
            " say where the folders are)"
        )
    if len(name) > MAX_NAME:
        return f"{name[:20] + '…'!r} has {len(name)} characters; use at most {MAX_NAME}"
    return f"{name!r} is a file of the pipeline in that place; choose another name" if name in RESERVED else ""


class Stage(Section):
    """Settings of every stage."""

    runtime: ClassVar[frozenset[str]] = frozenset(
        {"name", "out", "logs", "device", "log_every", "save_every", "threads"}
    )

    seed: Seed = 0
    """Seed of all random draws."""
    name: str = ""
    """Folder under out and logs; empty: the name of the stage kind."""
    out: str = "checkpoints/rlhf"
    """Folder for results, in out/<name>/."""
    logs: str = "logs/rlhf"
    """Folder for logs: logs/<name>/<name>.log, <name>.svg with the curves, metrics.jsonl and TensorBoard events."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    threads: Threads = 0
    """CPU threads; 0: torch's choice.  Another number rounds differently, so results may differ, yet it does not make
    finished stages run again."""
    log_every: Count = 10
    """Steps between lines in metrics.jsonl."""
    save_every: Count = 50
    """Steps between saved states to resume from."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if name and (problem := name_problem(name)):
            raise ValueError(problem)
        return name


class DatedStage(Stage):
    """A setting of stages that render chat templates."""

    template_date: str = TEMPLATE_DATE
    """Date (YYYY-MM-DD) that a chat template with a date writes; the same in training, sampling and evaluation."""

    @field_validator("template_date")
    @classmethod
    def _is_a_date(cls, value: str) -> str:
        try:
            if len(value) == len(TEMPLATE_DATE):
                date.fromisoformat(value)
                return value
        except ValueError:
            pass
        raise ValueError(f"{value!r:.40} is not a date; write it as {TEMPLATE_DATE}")


def require_room(max_length: int, max_new_tokens: int, key: str) -> None:
    """Raises ValueError where ``model.max_length`` leaves no token for a prompt beside a reply of ``max_new_tokens``."""
    if max_new_tokens >= max_length:
        raise ValueError(
            f"{key} ({max_new_tokens}) leaves no room for a prompt in model.max_length ({max_length}), which counts prompt and"
            f" reply together; raise model.max_length, or lower {key}"
        )


class PrecisionStage(Stage):
    """Settings of stages whose matrix multiplications may use half precision."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of matrix multiplications; weights, log-softmax and reductions stay in float32.  auto: bfloat16 on CUDA where the
    device has it, else float32; config.yaml has the one that was used."""


class Parallel(Section):
    """Settings of several processes that train one model."""

    nproc: Ranks = 1
    """Processes on this machine; under torchrun its own flags decide."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every process holds the whole model; fsdp: each holds a part of weights, gradients and optimizer state."""
    mixed_precision: Literal["float32", "bfloat16"] = "float32"
    """fsdp: dtype of weights and activations in forward and backward passes; gradients are reduced in float32."""
    reshard: bool = True
    """fsdp: free a layer's gathered weights after its forward pass and gather them again for the backward pass."""
    cpu_offload: bool = False
    """fsdp: keep weights, gradients and optimizer state in the computer's memory."""
    activation_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: less memory, about a third more time."""
    timeout_seconds: TimeLimit = 600
    """A process that waits so long for another one ends the stage, and says which is late."""

    @model_validator(mode="after")
    def _of_the_strategy(self) -> Parallel:
        changed = {"mixed_precision": self.mixed_precision != "float32", "reshard": not self.reshard}
        changed["cpu_offload"] = self.cpu_offload
        if self.strategy != "fsdp" and (given := [name for name, is_set in changed.items() if is_set]):
            raise ValueError(f"{given[0]} is a setting of fsdp; add parallel.strategy=fsdp, or leave it out")
        return self


class ParallelStage(PrecisionStage):
    """Settings of stages that several processes can train together."""

    runtime: ClassVar[frozenset[str]] = PrecisionStage.runtime | {"parallel"}

    parallel: Parallel = Parallel()


class Optimizer(Section):
    """Settings of AdamW and of the batches."""

    usual_rate: ClassVar[float] = 1e-4
    """Peak learning rate of small models, where the config leaves it open."""

    batch_size: Count = 4
    """Rows per optimizer step."""
    micro_batch_size: CountOrZero = 0
    """Rows per forward pass (gradient accumulation); 0: the whole batch.  Changes memory use, and results only by rounding."""
    num_epochs: Count = 1
    """Epochs over the data."""
    learning_rate: LearningRate | None = None
    """Peak learning rate; null: by the size of the model, as the plan says (docs/rlhf_pipeline.md has the table)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warmup: constant, or falling to zero linearly or as half a cosine, by optimizer steps (PPO: by rollouts)."""
    warmup_steps: CountOrZero = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: Coefficient = 0.0
    """AdamW's weight decay, on matrices only."""
    adam_beta2: DecayRate = 0.999
    """Decay rate of Adam's second moment."""
    adam_eps: Share = 1e-8
    """Added to the denominator of Adam's update."""
    max_grad_norm: GradientNorm = 1.0
    """Maximum global norm of the gradient; larger ones are scaled down."""

    @property
    def peak_rate(self) -> float:
        """The peak learning rate; that of small models where it is open, which a pipeline decides before a stage runs."""
        return self.usual_rate if self.learning_rate is None else self.learning_rate


class TextModel(Section):
    """The language model that training starts from."""

    base_model: str = "mamba"
    """mamba or transformer (small base models), a stage (sft, …), a folder, a .gguf file, or a Hugging Face id
    (org/name@revision)."""
    d_model: Width = 128
    """Hidden size of a small base model; other models have their own."""
    n_layers: Layers = 4
    """Layers of a small base model."""
    max_length: Context = 256
    """Maximum tokens of prompt and reply together; longer texts are truncated, and the report says how many."""


class PromptedModel(TextModel):
    """The language model that training starts from, and how long prompts may be."""

    max_prompt_length: TokensOrZero = 0
    """Maximum tokens of a prompt, truncated at its start; 0: three quarters of max_length."""

    @property
    def prompt_room(self) -> int:
        """Maximum tokens of a prompt."""
        return self.max_prompt_length or max(1, self.max_length * 3 // 4)


class SplitData(Section):
    """Training rows and held-out rows."""

    train: str = "demo"
    """demo (the small world), a stage, a folder, a file (JSON, CSV, Parquet …), or a data set of the Hugging Face hub."""
    limit: CountOrZero = 0
    """Use only the first rows of train; 0: all."""
    heldout: str = ""
    """Held-out rows: a stage, folder, file or data set; empty: split off heldout_fraction of train's prompts."""
    heldout_fraction: Share = 0.1
    """Fraction of train's prompts to hold out; all rows of a prompt fall on the same side."""
