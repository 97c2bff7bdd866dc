"""Hazards of a row's tokens: what is lost on the way to them, and what is learned."""

from __future__ import annotations

from collections.abc import Sequence

from accord.data.messages import message_text
from accord.data.rows import Message, Reply, has_calls, is_empty, reply_text
from accord.data.text_notes import unknown_in
from accord.data.thoughts import thought_of
from accord.data.tokenizer import Tokenizer
from accord.data_report.hazards import Found
from accord.data_report.reading import Reading
from accord.data_report.row_tokens import Text
from accord.data_report.template_facts import TemplateFacts
from accord.io.readers import shorten


def token_hazards(tokenizer: Tokenizer, row: Reading, texts: Sequence[Text]) -> Found:
    """Those of tokens that were made of a row."""
    found: Found = {}
    if lost := sum(text.lost_thoughts for text in texts):
        found["lost-thoughts"] = f"{lost} of its turns"
    if any(text.split for text in texts):
        found["split-tokens"] = ""
    if any(text.drifted for text in texts):
        found["drifted-tokens"] = ""
    if unknown := sum(unknown_in(tokenizer, text.ids) for text in texts):
        found["unknown-tokens"] = f"{unknown} of them"
    elif missing := _missing_text(tokenizer, row, texts):
        found["differing-text"] = f"{shorten(missing, 40)!r} is not in the decoded text"
    if row.kind != "prompts" and not all(any(text.labels) for text in texts):
        found["no-labels"] = "no token is learned"
    return found


def _missing_text(tokenizer: Tokenizer, row: Reading, texts: Sequence[Text]) -> str:
    """A text of the content that decoding does not give back, space around it aside; empty where there is none."""
    shared = [message_text(m) for m in _learned_context(row) if m["role"] != "assistant" or not thought_of(m)]
    replies = row.learned_replies(tokenizer.chat_template is not None)
    own = ["" if _has_thought(reply) else reply_text(reply) for reply in replies] or [row.document or ""]
    for text, reply in zip(texts, own, strict=False):
        decoded = tokenizer.decode(text.ids, skip_special=False)
        for content in [*shared, reply]:
            if content.strip() not in decoded:
                return content.strip()
    return ""


def _has_thought(reply: Reply) -> bool:
    return bool(thought_of({"content": reply} if isinstance(reply, str) else reply))


def _learned_context(row: Reading) -> list[Message]:
    """The messages up to the last reply, after which a conversation has no tokens; system turns, which templates may reword,
    and tools' and calls are not counted.
    """
    turns = row.turns()
    stop = len(turns)
    if row.messages is not None:
        learned = [
            i for i, m in enumerate(turns) if m["role"] == "assistant" and m.get("weight", 1) and m.get("train", True)
        ]
        stop = max(learned, default=-1) + 1
    return [m for m in turns[:stop] if m["role"] in ("user", "assistant") and not m.get("tool_calls")]


def empty_replies(row: Reading) -> Found:
    """Whether a reply that would be learned has no text and no calls."""
    if row.kind == "prompts":
        return {}
    if row.document is not None:
        return {} if row.document.strip() else {"no-labels": "an empty text"}
    if row.messages is not None:
        turns = [m for m in row.messages[row.first_reply :] if m["role"] == "assistant"]
        learned = [m for m in turns if m.get("weight", 1) and m.get("train", True)]
        if turns and not learned:
            return {"no-labels": "every assistant's turn has weight 0"}
        return {"no-labels": "an empty reply"} if any(map(is_empty, turns)) else {}
    called = any(map(has_calls, row.replies))  # one of two replies may be nothing but the missing call
    return {"no-labels": "an empty reply"} if any(map(is_empty, row.replies)) and not called else {}


def lost_tools(row: Reading, facts: TemplateFacts) -> Found:
    """Tools that no template writes."""
    tools = row.turns().inputs.get("tools")
    if not tools or "tools" in facts.variables:
        return {}
    return {"lost-tools": f"{len(tools)} tool{'s' * (len(tools) != 1)}"}
