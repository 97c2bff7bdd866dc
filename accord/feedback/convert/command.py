"""``accord feedback export``, ``import`` and ``stats``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UserError
from accord.io.atomic import write_text
from accord.io.finite_json import dumps

if TYPE_CHECKING:
    from accord.feedback.agreement import Estimate
    from accord.feedback.convert.file_vote import FileVote
    from accord.feedback.report import AnnotatorReport, Report

NAMES = (
    *("raw", "trl", "trl-conversational", "trl-unpaired", "hh-rlhf", "llama-factory", "llama-factory-alpaca"),
    *("openrlhf", "argilla", "label-studio", "fastchat"),
)
"""Of the formats; a test holds them equal to ``formats.FORMATS``, which needs the store's packages."""


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``accord feedback export NAME``."""
    parser.add_argument("--format", choices=NAMES, default="raw", help="format of the file (default: raw, all votes)")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write; .jsonl, or .json for arrays")
    add_until(parser)
    add_pair_options(parser)
    parser.add_argument("--with-comments", action="store_true", help="write annotators' comments and tags as well")


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how votes become preferences: --ties, --share, --strengths."""
    parser.add_argument(
        "--ties",
        choices=("drop", "half", "weight"),
        default="drop",
        help="ties and both bad as pairs: left out; one row with label 0.5; or a row each way of half the weight",
    )
    parser.add_argument("--share", action="store_true", help="one row for each pair, its label the share of the votes")
    parser.add_argument("--strengths", action="store_true", help="write the strength of a vote as the row's weight")


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``accord feedback import NAME FILE``."""
    parser.add_argument("file", metavar="FILE", help="JSON Lines, or a JSON array")
    parser.add_argument("--format", choices=NAMES, default="raw", help="format of the file (default: raw)")


def add_until(parser: argparse.ArgumentParser) -> None:
    """The option ``--until``."""
    parser.add_argument(
        "--until", default="", metavar="TIME", help="moment in ISO form, UTC unless it says (default: now)"
    )


def moment(text: str) -> datetime | None:
    """The moment that ``--until`` names, in UTC where it names no zone.  Raises UserError."""
    if not text:
        return None
    try:
        made = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise UserError(f"--until {text!r}: expected a moment such as 2026-11-28T12:00.") from None
    return made if made.tzinfo else made.replace(tzinfo=timezone.utc)


# ------------------------------------------------------------------ export and import
def export_votes(store: Any, name: str, options: argparse.Namespace) -> list[str]:
    """Writes a project's votes to a file; returns what to say: how many, what was left out, what the format cannot hold.

    Raises UserError where nothing is left to write, or the file cannot be written.
    """
    from accord.feedback.convert.formats import FORMATS
    from accord.feedback.convert.pairs import PairOptions
    from accord.feedback.vote_rows import read_votes

    chosen = FORMATS[options.format]
    wanted = PairOptions(options.ties, options.share, options.strengths)
    if chosen.whole and not wanted.plain:
        raise UserError(
            f"--format {options.format} holds votes as they are; leave --ties, --share and --strengths out."
        )
    if options.with_comments and not chosen.comments:
        raise UserError(f"--format {options.format} has no place for comments; leave --with-comments out, or use raw.")
    votes = read_votes(store, name, moment(options.until))
    if not votes:
        raise UserError(
            f"project {name!r}: no votes yet{' at that moment' if options.until else ''}; nothing was written."
        )
    if not options.with_comments:
        votes = [replace(vote, comment="", tags=()) for vote in votes]
    written = chosen.write(votes, wanted)
    if not written.rows:
        reasons = counts_in_words(written.left_out)
        raise UserError(f"project {name!r}: no vote fits --format {options.format} ({reasons}); nothing was written.")
    try:
        write_text(Path(options.out), chosen.text(written.rows))
    except OSError as error:
        raise UserError(f"{options.out}: cannot be written ({error.strerror}).") from None
    said = [
        f"{options.out}: {len(written.rows)} rows with {written.votes} of {len(votes)} votes, format {options.format}."
    ]
    if written.left_out:
        said.append(f"Left out: {counts_in_words(written.left_out)}.")
    return [*said, chosen.loses] if chosen.loses else said


def import_file(store: Any, name: str, options: argparse.Namespace) -> list[str]:
    """Adds the votes of a file to a project, all or none; returns what to say.  Raises UserError naming file and row."""
    from accord.feedback.convert.file_vote import read_rows
    from accord.feedback.convert.formats import FORMATS
    from accord.feedback.convert.store_votes import import_votes

    store.project(name)
    path = Path(options.file)
    judgments: list[FileVote] = []
    left_out: Counter[str] = Counter()
    for found in FORMATS[options.format].read(read_rows(path)):
        if isinstance(found, str):
            left_out[found] += 1
        else:
            judgments.append(found)
    if not judgments:
        raise UserError(f"{path}: no vote to import ({counts_in_words(left_out) or 'it states no preference'}).")
    made = import_votes(store, name, judgments)
    said = [
        f"{path}: {made.votes} votes of {made.annotators} annotators on {made.pairs} new pairs imported into {name}."
    ]
    if made.again:
        said.append(f"{made.again} votes were imported before and are not counted twice.")
    if left_out:
        said.append(f"Left out: {counts_in_words(left_out)}.")
    return said


def counts_in_words(counts: Counter[str]) -> str:
    """``ties 3, skipped 1``."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))


# ------------------------------------------------------------------ stats
def show_stats(store: Any, name: str, options: argparse.Namespace) -> None:
    """Prints agreement, biases and pace of a project's votes, as tables or as JSON.  Raises UserError."""
    from accord.feedback.report import describe_votes
    from accord.feedback.vote_rows import read_votes

    votes = read_votes(store, name, moment(options.until))
    report = describe_votes(votes)
    if options.json:
        print(dumps({"project": name, **asdict(report)}, indent=2))
        return
    if not votes:
        print(f"{name}: no votes yet.")
        return
    from accord.runtime.tables import Column, make_table, right, show

    show(make_table(["", right(""), ""], _figures(report)))
    figures = ("votes", "skipped", "agrees", "with self", "left", "ties", "gold", "seconds")
    heads: list[str | Column] = ["annotator", *map(right, figures)]
    print()
    show(make_table(heads, [_person(person) for person in report.by_annotator]))
    if report.disagreements:
        print()
        rows = [
            (str(d.pair), ", ".join(f"{c.replace('_', ' ')} {n}" for c, n in d.choices.items()))
            for d in report.disagreements[:10]
        ]
        show(make_table(["pair", "votes of annotators who differ"], rows))
        if len(report.disagreements) > len(rows):
            print(f"and {len(report.disagreements) - len(rows)} more; --json lists up to 100")


def _figures(report: Report) -> list[tuple[str, str, str]]:
    choices = ", ".join(f"{c.replace('_', ' ')} {n}" for c, n in report.choices.items() if n)
    return [
        ("votes", str(report.votes), f"on {report.pairs} pairs by {report.annotators} annotators ({choices})"),
        ("overlapping pairs", str(report.overlapping), "with votes of two or more annotators"),
        ("Krippendorff's alpha", _number(report.alpha.value), _interval(report.alpha)),
        ("  ordinal", _number(report.alpha_ordinal.value), _interval(report.alpha_ordinal)),
        ("Cohen's kappa", _number(report.kappa), "mean over pairs of annotators"),
        ("agreement", _percent(report.agreement.value), _interval(report.agreement, percent=True)),
        (
            "  without ties",
            _percent(report.decisive_agreement.value),
            _interval(report.decisive_agreement, percent=True),
        ),
        ("noise ceiling", _percent(report.noise_ceiling), "accuracy on single votes of a judge who is always right"),
        ("agreement with self", _percent(report.self_agreement.value), _interval(report.self_agreement, percent=True)),
        ("left side chosen", _percent(report.left_share.value), _interval(report.left_share, percent=True)),
        ("ties and both bad", _percent(report.tie_share), ""),
        ("gold questions", _percent(report.gold_accuracy.value), _interval(report.gold_accuracy, percent=True)),
        ("seconds", "–" if report.seconds is None else f"{report.seconds:.1f}", "median"),
    ]


def _person(found: AnnotatorReport) -> Sequence[str]:
    shares = (found.agreement, found.self_agreement, found.left_share, found.tie_share, found.gold_accuracy)
    seconds = "–" if found.seconds is None else f"{found.seconds:.1f}"
    return (found.annotator, str(found.votes), str(found.skipped), *map(_percent, shares), seconds)


def _interval(found: Estimate, percent: bool = False) -> str:
    if found.low is None or found.high is None:
        return f"of {found.count}" if found.count else "too few votes"
    low, high = (_percent(v) if percent else _number(v) for v in (found.low, found.high))
    return f"{low} to {high} (95 %), of {found.count}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
