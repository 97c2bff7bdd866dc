"""Rows as exact tokens: each token as a person can read it, and which of them are learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from rich.text import Text as Styled

from accord.data.tokenizer import Tokenizer
from accord.data_report.check import Checker, NumberedRow
from accord.data_report.formatted import formatted
from accord.data_report.row_tokens import Text, texts_of
from accord.data_report.spelled import is_unicode
from accord.errors import UserError
from accord.io.readers import shorten

MOST = 600
"""Tokens of a sequence that are shown; of more, the middle is left out."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_STYLES = {True: ("bold green", "bold green on grey15"), False: ("default", "default on grey15")}
_CONTROL_STYLE = {True: "bold black on green", False: "bold cyan"}


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token as it is shown."""

    id: int
    text: str
    label: bool
    control: bool


@dataclass(frozen=True, slots=True)
class ShownText:
    """A sequence of a row; ``title`` names the row and which of its sequences it is."""

    title: str
    tokens: tuple[ShownToken, ...]
    problem: str = ""
    """Why there are no tokens."""


def shown_texts(checker: Checker, rows: Sequence[NumberedRow]) -> list[ShownText]:
    """All sequences of the rows; of a row of several pairs the first."""
    found = []
    tokenizer, kind = checker.tokenizer, checker.kind
    for number, where, row in rows:
        try:
            readings = checker.readings(formatted(row, kind, tokenizer.chat_template is not None, where), where)
            if any(not is_unicode(said.text) for reading in readings[:1] for said in reading.said()):
                raise UserError("half of a surrogate pair is not a character")
            texts = texts_of(tokenizer, readings[0]) if readings else []
        except UserError as error:
            reason = str(error).removeprefix(f"{where.path}, row {where.row}: ")
            found.append(ShownText(f"row {number}", (), reason))
            continue
        if not texts:
            found.append(ShownText(f"row {number}", (), "nothing to learn"))
        names = ("chosen", "rejected") if kind == "preferences" else ("",)
        found += [
            ShownText(" ".join(filter(None, [f"row {number}", name])), shown_tokens(tokenizer, text))
            for name, text in zip(names, texts, strict=False)
        ]
    return found


def shown_tokens(tokenizer: Tokenizer, text: Text) -> tuple[ShownToken, ...]:
    """The tokens of a sequence."""
    controls = tokenizer.controls.numbers | {tokenizer.eos_id}

    def piece(number: int) -> str:
        token = tokenizer.token(number)
        as_bytes = tokenizer.is_byte_level and number not in tokenizer.added_ids
        return readable(from_bytes(token) if as_bytes else token)

    return tuple(ShownToken(i, piece(i), label, i in controls) for i, label in zip(text.ids, text.labels, strict=True))


# ------------------------------------------------------------------ one token
def from_bytes(token: str) -> str:
    """The text of a byte-level token; bytes that are no whole character as ``\\xe2``.

    >>> from_bytes("Ġcat"), from_bytes("âĤ")
    (' cat', '\\\\xe2\\\\x82')
    """
    table = _byte_of_character()
    if any(c not in table for c in token):
        return token
    return bytes(table[c] for c in token).decode("utf-8", "backslashreplace")


def readable(text: str) -> str:
    """A token on one line: SentencePiece's ``▁`` as a space, ``<0xE2>`` and characters that no terminal shows escaped."""
    text = _BYTE.sub(lambda match: f"\\x{match[1].lower()}", text) if _BYTE.fullmatch(text) else text.replace("▁", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


# ------------------------------------------------------------------ a sequence
def as_styled(text: ShownText) -> Iterator[Styled]:
    """For a terminal: labels are green, control tokens stand out, every second token is shaded."""
    yield Styled(_title(text), style="bold")
    for part in _parts(text):
        line = Styled("  ")
        if isinstance(part, str):
            yield Styled(f"  {part}", style="dim")
            continue
        for n, token in enumerate(part):
            style = _CONTROL_STYLE[token.label] if token.control else _STYLES[token.label][n % 2]
            line.append(token.text, style=style)
            if token.text.endswith("\\n"):
                yield line
                line = Styled("  ")
        if len(line) > 2:
            yield line


def as_plain(text: ShownText) -> Iterator[str]:
    """For pipes and files: ``|`` between tokens; a line of labels begins with ``>``."""
    yield _title(text)
    for part in _parts(text):
        if isinstance(part, str):
            yield f"    {part}"
            continue
        for label, run in groupby(part, key=lambda token: token.label):
            tokens = "|".join(token.text.replace("|", "\\|") if not token.control else token.text for token in run)
            yield f"  {'>' if label else ' '} {tokens}"


def _parts(text: ShownText) -> list[Sequence[ShownToken] | str]:
    """The tokens, where there are many with a note in place of the middle; or the problem."""
    if text.problem:
        return [f"no tokens: {shorten(text.problem, 300)}"]
    if len(text.tokens) <= MOST:
        return [text.tokens]
    half = MOST // 2
    return [text.tokens[:half], f"… {len(text.tokens) - MOST:,} more tokens …", text.tokens[-half:]]


def _title(text: ShownText) -> str:
    labels = sum(token.label for token in text.tokens)
    learned = f", {labels:,} learned" if labels else ""
    return text.title if text.problem else f"{text.title}: {len(text.tokens):,} tokens{learned}"
