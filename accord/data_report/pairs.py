"""Hazards of a prompt with its replies: the prompt repeated in them, and replies that do not differ."""

from __future__ import annotations

from accord.data.repeated_prompt import without_repeated_prompt
from accord.data.rows import Prompt, reply_text
from accord.data_report.hazards import Found
from accord.data_report.reading import Reading
from accord.io.readers import shorten

SHORTEST = 8
"""Characters of a prompt with which a single reply may not begin; a shorter one is often the reply's first word."""


def reply_hazards(row: Reading) -> Found:
    """Those of a row with replies."""
    if not row.replies:
        return {}
    texts = [reply_text(reply) for reply in row.replies]
    found: Found = {}
    if _repeats(row, texts):
        begins = "both replies begin" if len(texts) > 1 else "the reply begins"
        found["repeated-prompt"] = f"{begins} with {shorten(_asked(row.prompt), 40)!r}"
    if row.kind == "preferences" and (tie := _tie(row, texts)):
        found["ties"] = tie
    return found


def _repeats(row: Reading, texts: list[str]) -> bool:
    if row.prompt is None:
        return False
    asked = _asked(row.prompt)
    if len(texts) > 1 and without_repeated_prompt(row.prompt, row.replies, True):
        return True
    long_enough = len(asked) >= SHORTEST
    return long_enough and all(text.strip().startswith(asked) and text.strip() != asked for text in texts)


def _tie(row: Reading, texts: list[str]) -> str:
    if row.replies[0] == row.replies[1]:
        return "the replies are the same"
    plain = all(isinstance(reply, str) for reply in row.replies)
    if plain and texts[0].strip() == texts[1].strip():
        return "the replies differ in space only"
    return "its label is 0.5" if row.label == 0.5 else ""


def _asked(prompt: Prompt | None) -> str:
    """What the reply answers: plain text, or the last message."""
    if prompt is None or isinstance(prompt, str):
        return (prompt or "").strip()
    return str(prompt[-1].get("content") or "").strip() if prompt else ""
