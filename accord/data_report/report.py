"""All that is said about a file, as plain values: the report's JSON, from which its text is written too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accord.data_report.counts import Counts, histogram, percentile
from accord.data_report.hazards import HAZARDS
from accord.data_report.shown_tokens import ShownText
from accord.data_report.survey import Inspection, Survey
from accord.data_report.verdict import Limit, exceeded

FORMAT = 1
"""Of the JSON; raised where a key changes its meaning or goes."""
PERCENTS = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Report:
    """A survey with what it was made of."""

    file: str
    source: str
    """What kind of file it is."""
    how: Inspection
    survey: Survey
    texts: Sequence[ShownText]
    limits: Mapping[str, Limit | None]

    @property
    def exceeded(self) -> list[str]:
        """The hazards in more rows than are accepted."""
        return exceeded(self.survey.counts, self.limits)


def as_json(report: Report) -> dict[str, Any]:
    """The report as a JSON object (docs/data_report.md describes it)."""
    counts = report.survey.counts
    return {
        "format": FORMAT,
        "file": report.file,
        "model": report.how.model,
        "kind": report.how.kind,
        "source": report.source,
        "formats": {name: list(columns) for name, columns in counts.formats.items()},
        "notes": list(counts.notes),
        "templated": report.survey.templated,
        "rows": counts.rows,
        "tokens": counts.tokens,
        "labels": counts.labels,
        "max_length": report.how.limits.total,
        "lengths": {name: _lengths(counts, name) for name in counts.lengths},
        "cut": dict(counts.cut),
        "unused_columns": dict(counts.unused),
        "longer_chosen": counts.longer_chosen / counts.pairs if counts.pairs else None,
        "compared": report.survey.share,
        "hazards": {name: _hazard(report, name) for name in HAZARDS},
        "exceeded": report.exceeded,
        "first_rows": [_text(text) for text in report.texts],
    }


def _lengths(counts: Counts, name: str) -> dict[str, Any]:
    lengths = counts.lengths[name]
    return {
        "min": min(lengths),
        **{f"p{percent}": percentile(lengths, percent) for percent in PERCENTS},
        "max": max(lengths),
        "mean": sum(length * n for length, n in lengths.items()) / sum(lengths.values()),
        "histogram": [{"from": start, "to": end, "count": n} for start, end, n in histogram(lengths)],
    }


def _hazard(report: Report, name: str) -> dict[str, Any]:
    found, limit = report.survey.counts.hazards.get(name), report.limits[name]
    return {
        "rows": round(found.count) if found else 0,
        "first_rows": found.rows if found else [],
        "example": found.example if found else "",
        "limit": limit.text if limit else None,
        "means": HAZARDS[name].means,
        "fix": HAZARDS[name].fix,
    }


def _text(text: ShownText) -> dict[str, Any]:
    tokens = [[token.id, token.text, int(token.label)] for token in text.tokens]
    return {"title": text.title, "tokens": tokens, "problem": text.problem or None}
