"""Rows of another kind of stage: which stage reads them, and what to change for this one."""

from __future__ import annotations

from typing import Any

from accord.data.formats.demonstrations import CONVERSATIONS, conversation, instruction, prompt_completion
from accord.data.formats.format import Kind, present
from accord.data.formats.instructions import ALPACA
from accord.data.formats.preferences import openai, pair, scored
from accord.data.formats.turns import is_transcript, is_turns
from accord.data.rows import Row

KTO_LABELS = ("label", "kto_tag")


def advice(row: Row, kind: Kind) -> str:
    """Why a row is not read for this kind of stage, and how to change the file; empty where it is of this kind, or of none."""
    if kind in ("sft", "preferences") and (key := _kto_label(row)):
        return _kto(row, key, kind)
    if kind == "sft" and not _demonstration(row):
        return _preferences(row) or _samples(row)
    if kind == "preferences" and not any((pair(row, True), scored(row), openai(row))):
        if _demonstration(row):
            return (
                "demonstrations, which sft reads; reward and dpo compare two replies: put the better one in 'chosen' and the"
                " worse one in 'rejected', beside 'prompt'"
            )
        return _samples(row)
    if kind == "prompts" and present(row, "text") and not present(row, "prompt"):
        return "plain text, which base and sft read; for prompts rename 'text' to 'prompt'"
    return ""


def _kto_label(row: Row) -> str:
    """The column that says whether a row's only reply is wanted; empty where there is none."""
    for key in KTO_LABELS:
        if _is_verdict(row.get(key)) and not present(row, "rejected") and _demonstration(row):
            return key
    return ""


def _is_verdict(value: Any) -> bool:
    return isinstance(value, bool) or value in (0, 1) or (isinstance(value, str) and value.lower() in ("true", "false"))


def _kto(row: Row, key: str, kind: Kind) -> str:
    columns = ", ".join(name for name in ("prompt", "completion", *CONVERSATIONS, key) if present(row, name))
    change = (
        f"for sft keep the rows whose {key!r} is true, and remove that column"
        if kind == "sft"
        else "for reward and dpo put a wanted and an unwanted reply to the same prompt in 'chosen' and 'rejected' of one row"
    )
    return (
        f"KTO rows ({columns}): {key!r} says whether the reply is wanted, which no stage reads yet; the stage 'kto' will;"
        f" {change}"
    )


def _demonstration(row: Row) -> bool:
    return any((conversation(row), prompt_completion(row, True), instruction(row)))


def _preferences(row: Row) -> str:
    found = pair(row, True) or scored(row) or openai(row)
    if found is None:
        return ""
    start = f"{found.name} ({', '.join(found.columns)}), which reward and dpo read; for sft"
    if found.name == "UltraFeedback":
        return f"{start} write each row's best response as {ALPACA.reply!r} beside {ALPACA.prompt!r}"
    reply = next((key for key in ("chosen", "chosen_response", "preferred_output") if present(row, key)), "")
    if reply == "preferred_output":
        return f"{start} write the turns of 'input' and the preferred one as 'messages'"
    if is_transcript(row[reply]):
        return f"{start} write the turns of {reply!r} as 'messages', or rename it to 'text'"
    if is_turns(row[reply]) and len(row[reply]) > 1:
        return f"{start} rename {reply!r} to 'messages'"
    if "prompt" in found.columns:
        return f"{start} rename {reply!r} to 'completion'"
    if "conversations" in found.columns:
        return f"{start} append {reply!r} to 'conversations', and leave {reply!r} and its rejected reply out"
    if len(found.columns) == 2:
        return f"{start} put what both replies begin with in 'prompt' and the rest of {reply!r} in 'completion'"
    return f"{start} rename {reply!r} to 'response'"


def _samples(row: Row) -> str:
    if not isinstance(row.get("candidates"), list):
        return ""
    return "sampled replies (prompt, candidates), which judge reads; its preferences are what reward and dpo train on"
