"""Rows with two replies, one of them preferred, and rows with several scored replies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import combinations
from typing import Any

from accord.data.formats.demonstrations import transcript_prompt
from accord.data.formats.format import Format, Unusable, present, replaced, without_nulls
from accord.data.formats.instructions import PROMPTS, Instruction, best_match
from accord.data.formats.turns import as_turns, is_transcript, is_turns, transcript_turns
from accord.data.rows import Row, Where

ULTRAFEEDBACK = ("instruction", "completions")
OPENAI = ("input", "preferred_output", "non_preferred_output")
RESPONSES = ("chosen_response", "rejected_response")
SCORES = ("overall_score", "fine-grained_score")


def transcripts(row: Row, chat: bool) -> Format | None:
    """HH-RLHF: both replies at the end of a whole dialogue; without a chat template the text stays as it is."""
    if chat and is_transcript(row.get("chosen")) and is_transcript(row.get("rejected")):
        return Format("HH-RLHF", ("chosen", "rejected"), _transcripts, "Human is read as user, Assistant as assistant")
    return None


def pair(row: Row, chat: bool) -> Format | None:
    """``chosen`` and ``rejected``, with a prompt of any name or an implicit one."""
    names: tuple[str, ...] = ("chosen", "rejected") if present(row, "chosen", "rejected") else RESPONSES
    if not present(row, *names):
        return None
    if present(row, "prompt"):
        return Format("preferences", ("prompt", *names), partial(_prompted, "prompt", names, chat))
    if is_turns(row.get("conversations")) and isinstance(row[names[0]], (dict, str)):
        columns = ("conversations", *names)
        return Format("ShareGPT preferences", columns, partial(_prompted, "conversations", names, chat))
    if names[0] == "chosen" and is_turns(row["chosen"]) and len(row["chosen"]) > 1:
        return _IMPLICIT
    family = best_match(row, PROMPTS)
    if family is not None:
        columns = family.columns(row)
        name = "Orca-DPO" if {"system", "question"} <= set(columns) else "preferences"
        return Format(name, (*columns, *names), partial(_instruction, family, names))
    return _IMPLICIT if names[0] == "chosen" else None


def scored(row: Row) -> Format | None:
    """UltraFeedback before it is made binary: several replies, each with a score."""
    replies = row.get("completions")
    if (
        not present(row, *ULTRAFEEDBACK)
        or not isinstance(replies, list)
        or not all(isinstance(r, Mapping) for r in replies)
    ):
        return None
    return Format("UltraFeedback", ULTRAFEEDBACK, _scored, "every two replies of different overall_score are a pair")


def openai(row: Row) -> Format | None:
    """OpenAI's preferences: ``input``, ``preferred_output``, ``non_preferred_output``."""
    if present(row, *OPENAI) and isinstance(row["input"], Mapping) and is_turns(row["input"].get("messages")):
        return Format("OpenAI preferences", OPENAI, _openai)
    return None


def shared_prompt(row: Row, where: Where) -> Any:
    """The prompt of a row without ``prompt``: the turns that both replies begin with."""
    if is_transcript(row["chosen"]):
        return _transcripts(row, where)[0]["prompt"]
    chats = [as_turns(row[key], key, where) for key in ("chosen", "rejected")]
    if not all(isinstance(chat, list) and chat for chat in chats):
        raise Unusable("no prompt that both replies begin with")
    count = 0
    while count < min(map(len, chats)) - 1 and chats[0][count] == chats[1][count]:
        count += 1
    if not count:
        raise Unusable("no prompt that both replies begin with")
    return chats[0][:count]


def _transcripts(row: Row, where: Where) -> list[Row]:
    chosen, rejected = transcript_turns(row["chosen"]), transcript_turns(row["rejected"])
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Unusable("no reply at the end")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("dialogues that differ before the last reply")
    replies = {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
    return [replaced(row, (), prompt=chosen[:-1], **replies)]


def _prompted(key: str, names: tuple[str, ...], chat: bool, row: Row, where: Where) -> list[Row]:
    prompt = as_turns(row[key], key, where)
    chosen, rejected = (_reply(row, name, where) for name in names)
    if chat and is_transcript(prompt) and isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = transcript_prompt(prompt), chosen.strip(), rejected.strip()
    if isinstance(chosen, list) and isinstance(rejected, str) and len(chosen) == 1:
        rejected = [{"role": "assistant", "content": rejected}]
    return [replaced(row, (key, *names), prompt=prompt, chosen=chosen, rejected=rejected)]


def _reply(row: Row, key: str, where: Where) -> Any:
    value = row[key]
    return as_turns([value] if isinstance(value, dict) else value, key, where)


def _implicit(row: Row, where: Where) -> list[Row]:
    replies = {key: _reply(row, key, where) for key in ("chosen", "rejected")}
    return [{**without_nulls(row), **replies}]


def _instruction(family: Instruction, names: tuple[str, ...], row: Row, where: Where) -> list[Row]:
    chosen, rejected = (_reply(row, name, where) for name in names)
    columns = (*family.columns(row), *names)
    return [replaced(row, columns, prompt=family.turns(row, where), chosen=chosen, rejected=rejected)]


def _scored(row: Row, where: Where) -> list[Row]:
    replies = [(_score(reply, i, where), reply.get("response")) for i, reply in enumerate(row["completions"])]
    if not all(isinstance(text, str) for _, text in replies):
        raise where.error("a reply in 'completions' has no text 'response'")
    ranked = sorted(replies, key=lambda reply: -reply[0])
    pairs = [(a[1], b[1]) for a, b in combinations(ranked, 2) if a[0] > b[0]]
    if not pairs:
        raise Unusable("no two replies of different score")
    prompt = [{"role": "user", "content": row["instruction"]}]
    rest = replaced(row, ULTRAFEEDBACK)
    return [{**rest, "prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]


def _score(reply: Mapping[str, Any], index: int, where: Where) -> float:
    found = next((reply[key] for key in SCORES if reply.get(key) is not None), None)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise where.error(f"completions[{index}] has no number overall_score")
    return float(found)


def _openai(row: Row, where: Where) -> list[Row]:
    prompt = as_turns(row["input"]["messages"], "input.messages", where)
    chosen, rejected = (_reply(row, key, where) for key in OPENAI[1:])
    beside = {key: row["input"][key] for key in ("tools",) if row["input"].get(key) is not None}
    return [{**replaced(row, OPENAI), **beside, "prompt": prompt, "chosen": chosen, "rejected": rejected}]


_IMPLICIT = Format("preferences with an implicit prompt", ("chosen", "rejected"), _implicit)
