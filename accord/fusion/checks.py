"""Checks that models can be merged: same architecture, tensors, tokenizer and reward head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.data.vocabulary import difference, difference_of_ids
from accord.errors import UserError
from accord.fusion.weights import ModelTensors
from accord.models.hf_format import read_json
from accord.models.reward import HEAD_CONFIG, has_head

if TYPE_CHECKING:
    from accord.data.tokenizer import Tokenizer

REMEDY = "merge models that were trained from one base"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
IGNORED = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys of config.json that do not change what the tensors mean; special tokens are compared in the tokenizers."""
ABSENT = object()


def require_folder(path: str, key: str) -> Path:
    """The path of a model folder.  Raises UserError for anything else, saying how to import it."""
    folder = Path(path)
    if folder.suffix == ".gguf" or not folder.is_dir():
        found = "is a .gguf file" if folder.suffix == ".gguf" else "is no folder here"
        raise UserError(f"{key}: {path!r} {found}; import it first with 'accord pretrained source={path}'.")
    return folder


def require_same_config(first: Path, other: Path) -> None:
    """Raises UserError naming the first key that differs between the two config.json."""
    ours, theirs = read_json(first, "config.json"), read_json(other, "config.json")
    if ours.get("model_type") != theirs.get("model_type"):
        key = "model_type"
    else:
        key = _differing(ours, theirs)
        if key and (key not in ours or key not in theirs):  # may be a default that one of them omits
            ours, theirs = _with_defaults(first, ours), _with_defaults(other, theirs)
            key = _differing(ours, theirs)
    if key:
        here, there = ours.get(key, "nothing"), theirs.get(key, "nothing")
        raise UserError(
            f"{first} and {other} differ in architecture: {key} in config.json is {here!r} and {there!r}; {REMEDY}."
        )


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """A key whose values differ, preferably one in both; empty where there is none."""
    keys = [key for key in sorted({*ours, *theirs} - IGNORED) if ours.get(key, ABSENT) != theirs.get(key, ABSENT)]
    return next((k for k in keys if k in ours and k in theirs), keys[0] if keys else "")


def _with_defaults(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The config with the model family's defaults, where transformers has the family."""
    from transformers import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).to_dict())
    except (OSError, ValueError, KeyError):
        return values


def require_same_tensors(first: ModelTensors, other: ModelTensors) -> None:
    """Raises UserError naming the first tensor whose presence, shape or kind of dtype differs."""
    where = f"{first.folder} and {other.folder} differ in architecture:"
    for name in sorted({*first.layouts, *other.layouts}):
        if name not in first.layouts or name not in other.layouts:
            has = first.folder if name in first.layouts else other.folder
            raise UserError(f"{where} only {has} has the tensor {name}; {REMEDY}, saved by one program.")
        ours, theirs = first.layouts[name], other.layouts[name]
        if ours.shape != theirs.shape:
            raise UserError(f"{where} {name} has shape {ours.shape} and {theirs.shape}; {REMEDY}.")
        if ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
            raise UserError(f"{where} {name} is {ours.dtype} and {theirs.dtype}; {REMEDY}.")


def require_same_tokenizers(models: Sequence[Path], base: Path | None) -> None:
    """Requires equal ids, special tokens and chat templates of the models, and equal ids of the base (perhaps no chat model).

    Folders without a tokenizer are skipped.  Raises UserError naming what differs.
    """
    opened = [(folder, _tokenizer(folder)) for folder in models if _has_tokenizer(folder)]
    if not opened:
        return
    first, ours = opened[0]
    for folder, theirs in opened[1:]:
        if ours.digest() != theirs.digest():
            raise UserError(f"{first} and {folder} have different tokenizers: {difference(ours, theirs)}; {REMEDY}.")
    if base is not None and _has_tokenizer(base):
        differs = difference_of_ids(ours, _tokenizer(base))
        if differs:
            raise UserError(f"{first} and {base} have different tokenizers: {differs}; {REMEDY}.")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def _tokenizer(folder: Path) -> Tokenizer:
    from accord.data.tokenizer import Tokenizer

    return Tokenizer.open(folder)


def require_same_heads(models: Sequence[Path], base: Path | None) -> bool:
    """Whether these are reward models.  Raises UserError where only some are, or where their heads differ in shape."""
    first = models[0]
    has = has_head(first)
    for other in [*models[1:], *([base] if base is not None else [])]:
        if has_head(other) != has:
            if other == base and has:  # a language model as the base of reward models counts as a head of zeros
                continue
            reward_model, language_model = (first, other) if has else (other, first)
            raise UserError(
                f"{reward_model} is a reward model and {language_model} is not ({HEAD_CONFIG}); merge models of one kind."
            )
        if has:
            ours, theirs = read_json(first, HEAD_CONFIG), read_json(other, HEAD_CONFIG)
            key = _differing(ours, theirs)
            if key:
                raise UserError(
                    f"{first} and {other} have different reward heads: {key} in {HEAD_CONFIG} is {ours.get(key)!r} and"
                    f" {theirs.get(key)!r}; train both with the same settings."
                )
    return has
