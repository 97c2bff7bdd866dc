"""A copy of a tokenizer in which control tokens have names that no text spells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


def with_private_names(backend: tokenizers.Tokenizer, names: Mapping[str, str]) -> tokenizers.Tokenizer:
    """A tokenizer with the same ids, whose tokens in ``names`` are spelled as the names say.

    The vocabulary is renamed as well as the added tokens, since some models (Unigram, and BPE that ignores its merges) find
    any piece of their vocabulary in a text.
    """
    import tokenizers

    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        if token["content"] in names:
            token.update(content=names[token["content"]], normalized=False)
    _rename(content["model"], names)
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Renames pieces of a vocabulary in place, and drops the merges that would make them."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        model["merges"] = [list(m) for m in merges if not names.keys() & {*m, "".join(m)}]
