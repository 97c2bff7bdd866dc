"""The two ends of every language-model stage: opening a model with its tokenizer, and saving one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from accord.data.tokenizer import Tokenizer
from accord.data.vocabulary import difference_of_ids
from accord.distributed import mesh
from accord.distributed.export import save_backbone
from accord.distributed.shards import is_sharded
from accord.errors import UserError
from accord.io.readers import shorten
from accord.models.backbone import Backbone
from accord.models.generation_config import add_end_token
from accord.models.hf_format import read_json
from accord.models.hub import is_hub_model, model_files
from accord.models.open import open_backbone
from accord.models.reward import RewardModel, is_reward_model
from accord.registry.family import ancestors, plain_settings, write_lineage
from accord.registry.manifest import publish, versions
from accord.runtime.run import Run
from accord.training.checkpoint import write_pt


class Saves(Protocol):
    """Has ``save``: a backbone or a reward model."""

    def save(self, directory: str) -> None: ...


def model_folder(text: str) -> Path:
    """A model folder or .gguf file by its path, its stage's folder, its name in the registry (``ppo_lm@champion``), or its
    name on the Hugging Face hub (``org/name@revision``), from where it is downloaded.

    Raises UserError where there is none.
    """
    source = Path(text)
    try:
        exists = bool(text) and source.exists()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise UserError(f"{shorten(text)}: no model can be opened here ({error.strerror}).") from None
    if not text:
        raise UserError(
            "the model's name is empty; give a stage's folder, a model folder, a .gguf file, or a Hugging Face id (org/name)."
        )
    if (source / "model" / "config.json").exists():
        return source / "model"
    if (source / "config.json").exists() or (source.suffix == ".gguf" and source.exists()):
        return source
    if exists:
        raise UserError(f"{text}: no language model here: neither model/config.json nor config.json, nor a .gguf file.")
    if is_hub_model(text):
        return model_files(text, partial(print, file=sys.stderr))
    if "/" in text or source.suffix == ".gguf":
        raise UserError(
            f"{text}: no such model; give a stage's folder, a model folder, a .gguf file, or a Hugging Face id (org/name)."
        )
    from accord.registry.store import open_store

    try:
        return open_store().find(text).folder
    except UserError as error:
        why = str(error).removeprefix(f"{text}: ").rstrip(".")
        raise UserError(
            f"{text}: no such model; give a folder, a .gguf file, a Hugging Face id (org/name), or a name in the registry"
            f" ({why})."
        ) from None


def require_same_tokens(key: str, folder: str, policy: str, tokenizer: Tokenizer) -> None:
    """Raises UserError where the token ids of the model at ``folder``, named by ``key``, are not those of the policy.

    ``tokenizer`` is the policy's.  Chat templates may differ: both models read the policy's tokens.
    """
    if folder == policy:
        return
    other = open_tokenizer(folder)
    if other.digest() != tokenizer.digest() and (found := difference_of_ids(other, tokenizer)):
        raise UserError(
            f"{key}: {folder} has another tokenizer than {policy} ({found}), but both read the same tokens; name a model"
            " that was trained from the same base."
        )


def open_tokenizer(source: str) -> Tokenizer:
    """The tokenizer stored with a model (a folder or a .gguf file)."""
    return Tokenizer.from_gguf(source) if source.endswith(".gguf") else Tokenizer.open(source)


def open_model(source: str, device: torch.device) -> Backbone:
    """A language model on its device, dropout off.

    Its parameters require gradients; the caller freezes them for a fixed reference.  Raises UserError for a reward model.
    """
    if is_reward_model(source) or classifies(source):
        raise UserError(
            f"{source}: a reward model scores replies and writes none; name the language model it was made from."
        )
    return open_backbone(source).to(device).eval()


def open_policy(source: str, tokenizer: Tokenizer, device: torch.device) -> Backbone:
    """A language model that replies are sampled from, or whose log-probs are compared with those of one.

    Ids without a token (a vocabulary padded to a round number, gaps) have no probability, in all its policy log-probs.
    Raises UserError as ``open_model``, and where the tokenizer has ids that the model has not.
    """
    backbone = open_model(source, device)
    require_ids(source, backbone, tokenizer)
    backbone.exclude(tokenizer.ids_without_token(backbone.vocab_size))
    return backbone


def classifies(source: str | Path) -> bool:
    """Whether a folder's ``config.json`` is of a model whose head gives scores or classes of texts or tokens."""
    if not (Path(source) / "config.json").is_file():
        return False
    named = read_json(source, "config.json").get("architectures")
    endings = ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel", "RewardModel")
    return isinstance(named, list) and any(isinstance(name, str) and name.endswith(endings) for name in named)


def require_fit(source: str, backbone: Backbone, tokenizer: Tokenizer, longest: int) -> None:
    """Raises UserError where texts of the tokenizer, of up to ``longest`` tokens, are not what the model can read."""
    require_ids(source, backbone, tokenizer)
    if backbone.max_positions is not None and longest > backbone.max_positions:
        raise UserError(
            f"{source}: texts have up to {longest} tokens, prompt and reply together, and the model has positions for"
            f" {backbone.max_positions}; lower model.max_length or max_new_tokens, or shorten the prompts."
        )


def require_ids(source: str, backbone: Backbone, tokenizer: Tokenizer) -> None:
    """Raises UserError where the tokenizer has ids that the model has no embedding for."""
    if tokenizer.vocab_size > backbone.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} ids and the model {backbone.vocab_size}, so the last ones"
            " have no embedding; use the tokenizer that the model was trained with."
        )


def save_model(
    run: Run,
    backbone: Backbone,
    tokenizer: Tokenizer,
    kind: str,
    metrics: Mapping[str, float],
    extra: Mapping[str, Any],
) -> None:
    """Writes ``<kind>_final.pt`` and the artifact folder ``model/`` that transformers opens."""
    save_artifact(run, backbone, tokenizer, kind, metrics)
    save_pt(run, f"{kind}_final.pt", backbone, {"metrics": dict(metrics), **extra})
    if is_sharded(backbone):
        run.say(f"wrote {run.directory / 'model'} (opens with transformers); with fsdp no .pt file is written")
        return
    run.say(f"wrote {run.directory / 'model'} (opens with transformers) and {run.directory / f'{kind}_final.pt'}")


def save_artifact(run: Run, model: Saves, tokenizer: Tokenizer, kind: str, metrics: Mapping[str, float]) -> None:
    """Writes ``model/``: weights, config and tokenizer in the Hugging Face layout, with manifest and lineage.

    All ranks call it: rank 0 writes, and of a sharded model every rank its share.
    """
    if not run.writes:
        if is_sharded(model):
            _write_model(model, Path(mesh.broadcast("")))
        mesh.barrier()
        return
    family = ancestors(run.parents, run.sources)

    def write(directory: Path) -> None:
        _write_model(model, Path(mesh.broadcast(str(directory))) if is_sharded(model) else directory)
        tokenizer.save(directory)
        add_end_token(directory, tokenizer.eos_id)
        write_lineage(directory, family)

    forms = {key: family[digest].form for key, digest in run.parents.items()}
    manifest = {
        "kind": kind,
        "name": run.name,
        "key": run.key,
        "parents": dict(run.parents),
        "base": run.parents.get("model.base_model", ""),
        "data": {key: digest for key, digest in run.parents.items() if forms[key] == "data"},
        "settings": plain_settings(run.settings),
        "metrics": dict(metrics),
        "seed": run.seed,
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    publish(run.directory / "model", write, manifest)
    mesh.barrier()


def _write_model(model: Saves, directory: Path) -> None:
    if not is_sharded(model):
        model.save(str(directory))
        return
    head = model if isinstance(model, RewardModel) else None
    backbone = head.backbone if head else model
    assert isinstance(backbone, Backbone)
    save_backbone(backbone, directory)
    if head and mesh.is_main():
        head.save_head(str(directory))


def save_pt(run: Run, name: str, model: nn.Module, content: Mapping[str, Any]) -> None:
    """Writes a .pt file: ``model_state_dict`` and plain values.

    Of a sharded model there is none, since one process would have to hold it whole; ``model/`` has the weights.
    """
    if not run.writes or is_sharded(model):
        return
    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    write_pt(run.directory / name, {"model_state_dict": state, **content})
