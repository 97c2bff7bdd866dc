"""Token ids as they were sampled, beside the text of replies: the column ``tokens`` of rows that accord writes.

Tokenizing a sampled text again may give other ids than those the model chose; training reads the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accord.data.formats.format import SAMPLED
from accord.data.reply_text import reply_text
from accord.data.rows import Reply, Row, Where
from accord.data.samples import Candidate
from accord.data.tokenizer import Tokenizer

COLUMN = SAMPLED


def sampled_column(replies: Mapping[str, Candidate]) -> dict[str, Any]:
    """The column for replies by their key in the row: their ids and the digest of the tokenizer that all of them are of.

    Empty where a reply has no ids, or not the same tokenizer.
    """
    tokenizers = {candidate.tokenizer for candidate in replies.values()}
    if len(tokenizers) != 1 or "" in tokenizers or any(c.tokens is None for c in replies.values()):
        return {}
    ids = {key: list(candidate.tokens or ()) for key, candidate in replies.items()}
    return {COLUMN: {"tokenizer": tokenizers.pop(), **ids}}


class SampledIds:
    """Reads the column for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._digest = ""

    def of(self, row: Row, key: str, prompt: Sequence[int], text: Reply, where: Where) -> tuple[int, ...] | None:
        """The ids of the reply ``key`` whose text is ``text``, after the ids of its prompt.

        None where there are none, they are another tokenizer's, the reply did not end, or they spell another text: it was
        edited, stripped, or there are control tokens among them; also where the column is no object (other tools count tokens
        there).  Raises UserError where it is one and holds something else than ids.
        """
        column = row.get(COLUMN)
        if not isinstance(column, Mapping):
            return None
        ids = _checked(column, key, where)
        if ids is None or column.get("tokenizer") != self._own_digest():
            return None
        tokenizer = self._tokenizer
        content = ids[:-1]
        if not content or ids[-1] != tokenizer.eos_id or not tokenizer.are_content(content):
            return None
        return tuple(ids) if reply_text(tokenizer, prompt, content) == text else None

    def _own_digest(self) -> str:
        self._digest = self._digest or self._tokenizer.digest()
        return self._digest


def _checked(column: Mapping[str, Any], key: str, where: Where) -> list[int] | None:
    ids = column.get(key)
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)):
        raise where.error(
            f"'tokens' has under {key!r} no list of token ids; it holds the ids of sampled replies by their key, or leave the"
            " column out"
        )
    return ids
