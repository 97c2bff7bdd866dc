"""Control tokens: those that a chat template writes and a row's content never does.

A template is rendered with content in which every spelled control token is replaced by a stand-in of two characters that
no text has.  What is still spelled in the rendered text was written by the template; the stand-ins are what content says.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

MARK = "\ufdd0"
"""A code point that Unicode reserves for use inside programs; a second character says what it stands for."""
_FIRST, _LAST = 0xF0000, 0x10FFFD
"""Second characters of stand-ins, to the end of Unicode."""
_SECRET = secrets.token_hex(8)
"""A part of private names, so that no text can spell one; ids do not depend on it."""
_STAND_IN = re.compile(f"{MARK}([{chr(_FIRST)}-{chr(_LAST)}])")


def is_control(token: tokenizers.AddedToken, template: str) -> bool:
    """Whether an added token structures text: it is special, or looks like a tag and is one of a template's, or has bars.

    Other added tokens (runs of spaces, words, HTML tags) are vocabulary, which content may contain.
    """
    text = token.content
    if token.special:
        return bool(text.strip())
    is_tag = len(text) > 2 and not any(c.isalnum() or c.isspace() for c in (text[0], text[-1]))
    return is_tag and (text in template or (text[1] in "|｜" and text[-2] in "|｜"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of rendered text: plain, the same in both spellings; or a stand-in or control token, which is one unit."""

    rendered: str
    private: str


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a tokenizer, by their text."""

    ids: Mapping[str, int]
    unk: int | None = None
    """The id of the unknown token, which text without a token of its own becomes as well."""

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The ids that no content has."""
        return frozenset(self.ids.values()) - {self.unk}

    # -------------------------------------------------------------- content
    def count(self, text: str) -> int:
        """How many control tokens a text spells."""
        return len(self._spelled.findall(text)) if self.ids else 0

    def spelled(self, text: str) -> list[str]:
        """The control tokens that a text spells, in order."""
        return self._spelled.findall(text) if self.ids else []

    def escape(self, text: str, whole: bool = True) -> str:
        """Content for a template, with stand-ins for the control tokens that it spells.

        Content that could complete a control token with the text beside it gets a stand-in for no text there.  ``whole``:
        also where it could be the middle of one.
        """
        if not self.ids:
            return text.replace(MARK, self._stand_ins[MARK])
        made = self._to_escape.sub(lambda match: self._stand_ins[match[0]], text)
        nothing = self._stand_ins[""]
        inside = whole and len(text) < self._longest and any(text in control for control in self.ids) and text != ""
        lengths = range(1, min(self._longest, len(text) + 1))
        if inside or any(text[:k] in self._endings for k in lengths):
            made = nothing + made
        if inside or any(text[-k:] in self._beginnings for k in lengths):
            made += nothing
        return made

    def escape_all(self, value: Any) -> Any:
        """A JSON value with all texts escaped, also the keys of objects."""
        if isinstance(value, str):
            return self.escape(value, whole=False)
        if isinstance(value, Mapping):
            return {self.escape_all(key): self.escape_all(inner) for key, inner in value.items()}
        return [self.escape_all(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    def literal(self, escaped: str) -> list[str]:
        """The control tokens that content says, by their stand-ins."""
        meanings = (self._meanings.get(match[1], "") for match in _STAND_IN.finditer(escaped))
        return [text for text in meanings if text in self.ids]

    def unescape(self, rendered: str) -> str:
        """The rendered text with every stand-in replaced by what it stands for."""
        return _STAND_IN.sub(lambda match: self._meanings.get(match[1], ""), rendered) if MARK in rendered else rendered

    # -------------------------------------------------------------- rendered text
    def pieces(self, rendered: str) -> list[Piece]:
        """The rendered text in pieces, each with the spelling that a tokenizer with private names reads."""
        if not self.ids:
            return [Piece(rendered, rendered)]
        found, done = [], 0
        for match in self._marked.finditer(rendered):
            before, text = rendered[done : match.start()], match[0]
            found.append(Piece(before, before))
            found.append(Piece(text, self._meanings.get(text[1], "") if text[0] == MARK else self.private(text)))
            done = match.end()
        return [*found, Piece(rendered[done:], rendered[done:])]

    def plain_offsets(self, rendered: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Offsets in the rendered text as offsets in ``unescape(rendered)``."""
        if MARK not in rendered:
            return list(offsets)
        shifts, total = [0] * (len(rendered) + 1), 0
        done = 0
        for match in _STAND_IN.finditer(rendered):
            shifts[done : match.end()] = [total] * (match.end() - done)
            total += len(self._meanings.get(match[1], "")) - len(match[0])
            done = match.end()
        shifts[done:] = [total] * (len(rendered) + 1 - done)
        return [(start + shifts[start], end + shifts[end]) for start, end in offsets]

    def private(self, control: str) -> str:
        """The name of a control token in a tokenizer in which no text spells one."""
        return f"{MARK}{_SECRET}{chr(_FIRST + self._order[control])}"

    # -------------------------------------------------------------- tables
    @cached_property
    def _order(self) -> dict[str, int]:
        return {text: n for n, text in enumerate(self.ids)}

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))))

    @cached_property
    def _marked(self) -> re.Pattern[str]:
        return re.compile(f"{_STAND_IN.pattern}|{self._spelled.pattern}")

    @cached_property
    def _to_escape(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted([*self.ids, MARK], key=len, reverse=True))))

    @cached_property
    def _stand_ins(self) -> dict[str, str]:
        return {text: MARK + chr(_FIRST + n) for n, text in enumerate(["", MARK, *self.ids])}

    @cached_property
    def _meanings(self) -> dict[str, str]:
        return {stand_in[1]: text for text, stand_in in self._stand_ins.items()}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.ids))

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(text[:k] for text in self.ids for k in range(1, len(text)))

    @cached_property
    def _endings(self) -> frozenset[str]:
        return frozenset(text[k:] for text in self.ids for k in range(1, len(text)))
