"""Prompts to sample replies to, and what all loaders share: truncating prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from accord.data.chat import prompt_ids
from accord.data.rows import Prompt, Report, Tally, Where, prompt_field
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.io.readers import read_jsonl

Side = Literal["left", "right", "drop"]
"""How a prompt that is too long is truncated: at its left (keeping the end), at its right, or by dropping the row."""


@dataclass(frozen=True, slots=True)
class PromptData:
    """``N`` prompts, in file order."""

    prompts: tuple[tuple[int, ...], ...]  # tokens, including the opening of the assistant's turn
    texts: tuple[str, ...]  # as plain text
    sources: tuple[Prompt, ...]  # as in the file, for models with other tokenizers
    report: Report

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))


def load_prompts(
    path: str | Path, tokenizer: Tokenizer, max_prompt_length: int, truncate: Side = "left", limit: int = 0
) -> PromptData:
    """Reads ``{"prompt": text or messages}`` rows; supervised and preference files with "prompt" work too.

    ``limit`` > 0 reads the first rows only.  ``truncate="drop"`` is for models with different tokenizers, which
    would truncate to different texts.  Raises UserError, naming file and row.
    """
    _require_length("max_prompt_length", max_prompt_length)
    tally = Tally()
    usable: list[tuple[tuple[int, ...], str, Prompt]] = []
    for number, row in islice(read_jsonl(path), limit or None):
        where = Where(str(path), number)
        tally.rows += 1
        prompt = prompt_field(row, "prompt", where)
        with where.named():
            ids = prompt_ids(tokenizer, prompt)
        if is_blank(prompt) or not ids:
            tally.dropped["empty prompt"] += 1
            continue
        places = tokens_to_keep(ids, max_prompt_length, truncate, tokenizer.bos_id)
        if places is None:
            tally.dropped["prompt too long"] += 1
            continue
        tally.truncate_prompt(len(places), len(ids))
        tally.tokens += len(places)
        usable.append((tuple(ids[i] for i in places), plain_text(prompt), prompt))
    report = tally.report(path)
    prompts, texts, sources = zip(*usable, strict=True)
    return PromptData(prompts, texts, sources, report)


def tokens_to_keep(ids: Sequence[int], limit: int, side: Side, bos_id: int | None) -> list[int] | None:
    """The indices of a prompt's tokens to keep, at most ``limit``; None where the row is to be dropped.

    A leading BOS is kept, since some models need it.
    """
    length = len(ids)
    if length <= limit:
        return list(range(length))
    if side == "drop":
        return None
    if side == "right":
        return list(range(limit))
    first = [0] if limit > 1 and ids[0] == bos_id else []
    return [*first, *range(length - limit + len(first), length)]


def rows_by_prompt(prompts: Iterable[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """The rows of each distinct prompt, prompts in the order of their first row."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for n, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(n)
    return rows


def is_blank(prompt: Prompt) -> bool:
    """Whether a prompt has no text."""
    return not (prompt.strip() if isinstance(prompt, str) else any(str(m["content"]).strip() for m in prompt))


def plain_text(prompt: Prompt) -> str:
    """The prompt as plain text; several turns as "role: text" lines."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def _require_length(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name}: {value}, expected at least 1")
