"""The stage ``pretrained``: imports a model, so that later stages find an artifact with digest and tokenizer."""

from __future__ import annotations

import torch

from accord.config.data import PretrainedConfig
from accord.runtime.run import Run
from accord.training.artifact import open_model, open_tokenizer, require_fit, save_artifact
from accord.training.describe import describe_model


def run_pretrained(config: PretrainedConfig, run: Run) -> dict[str, float]:
    """Opens the model and writes it as an artifact, unchanged."""
    source = config.source
    if source == "smollm2":
        from accord.data.sentiment import smollm2_gguf

        source = str(smollm2_gguf())
    run.say(f"opening {config.source} (a .gguf file takes about a minute)")
    backbone = open_model(source, torch.device("cpu"))
    tokenizer = open_tokenizer(source)
    require_fit(config.source, backbone, tokenizer, 0)
    run.plan({"model": describe_model(backbone, config.source)})
    run.open_folders()
    save_artifact(run, backbone, tokenizer, "pretrained", {})
    return {"parameters": float(sum(p.numel() for p in backbone.parameters()))}
