"""All that is found in one row, and in a part of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accord.data.rows import Row, Where, has_calls
from accord.data.templated import divided
from accord.data.text_notes import TextNotes
from accord.data.tokenizer import Tokenizer
from accord.data_report.counts import Counts
from accord.data_report.cuts import Limits, cuts
from accord.data_report.formatted import Formatted, formatted
from accord.data_report.hazards import Found
from accord.data_report.learned import empty_replies, lost_tools, token_hazards
from accord.data_report.pairs import reply_hazards
from accord.data_report.reading import Kind, Reading, read_row
from accord.data_report.repeats import Hashes, Identity, Numbers, identity
from accord.data_report.row_tokens import Text, texts_of
from accord.data_report.spelled import Spelling
from accord.data_report.template_facts import TemplateFacts
from accord.errors import UserError

NumberedRow = tuple[int, Where, Row]
"""The row's number in the whole file, its place for messages, the row."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in rows: counts, and of ``N`` rows in accord's shapes the numbers and hashes."""

    counts: Counts
    numbers: Numbers
    rows: Hashes
    exchanged: Hashes
    prompts: Hashes


@dataclass(frozen=True)
class Checker:
    """A tokenizer, how rows are read, and what is too long."""

    tokenizer: Tokenizer
    facts: TemplateFacts
    spelling: Spelling
    kind: Kind
    limits: Limits
    templated: bool = False
    """Whether the file is in the template's format, so that training divides its texts into turns."""

    def check(self, rows: Sequence[NumberedRow]) -> Checked:
        """Counts over rows, and their hashes."""
        counts, hashes = Counts(), []
        for number, where, row in rows:
            hashes += [(number, one) for one in self._add(counts, number, where, row)]
        made = np.array([(h.row, h.exchanged, h.prompt) for _, h in hashes], np.uint64).reshape(-1, 3)
        return Checked(counts, np.array([n for n, _ in hashes], np.int64), made[:, 0], made[:, 1], made[:, 2])

    def readings(self, found: Formatted, where: Where) -> list[Reading]:
        """The rows that training makes of one.  Raises UserError where it is refused."""
        rows = [self._divided(row, where) for row in found.rows] if self.templated else found.rows
        return [read_row(row, self.kind, where) for row in rows]

    def _divided(self, row: Row, where: Where) -> Row:
        return next(iter(divided([(where, row)], self.tokenizer, TextNotes(self.tokenizer))))[1]

    def _add(self, counts: Counts, number: int, where: Where, row: Row) -> list[Identity]:
        counts.rows += 1
        hazards: Found = {}
        try:
            form = formatted(row, self.kind, self.tokenizer.chat_template is not None, where)
            counts.add_format(form)
            if form.unused:
                hazards["unused-columns"] = ", ".join(form.unused)
            if form.left_out:
                hazards["left-out"] = form.left_out
            if self.templated:
                said = [text for one in form.rows for text in read_row(one, self.kind, where).said()]
                hazards |= {k: v for k, v in self.spelling.hazards(said).items() if k == "templated"}
            readings = self.readings(form, where)
        except UserError as error:
            counts.add_hazards(number, {**hazards, "refused": _reason(error, where)})
            return []
        for reading in readings:
            found = self._content_hazards(reading)
            if "half-characters" not in found:
                found |= self._token_hazards(counts, reading, found)
            hazards = {**found, **hazards}
        counts.add_hazards(number, hazards)
        return [identity(reading) for reading in readings]

    def _content_hazards(self, reading: Reading) -> Found:
        chat = self.tokenizer.chat_template is not None and reading.document is None
        dates: Found = {"dates": ""} if chat and self.facts.dated else {}
        return {
            **self.spelling.hazards(reading.said()),
            **lost_tools(reading, self.facts),
            **dates,
            **reply_hazards(reading),
            **empty_replies(reading),
        }

    def _token_hazards(self, counts: Counts, reading: Reading, known: Found) -> Found:
        if "no-labels" in known:
            return {}
        try:
            texts = texts_of(self.tokenizer, reading)
        except UserError as error:
            calls = any(map(has_calls, [*reading.turns(), *reading.replies]))
            reason = _reason(error, reading.where)
            return {"lost-calls" if calls and "tool call" in reason else "refused": reason}
        self._measure(counts, reading, texts)
        found = token_hazards(self.tokenizer, reading, texts)
        if cut := cuts(self.kind, texts, self.limits):
            counts.cut.update(cut)
            found["too-long"] = f"{max(len(text.ids) for text in texts):,} tokens"
        return found

    def _measure(self, counts: Counts, reading: Reading, texts: Sequence[Text]) -> None:
        for text in texts:
            learned = sum(text.labels)
            counts.tokens += len(text.ids)
            counts.labels += learned
            counts.add_length("row", len(text.ids))
            if reading.document is None and reading.kind != "prompts":
                counts.add_length("labels", learned)
        if reading.prompt is not None and reading.kind != "prompts":
            counts.add_length("prompt", texts[0].prompt_length)
        if reading.kind == "preferences":
            one, two = (len(text.ids) for text in texts)
            counts.pairs += 1
            counts.longer_chosen += (one > two) if reading.label >= 0.5 else (two > one)


def _reason(error: UserError, where: Where) -> str:
    return str(error).removeprefix(f"{where.path}, row {where.row}: ")
