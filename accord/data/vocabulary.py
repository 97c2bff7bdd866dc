"""In what two tokenizers differ."""

from __future__ import annotations

from accord.data.tokenizer import Tokenizer


def difference_of_ids(ours: Tokenizer, theirs: Tokenizer) -> str:
    """The first token id that means another token, in words; empty where all ids mean the same."""
    if ours.vocab_size != theirs.vocab_size:
        return f"{ours.vocab_size} and {theirs.vocab_size} tokens"
    pairs = enumerate(zip(_tokens(ours), _tokens(theirs), strict=True))
    return next((f"token {i} is {a!r} and {b!r}" for i, (a, b) in pairs if a != b), "")


def difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """What differs between two tokenizers with different digests: ids, special tokens, templates or rules, in words."""
    for name in ("eos_id", "pad_id", "bos_id"):
        if getattr(ours, name) != getattr(theirs, name):
            return difference_of_ids(ours, theirs) or f"{name} is {getattr(ours, name)} and {getattr(theirs, name)}"
    if ours.chat_template != theirs.chat_template:
        return difference_of_ids(ours, theirs) or "the chat templates are not the same text"
    return difference_of_ids(ours, theirs) or "the same tokens, but other tokenization rules (tokenizer.json)"


def _tokens(tokenizer: Tokenizer) -> list[str | None]:
    found: list[str | None] = []
    for token_id in range(tokenizer.vocab_size):
        try:
            found.append(tokenizer.token(token_id))
        except ValueError:  # a gap in the vocabulary
            found.append(None)
    return found
