"""Sampled replies, before anyone has judged them: the rows of ``samples.jsonl``, written by ``sample`` and read by judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from accord.data.files.source import open_source
from accord.data.messages import template_columns
from accord.data.rows import Prompt, Row, Where, number_field, prompt_field, require, text_field
from accord.errors import UserError
from accord.io.readers import json_kind


@dataclass(frozen=True, slots=True)
class Candidate:
    """One reply of one model to a prompt."""

    text: str
    tokens: tuple[int, ...] | None = None
    """As sampled, a final EOS included; None where unknown."""
    model: str = ""
    """The model's label."""
    digest: str = ""
    """Of the model's content."""
    temperature: float | None = None
    ended: bool = True
    """Whether the model ended it within its token budget."""
    seed: int | None = None
    """Of the stage that sampled it."""
    sample: int = 0
    """Number among the model's replies to this prompt."""
    tokenizer: str = ""
    """The digest of the tokenizer that the tokens are of."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, as in its file, and replies to it."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]

    def usable(self) -> Sample:
        """The sample with only those replies that ended and have a text."""
        return replace(self, candidates=tuple(c for c in self.candidates if c.ended and c.text.strip()))

    def as_row(self) -> dict[str, Any]:
        """As a row of ``samples.jsonl``."""
        columns = template_columns(self.prompt)
        return {"prompt": self.prompt, **columns, "candidates": [asdict(candidate) for candidate in self.candidates]}


def read_samples(path: str) -> list[Sample]:
    """The rows of a file ``{"prompt", "candidates": [{"text", …}, …]}``; all keys of a candidate but its text are optional.

    Raises UserError naming file and row.
    """
    found = [_sample(row, where) for where, row in open_source(path).rows]
    if not found:
        raise UserError(f"{path}: no samples; a row is a prompt with its candidates.")
    return found


def _sample(row: Row, where: Where) -> Sample:
    candidates = require(row, "candidates", where)
    if not isinstance(candidates, list) or not all(isinstance(c, dict) for c in candidates):
        raise where.error("'candidates' is not a list of objects, each with a 'text'")
    return Sample(prompt_field(row, "prompt", where), tuple(_candidate(c, where) for c in candidates))


def _candidate(row: Mapping[str, Any], where: Where) -> Candidate:
    known = {field.name: row[field.name] for field in fields(Candidate) if field.name in row}
    text = text_field(row, "text", where)
    tokens = known.get("tokens")
    if tokens is not None and not (isinstance(tokens, list) and all(type(t) is int and t >= 0 for t in tokens)):
        raise where.error("'tokens' of a candidate is not a list of token ids")
    for key, kinds in {
        "model": (str,),
        "digest": (str,),
        "tokenizer": (str,),
        "ended": (bool,),
        "seed": (int, type(None)),
        "sample": (int,),
    }.items():
        if key in known and type(known[key]) not in kinds:
            raise where.error(f"{key!r} of a candidate is a JSON {json_kind(known[key])}")
    temperature = None if known.get("temperature") is None else number_field(row, "temperature", where, 1e3)
    ids = None if tokens is None else tuple(tokens)
    return Candidate(**{**known, "text": text, "tokens": ids, "temperature": temperature})
