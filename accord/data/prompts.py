"""Prompts to sample replies to, and what all loaders share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from accord.data.chat import prompt_ids
from accord.data.formats.rows import FormattedRows
from accord.data.messages import message_text
from accord.data.prompt_cut import Side, fit_prompt
from accord.data.rows import Prompt, Report, Tally, prompt_field
from accord.data.templated import divided
from accord.data.text_notes import SHORTENED, TextNotes
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError


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
    notes = TextNotes(tokenizer)
    found = FormattedRows(path, "prompts", tokenizer.chat_template is not None)
    for where, row in divided(islice(found, limit or None), tokenizer, notes):
        tally.rows += 1
        prompt = prompt_field(row, "prompt", where)
        with where.named():
            ids = prompt_ids(tokenizer, prompt)
        notes.add_row(prompt)
        notes.add_ids(ids)
        if is_blank(prompt) or not ids:
            tally.dropped["empty prompt"] += 1
            continue
        with where.named():
            fitted = fit_prompt(tokenizer, prompt, ids, max_prompt_length, truncate)
        if fitted is None:
            tally.dropped["prompt too long"] += 1
            continue
        tally.cut_prompt(fitted.lost, len(fitted.ids))
        notes.add(SHORTENED, fitted.turns > 0)
        tally.tokens += len(fitted.ids)
        usable.append((fitted.ids, plain_text(prompt), prompt))
    tally.notes = notes.counts()
    tally.add_formats(found.describe(), found.dropped)
    report = tally.report(path)
    prompts, texts, sources = zip(*usable, strict=True)
    return PromptData(prompts, texts, sources, report)


def rows_by_prompt(prompts: Iterable[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """The rows of each distinct prompt, prompts in the order of their first row."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for n, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(n)
    return rows


def is_blank(prompt: Prompt) -> bool:
    """Whether a prompt has no text."""
    return not (prompt.strip() if isinstance(prompt, str) else any(message_text(m).strip() for m in prompt))


def plain_text(prompt: Prompt) -> str:
    """The prompt as plain text; several turns as "role: text" lines."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return message_text(prompt[0])
    return "\n".join(f"{m['role']}: {message_text(m)}" for m in prompt)


def _require_length(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name}: {value}, expected at least 1")
