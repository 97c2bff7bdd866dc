"""From a request to a report: opens the tokenizer and the files, and recognizes what the rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

from accord.data.files.source import open_source
from accord.data_report.cuts import Limits
from accord.data_report.formatted import formatted
from accord.data_report.model_tokenizer import open_named_tokenizer
from accord.data_report.reading import Kind, kind_of
from accord.data_report.report import Report
from accord.data_report.shown_tokens import shown_texts
from accord.data_report.survey import Inspection, heldout_prompts, make_checker, numbered, survey
from accord.data_report.verdict import Limit
from accord.errors import UserError
from accord.io.readers import shorten


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for."""

    file: str
    model: str
    kind: Kind | None = None
    """None: as the first row looks."""
    max_length: int = 256
    heldout: str = ""
    shown: int = 3
    processes: int = 1


def inspect_file(request: Request, limits: Mapping[str, Limit | None]) -> Report:
    """Reads the file once and reports.

    Raises UserError for a file, a first row or a model that cannot be read, and naming the row for a later one that is no
    row at all.
    """
    tokenizer = open_named_tokenizer(request.model)
    chat = tokenizer.chat_template is not None
    source = open_source(request.file, halves=True)
    rows = numbered(source.rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{request.file}: no rows")
    kind = request.kind or kind_of(first[2]) or "sft"
    if not formatted(first[2], kind, chat, first[1]).name:
        columns = ", ".join(map(repr, first[2])) or "none"
        wanted = {"sft": "messages, prompt and completion, or text", "preferences": "chosen and rejected"}.get(
            kind, "prompt"
        )
        raise first[1].error(
            f"no known format of {kind} rows; it has the columns {shorten(columns)}, expected {wanted}."
        )
    how = Inspection(
        request.model, kind, Limits(request.max_length, max(1, request.max_length * 3 // 4)), request.processes
    )
    heldout = heldout_prompts(numbered(open_source(request.heldout).rows), kind, chat) if request.heldout else None
    found = survey(chain([first], rows), tokenizer, how, heldout, request.shown)
    texts = shown_texts(make_checker(tokenizer, replace(how, templated=found.templated)), found.first)
    return Report(request.file, source.kind, how, found, texts, limits)
