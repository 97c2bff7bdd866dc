"""Instructions and their replies, under the column names of Alpaca, Dolly, Orca and question answering, as turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accord.data.formats.turns import with_system
from accord.data.rows import Row, Where
from accord.io.readers import json_kind


@dataclass(frozen=True, slots=True)
class Instruction:
    """The columns of one family of rows; an empty name is none."""

    name: str
    prompt: str
    input: str = ""
    reply: str = ""
    system: str = ""
    history: str = ""

    def columns(self, row: Row) -> tuple[str, ...]:
        """Those that a row has."""
        names = (self.system, self.history, self.prompt, self.input, self.reply)
        return tuple(name for name in names if name and row.get(name) is not None)

    def turns(self, row: Row, where: Where) -> list[dict[str, Any]]:
        """The turns before the reply: a system turn, earlier exchanges, and the instruction with its input after an empty
        line."""
        texts = [_text(row, key, where) for key in (self.prompt, self.input) if key and row.get(key) is not None]
        content = "\n\n".join(text for text in texts if text.strip())
        earlier = list(_history(row, self.history, where)) if self.history else []
        system = _text(row, self.system, where) if self.system and row.get(self.system) is not None else ""
        return with_system(system, [*earlier, {"role": "user", "content": content}])


ALPACA = Instruction("Alpaca", "instruction", "input", "output", "system", "history")
DOLLY = Instruction("Dolly", "instruction", "context", "response", "system")
QUESTIONS = tuple(
    Instruction("question and answer", prompt, "context", reply, system)
    for prompt in ("question", "query", "instruction")
    for reply in ("answer", "response", "output")
    for system in ("system_prompt", "system")
)
"""OpenOrca, GSM8K and the like."""
PROMPTS = tuple(
    Instruction("instruction", prompt, extra, "", system, history)
    for prompt, extra, history in (
        ("instruction", "input", "history"),
        ("instruction", "context", ""),
        ("question", "context", ""),
        ("query", "", ""),
        ("input", "", ""),
    )
    for system in ("system", "system_prompt")
)
"""Prompts under these names, alone or beside two replies."""


def best_match(row: Row, families: tuple[Instruction, ...]) -> Instruction | None:
    """The family whose columns the row has most of, the first of several; None where prompt or reply is missing."""
    fitting = [f for f in families if row.get(f.prompt) is not None and (not f.reply or row.get(f.reply) is not None)]
    return max(fitting, key=lambda f: len(f.columns(row)), default=None)


def _text(row: Row, key: str, where: Where) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise where.error(f"{key!r} is a JSON {json_kind(value)}, expected a string")
    return value


def _history(row: Row, key: str, where: Where) -> Iterator[dict[str, Any]]:
    found = row.get(key) or []
    pairs = isinstance(found, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in found)
    if not pairs or not all(isinstance(text, str) for pair in found for text in pair):
        raise where.error(f"{key!r} is not a list of exchanges, each an instruction and its reply")
    for asked, answered in found:
        yield {"role": "user", "content": asked}
        yield {"role": "assistant", "content": answered}
