"""Models in GGUF files, dequantized by transformers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from accord.errors import UserError
from accord.io.gguf_header import check_gguf
from accord.io.readers import shorten
from accord.models.backbone import Backbone
from accord.models.hf import CausalLM, slower
from accord.models.hf_format import NeedsTransformers
from accord.models.transformer import Transformer
from accord.models.transformer_config import FAMILIES, TransformerConfig


def open_gguf(path: str | Path) -> Backbone:
    """Opens a GGUF file, dequantized to float32 by transformers, which needs gguf and accelerate for it.

    Raises UserError naming the file when it is absent, damaged or of a family that cannot be opened.
    """
    path = Path(path)
    check_gguf(path)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as error:  # transformers raises whatever a damaged file leads it to
        why = shorten(str(error) or type(error).__name__, 300)
        raise UserError(f"{path}: transformers cannot read this GGUF file ({why})") from error
    try:
        if model.config.model_type not in FAMILIES:
            return CausalLM(model)
        try:
            return Transformer.from_state(TransformerConfig.from_hf(model.config.to_dict()), model.state_dict())
        except NeedsTransformers as why:
            backbone = CausalLM(model)
            backbone.notes = (slower(why), *backbone.notes)
            return backbone
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
