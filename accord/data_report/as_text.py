"""The report as text: the first rows as tokens, lengths, cuts, hazards with their fixes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text as Styled

from accord.data_report.counts import histogram, percentile
from accord.data_report.hazards import HAZARDS
from accord.data_report.report import PERCENTS, Report
from accord.data_report.shown_tokens import as_plain, as_styled
from accord.io.readers import shorten
from accord.runtime.console import console
from accord.runtime.tables import as_text, make_table, right

BAR = 30
"""Characters of the longest bar of a histogram."""
NAMES = {"row": "whole", "prompt": "prompt", "labels": "learned"}
"""What the lengths are called."""


def show(report: Report) -> None:
    """Prints the report, in colors where there is a terminal."""
    terminal = console.is_terminal
    for line in lines(report, terminal):
        if isinstance(line, Styled):
            console.print(line, soft_wrap=False)
        else:
            console.print(line, markup=False)


def lines(report: Report, styled: bool) -> Iterator[str | Styled]:
    """The lines of the report."""
    counts = report.survey.counts
    rows = f"{counts.rows:,} row{'s' * (counts.rows != 1)}"
    yield f"{report.file}: {rows}, read as {report.how.kind} with the tokenizer of {report.how.model}"
    formats = " and ".join(f"{name} ({', '.join(columns)})" for name, columns in counts.formats.items())
    yield f"recognized: {formats or 'no known format'} in {report.source}" + "".join(
        f"; {note}" for note in counts.notes
    )
    if report.survey.templated:
        yield "The texts are in the chat template's format: accord divides them into turns, other trainers template them again."
    if report.texts:
        yield ""
        yield "first rows " + (
            "(learned tokens are green)" if styled else "(tokens between |; a line of learned tokens begins with >)"
        )
        for text in report.texts:
            yield from as_styled(text) if styled else as_plain(text)
    yield from _lengths(report)
    yield ""
    yield from _hazards(report, styled)


def _lengths(report: Report) -> Iterator[str]:
    counts = report.survey.counts
    if not counts.lengths:
        return
    table = make_table(
        ["tokens", right("shortest"), *(right("median" if p == 50 else f"{p} %") for p in PERCENTS), right("longest")],
        [
            (
                NAMES[name],
                f"{min(lengths):,}",
                *(f"{percentile(lengths, p):,}" for p in PERCENTS),
                f"{max(lengths):,}",
            )
            for name, lengths in counts.lengths.items()
        ],
    )
    yield ""
    yield from as_text(table).splitlines()
    yield ""
    if len(bins := histogram(counts.lengths["row"])) > 1:
        most = max(n for _, _, n in bins)
        width = max(len(f"{last:,}") for _, last, _ in bins)
        for first, last, n in bins:
            bar = "#" * max(round(BAR * n / most), int(n > 0))
            yield f"{first:>{width},} to {last:>{width},}  {bar:<{BAR}} {n:,}"
        yield ""
    learned = "" if report.how.kind == "prompts" else f", {counts.labels:,} of them learned"
    yield f"{counts.tokens:,} tokens{learned}."
    if counts.cut:
        cut = "; ".join(f"{what}: {n:,}" for what, n in counts.cut.items())
        yield f"At --max-length {report.how.limits.total} training cuts: {cut}."
    else:
        yield f"Nothing is longer than --max-length {report.how.limits.total}."
    if counts.pairs > 1:
        yield f"The preferred reply is the longer one in {counts.longer_chosen / counts.pairs:.0%} of {counts.pairs:,} pairs."
    if (share := report.survey.share) < 1:
        yield f"Too many rows to compare all with each other: counts of repeated rows are estimates from {share:.1%} of them."


def _hazards(report: Report, styled: bool) -> Iterator[str | Styled]:
    found = {name: h for name, h in report.survey.counts.hazards.items() if h.count}
    if not found:
        yield "No hazards found."
        return
    past = report.exceeded
    for name in [*past, *(n for n in HAZARDS if n in found and n not in past)]:
        occurrences, hazard = found[name], HAZARDS[name]
        rows = ", ".join(f"{row:,}" for row in occurrences.rows) + (
            ", …" if occurrences.count > len(occurrences.rows) else ""
        )
        mark = "PROBLEM" if name in past else "note"
        count = round(occurrences.count)
        line = f"{mark:<8}{name}: {count:,} row{'s' * (count != 1)} ({rows}): {hazard.means}"
        yield Styled(line, style="bold red" if name in past else "yellow") if styled else line
        if occurrences.example:
            yield f"        row {occurrences.rows[0]:,}: {shorten(occurrences.example, 200)}"
        yield f"        fix: {hazard.fix}"
    yield ""
    if past:
        limits = ", ".join(f"{name} ({_allowed(report, name)})" for name in past)
        yield f"{len(past)} hazard{'s' * (len(past) != 1)} in more rows than accepted: {limits}."
    else:
        yield "No hazard is in more rows than accepted."


def _allowed(report: Report, name: str) -> str:
    limit = report.limits[name]
    assert limit is not None  # else it could not be exceeded
    return f"--max-{name} {limit.text}"
