"""A project's votes in figures: what ``accord feedback stats`` prints and the owner's page shows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

from accord.feedback.agreement import (
    NOMINAL,
    Estimate,
    JudgedVote,
    Votes,
    agreement,
    by_pair,
    gold_accuracy,
    independent,
    kappas,
    krippendorff_alpha,
    left_share,
    mean_kappa,
    noise_ceiling,
    pace,
    self_agreement,
    tie_share,
)  # fmt: skip

MAX_DISAGREEMENTS = 100


@dataclass(frozen=True, slots=True)
class AnnotatorReport:
    """One annotator's figures; None where nothing can be said."""

    annotator: str
    votes: int  # skipped ones not counted
    skipped: int
    agreement: float | None  # share of the same choice, with every other annotator of the same pair
    compared: int  # comparisons with others
    self_agreement: float | None  # share of repeats with the same choice as the first time
    repeats: int
    left_share: float | None  # of votes for one side, those for the left one
    tie_share: float | None
    seconds: float | None  # median
    gold_accuracy: float | None
    gold: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A pair on which annotators differ, with the votes by choice."""

    pair: Hashable
    choices: dict[str, int]
    entropy: float
    """In nats, of the choices: 0 for one voice, ln 2 for half and half."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that ``accord feedback stats`` prints and the owner's page shows."""

    votes: int
    skipped: int
    pairs: int  # with at least one vote
    annotators: int
    overlapping: int  # pairs with votes of at least two annotators
    choices: dict[str, int]  # votes by choice, skip included
    alpha: Estimate
    alpha_ordinal: Estimate
    kappa: float | None  # Cohen's, mean over pairs of annotators weighted by their common pairs
    agreement: Estimate  # share of the same choice among two votes of different annotators on one pair
    decisive_agreement: Estimate  # the same among votes for a or b
    self_agreement: Estimate
    left_share: Estimate
    tie_share: float | None
    seconds: float | None
    gold_accuracy: Estimate
    noise_ceiling: float | None
    by_annotator: tuple[AnnotatorReport, ...]
    kappas: tuple[tuple[str, str, float | None, int], ...]  # two annotators, Cohen's kappa, common pairs
    disagreements: tuple[Disagreement, ...]


def disagreements(votes: Votes, most: int = MAX_DISAGREEMENTS) -> list[Disagreement]:
    """Pairs whose annotators differ, the most divided first."""
    found = []
    for pair, given in by_pair(votes).items():
        choices = Counter(v.choice for v in given)
        if len(choices) > 1:
            shares = [n / len(given) for n in choices.values()]
            found.append(Disagreement(pair, dict(sorted(choices.items())), -sum(s * math.log(s) for s in shares)))
    return sorted(found, key=lambda d: (-d.entropy, -sum(d.choices.values()), str(d.pair)))[:most]


def annotator_reports(votes: Votes) -> list[AnnotatorReport]:
    """Each annotator's figures, by name."""
    same: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    for given in by_pair(votes).values():
        choices = Counter(v.choice for v in given)
        for vote in given:
            same[vote.annotator] += choices[vote.choice] - 1
            compared[vote.annotator] += len(given) - 1
    own: dict[str, list[JudgedVote]] = defaultdict(list)
    for vote in votes:
        own[vote.annotator].append(vote)
    reports = []
    for name, mine in sorted(own.items()):
        repeats, gold = self_agreement(mine), gold_accuracy(mine)
        skipped = sum(v.choice == "skip" for v in mine)
        reports.append(
            AnnotatorReport(
                annotator=name,
                votes=len(mine) - skipped,
                skipped=skipped,
                agreement=same[name] / compared[name] if compared[name] else None,
                compared=compared[name],
                self_agreement=repeats.value,
                repeats=repeats.count,
                left_share=left_share(mine).value,
                tie_share=tie_share(mine),
                seconds=pace(mine),
                gold_accuracy=gold.value,
                gold=gold.count,
            )
        )
    return reports


def describe_votes(votes: Votes, resamples: int = 1000) -> Report:
    """All figures of ``votes``; the owner's decisions are in none.  Raises UserError where ``krippendorff`` is missing."""
    votes = independent(votes)
    pairs = by_pair(votes)
    decisive, found = agreement(votes, decisive=True), kappas(votes)
    skipped = sum(v.choice == "skip" for v in votes)
    return Report(
        votes=len(votes) - skipped,
        skipped=skipped,
        pairs=len(pairs),
        annotators=len({v.annotator for v in votes}),
        overlapping=sum(len(given) >= 2 for given in pairs.values()),
        choices={choice: sum(v.choice == choice for v in votes) for choice in (*NOMINAL, "skip")},
        alpha=krippendorff_alpha(votes, "nominal", resamples),
        alpha_ordinal=krippendorff_alpha(votes, "ordinal", resamples),
        kappa=mean_kappa(found),
        agreement=agreement(votes),
        decisive_agreement=decisive,
        self_agreement=self_agreement(votes),
        left_share=left_share(votes),
        tie_share=tie_share(votes),
        seconds=pace(votes),
        gold_accuracy=gold_accuracy(votes),
        noise_ceiling=None if decisive.value is None else noise_ceiling(decisive.value),
        by_annotator=tuple(annotator_reports(votes)),
        kappas=tuple(found),
        disagreements=tuple(disagreements(votes)),
    )
