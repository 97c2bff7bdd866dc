"""Prompts: rows that hold nothing else, and those of the other kinds, of which the prompt is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from accord.data.formats.demonstrations import CONVERSATIONS, transcript_prompt
from accord.data.formats.format import Format, Unusable, present, replaced, without_nulls
from accord.data.formats.instructions import PROMPTS, Instruction, best_match
from accord.data.formats.preferences import OPENAI, shared_prompt
from accord.data.formats.turns import as_turns, is_transcript, is_turns, with_system
from accord.data.rows import Row, Where


def prompt(row: Row, chat: bool) -> Format | None:
    """``prompt``, or what comes before the reply in another format."""
    if present(row, "prompt"):
        return _CHAT if chat else _PLAIN
    for key in CONVERSATIONS:
        if is_turns(row.get(key)):
            return Format(
                "conversation", (key,), partial(_before_reply, key), "the turns before the last reply are the prompt"
            )
    replies = [row.get("chosen"), row.get("rejected")]
    if all(map(is_turns, replies)) or (chat and all(map(is_transcript, replies))):
        note = "the turns that both replies follow are the prompt"
        return Format("preferences with an implicit prompt", ("chosen", "rejected"), _shared, note)
    family = best_match(row, PROMPTS)
    if family is not None and isinstance(row[family.prompt], str):
        return Format("instructions", family.columns(row), partial(_instruction, family))
    if isinstance(row.get("input"), Mapping) and is_turns(row["input"].get("messages")):
        return Format("OpenAI preferences", ("input",), _openai)
    return None


def _prompt(chat: bool, row: Row, where: Where) -> list[Row]:
    turns = as_turns(row["prompt"], "prompt", where)
    if chat and is_transcript(turns):
        turns = transcript_prompt(turns)
    return [without_nulls(row) if turns is row["prompt"] else replaced(row, (), prompt=turns)]


def _before_reply(key: str, row: Row, where: Where) -> list[Row]:
    turns = as_turns(row[key], key, where)
    if isinstance(turns[-1], Mapping) and turns[-1].get("role") == "assistant":
        turns = turns[:-1]
    if not turns:
        raise Unusable("no turn before the reply")
    system = row.get("system") if key != "messages" else None
    return [replaced(row, (key, "system") if system else (key,), prompt=with_system(system, turns))]


def _shared(row: Row, where: Where) -> list[Row]:
    return [replaced(row, ("chosen", "rejected"), prompt=shared_prompt(row, where))]


def _instruction(family: Instruction, row: Row, where: Where) -> list[Row]:
    return [replaced(row, family.columns(row), prompt=family.turns(row, where))]


def _openai(row: Row, where: Where) -> list[Row]:
    return [replaced(row, OPENAI, prompt=as_turns(row["input"]["messages"], "input.messages", where))]


_CHAT, _PLAIN = (Format("prompts", ("prompt",), partial(_prompt, chat)) for chat in (True, False))
