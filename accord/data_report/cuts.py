"""What training cuts of a row that is longer than the limit, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from accord.data_report.reading import Kind
from accord.data_report.row_tokens import Text

PROMPTS = "prompts shortened, oldest turns first"


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum tokens, as ``model.max_length`` and ``model.max_prompt_length`` of a stage."""

    total: int
    prompt: int


def cuts(kind: Kind, texts: Sequence[Text], limits: Limits) -> Counter[str]:
    """How many of a row's sequences lose what, with accord's defaults; empty where all fit.

    sft cuts the end of the row; preferences and prompts the oldest turns of the prompt, then the start of the last one;
    preferences the ends of the replies, too.
    """
    found: Counter[str] = Counter()
    for text in texts:
        length, asked = len(text.ids), text.prompt_length
        if kind == "prompts":
            found[PROMPTS] += length > limits.prompt
        elif kind == "preferences":
            kept = min(asked, limits.prompt)
            found[PROMPTS] += asked > kept
            found["replies cut at their end, without an end token"] += kept + length - asked > limits.total
        elif length > limits.total:
            learned = sum(text.labels[: limits.total])
            found["rows cut at their end" if learned else "rows without a label left"] += 1
            found["labels lost"] += sum(text.labels) - learned
    return +found
