"""Reward models in the form of transformers' sequence classification (TRL's): a body, and ``score.weight`` of one label.

transformers reads the score at the last token of a text that is not the pad token, wherever padding stands; a pad token that
is the end token is therefore passed over too.  Without a pad token in config.json it is the last token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from accord.errors import UserError
from accord.io.digests import verify
from accord.io.readers import read_json_if_present, shorten
from accord.models.backbone import Backbone
from accord.models.hf_format import WEIGHTS, NeedsTransformers, checked_tensors, read_index, read_json, read_weights
from accord.models.transformer import Transformer
from accord.models.transformer_config import FAMILIES, TransformerConfig

SUFFIX = "ForSequenceClassification"
SCORE = "score.weight"


@dataclass(frozen=True, slots=True)
class Classifier:
    """A body with one score for each text."""

    body: Backbone
    score: Tensor
    """(1, D)"""
    pad_id: int | None
    """The token that does not end a text; None where every token does."""


def is_classifier(directory: str | Path) -> bool:
    """Whether a folder holds a model for sequence classification, with any number of labels."""
    config = Path(directory) / "config.json"
    return config.is_file() and _architecture(read_json_if_present(config, "write it again.") or {}).endswith(SUFFIX)


def open_classifier(directory: str | Path) -> Classifier:
    """The model in a folder, in float32 on the CPU.

    Raises UserError where it has several labels, and where its score is not a product with its last hidden states.
    """
    folder = Path(directory)
    verify(folder)
    config = read_json(folder, "config.json")
    labels = _labels(config)
    if labels != 1:
        raise UserError(
            f"{folder}: a classifier with {labels} labels ({_architecture(config)}); a reward model has one, its score."
        )
    score = _read_score(folder, config)
    body = open_body(folder, config)
    if tuple(score.shape) != (1, body.width):
        raise UserError(f"{folder}: {SCORE} has shape {tuple(score.shape)}, expected (1, {body.width}).")
    return Classifier(body, score, _pad_id(config, folder))


def open_body(directory: str | Path, config: Mapping[str, Any]) -> Backbone:
    """The body alone, as a language model whose head is its embeddings, since the file has none.  Raises UserError."""
    folder = Path(directory)
    if config.get("model_type") in FAMILIES:
        try:
            sizes = TransformerConfig.from_hf(config)
            state = {name: x for name, x in read_weights(folder).items() if name != SCORE}
            return Transformer.from_state(replace(sizes, tied=True), state)
        except NeedsTransformers:
            pass
        except UserError as error:
            raise UserError(f"{folder}: {error}" if str(folder) not in str(error) else str(error)) from None
    return _body_of_transformers(folder)


def _body_of_transformers(folder: Path) -> Backbone:
    from transformers import AutoConfig, AutoModelForCausalLM

    from accord.models.hf import CausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = True
        how = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
        model, found = AutoModelForCausalLM.from_pretrained(str(folder), config=config, **how)
    except Exception as error:  # transformers raises whatever a damaged file leads it to
        reason = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 300)
        raise UserError(f"{folder}: transformers cannot open this reward model ({reason})") from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{folder}: tensor {shorten(missing[0])} is missing ({len(missing)} in all); download it again."
        )
    try:
        return CausalLM(model)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _read_score(folder: Path, config: Mapping[str, Any]) -> Tensor:
    """``score.weight`` alone, in float32."""
    name = WEIGHTS if (folder / WEIGHTS).exists() else read_index(folder).get(SCORE, "")
    if name:
        with checked_tensors(folder / name), safe_open(folder / name, "pt") as file:
            if SCORE in set(file.keys()):
                score: Tensor = file.get_tensor(SCORE).float()
                if not score.isfinite().all():
                    raise UserError(
                        f"{folder / name}: {SCORE} holds NaN or infinity; train or download the model again."
                    )
                return score
    raise UserError(
        f"{folder}: {_architecture(config)} has no tensor {SCORE}, which scores a causal model's last token; encoders (BERT,"
        " RoBERTa, DeBERTa) are not opened as reward models: name one that is made from a causal model."
    )


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    return first if isinstance(first, str) else ""


def _labels(config: Mapping[str, Any]) -> int:
    """The number of labels; transformers writes none for two."""
    named, count = config.get("id2label"), config.get("num_labels", 2)
    if isinstance(named, Mapping):
        return len(named)
    return count if isinstance(count, int) else 2


def _pad_id(config: Mapping[str, Any], folder: Path) -> int | None:
    found = config.get("pad_token_id")
    if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
        raise UserError(f"{folder / 'config.json'}: pad_token_id must be a number or null, found {shorten(found)}.")
    return found
