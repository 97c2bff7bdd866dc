"""Base: a small language model trained from scratch on plain text and chats, every token a label.

The pipeline starts from it where no pretrained model is named.  Next-token cross-entropy with AdamW; no particular
paper.
"""

from __future__ import annotations

from functools import partial

import torch

from accord.config.sft import BaseConfig
from accord.data.chat import whole_chat_ids
from accord.data.formats.rows import FormattedRows
from accord.data.row_texts import opening_text
from accord.data.rows import Tally, messages_field, text_field
from accord.data.supervised import SupervisedData, SupervisedExample, describe_split, split_texts
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.distributed import mesh
from accord.distributed.shards import spread
from accord.models.open import small_backbone
from accord.runtime.run import Run
from accord.training.artifact import save_model
from accord.training.cross_entropy import train_texts
from accord.training.describe import (
    describe_memory,
    describe_model,
    describe_steps,
    memory_by_strategy,
    tokens_in_a_pass,
)
from accord.training.memory import layout_of, require_memory, size_of


def read_texts(path: str, tokenizer: Tokenizer, max_length: int) -> SupervisedData:
    """Examples from rows ``{"text"}`` (EOS added) or ``{"messages"}`` (rendered); every token but the first is a label.

    Texts without a label are dropped.  Raises UserError, naming file and row.
    """
    tally = Tally()
    examples, texts = [], []
    found = FormattedRows(path, "base", tokenizer.chat_template is not None)
    for where, row in found:
        tally.rows += 1
        if "messages" in row:
            messages = messages_field(row, "messages", where)
            with where.named():
                tokens, source = whole_chat_ids(tokenizer, messages), opening_text(messages)
        else:
            source = text_field(row, "text", where)
            tokens = [*tokenizer.encode_content(source), tokenizer.eos_id]
        tokens = tokens[:max_length]
        if len(tokens) < 2:
            tally.dropped["no character"] += 1
            continue
        tally.tokens += len(tokens)
        examples.append(SupervisedExample(tuple(tokens), (False, *[True] * (len(tokens) - 1))))
        texts.append(source)
    tally.add_formats(found.describe(), found.dropped)
    return SupervisedData(tuple(examples), tuple(texts), tally.report(path))


def train(config: BaseConfig, run: Run) -> dict[str, float]:
    """Trains the base model and saves it; returns the last step's metrics."""
    device = mesh.local_device(config.device)
    tokenizer = small_tokenizer()
    settings = config.model
    new = partial(
        small_backbone,
        *(settings.base_model, settings.d_model, settings.n_layers),
        *(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id),
    )
    with torch.device("meta"):  # before memory is taken
        require_memory(size_of(new(), settings.d_model), layout_of(config.parallel, False), device)
    torch.manual_seed(run.derive("init"))
    backbone = new().to(device)
    data = split_texts(config.data, lambda path: read_texts(path, tokenizer, settings.max_length), run.seed)
    examples = data.train
    tokens = sum(len(e.tokens) for e in examples)
    in_a_pass = tokens_in_a_pass(tokens, len(examples), config.training)
    processes = spread([backbone], config.parallel)
    run.plan(
        {
            "model": describe_model(backbone, settings.base_model),
            "data": f"{config.data.train}: {data.report} Every token is a label.",
            "texts": describe_split(data, config.eval_every),
            "steps": describe_steps(len(examples), config.training),
            **processes,
            "memory": describe_memory(backbone, backbone.width, in_a_pass),
        },
        memory_by_strategy(config, backbone, backbone.width, in_a_pass),
    )
    metrics = train_texts(run, backbone, data, config)
    save_model(run, backbone, tokenizer, "base", metrics, {})
    return metrics
