"""SFT: supervised fine-tuning, cross-entropy on the assistant's tokens only.

Ouyang et al. 2022 (arXiv 2203.02155), section 3.5, first step.  Numbered details:
1. labels are the assistant's tokens and the EOS that ends the turn; prompt tokens carry no loss;
2. texts are packed without padding; attention and state never cross from text to text;
3. the loss is a sum over the number of labels of the whole step, however many forward passes that takes;
4. a checkpoint after each epoch (``sft_epoch_0.pt``, …) and ``sft_final.pt``;
5. the held-out loss is one mean over all labels of the held-out rows, and draws no random number.
"""

from __future__ import annotations

from functools import partial

from accord.config.sft import SFTConfig
from accord.data.supervised import describe_split, load_supervised, split_texts
from accord.distributed import mesh
from accord.distributed.shards import spread
from accord.runtime.run import Run
from accord.training.artifact import open_model, open_tokenizer, require_fit, save_model, save_pt
from accord.training.cross_entropy import train_texts
from accord.training.describe import (
    describe_memory,
    describe_model,
    describe_steps,
    memory_by_strategy,
    tokens_in_a_pass,
)


def train(config: SFTConfig, run: Run) -> dict[str, float]:
    """Fine-tunes the model and saves it; returns the last step's metrics."""
    device = mesh.local_device(config.device)
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = open_model(config.model.base_model, device)
    read = partial(
        load_supervised, tokenizer=tokenizer, max_length=config.model.max_length, examples=config.data.examples
    )
    data = split_texts(config.data, read, run.seed)
    examples = data.train
    tokens = sum(len(e.tokens) for e in examples)
    require_fit(config.model.base_model, backbone, tokenizer, max(map(len, [*examples, *data.heldout])))
    in_a_pass = tokens_in_a_pass(tokens, len(examples), config.training)
    processes = spread([backbone], config.parallel)
    run.plan(
        {
            "model": describe_model(backbone, config.model.base_model),
            "data": f"{config.data.train}: {data.report}",
            "labels": f"{sum(sum(e.loss_mask) for e in examples):,} of {tokens:,} tokens: the assistant's, final EOS included",
            "texts": describe_split(data, config.eval_every),
            "steps": describe_steps(len(examples), config.training),
            **processes,
            "memory": describe_memory(backbone, backbone.width, in_a_pass),
        },
        memory_by_strategy(config, backbone, backbone.width, in_a_pass),
    )

    def after_epoch(epoch: int, metrics: dict[str, float]) -> None:
        save_pt(run, f"sft_epoch_{epoch}.pt", backbone, {"epoch": epoch, "metrics": dict(metrics)})

    metrics = train_texts(run, backbone, data, config, after_epoch)
    save_model(run, backbone, tokenizer, "sft", metrics, {"base_model": config.model.base_model})
    return metrics
