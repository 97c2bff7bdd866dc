"""Votes as rows of chosen and rejected replies: what becomes of ties, and how several votes on one pair are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from accord.data.messages import template_columns
from accord.data.rows import Where, number_field, soft_label
from accord.data.sampled_ids import sampled_column
from accord.data.samples import Candidate as Sampled
from accord.data.turns import Turns
from accord.errors import UserError
from accord.feedback.convert.file_vote import CannotHold, FileVote, Row, Written, by_pair, require_choice
from accord.feedback.entities import TOKENIZER, Candidate, Message, NewPair, Side, VoteRow

Ties = Literal["drop", "half", "weight"]
TIES: tuple[Ties, ...] = ("drop", "half", "weight")
NO_SIDE = ("tie", "both_bad")


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What an export makes of votes that prefer neither reply, and of several votes on one pair."""

    ties: Ties = "drop"
    """Ties and both bad: left out; one row with label 1/2; or a row for each reply, each with half the weight."""
    share: bool = False
    """One row for each pair, whose label is the share of its votes, instead of one row for each vote."""
    strengths: bool = False
    """Whether a vote's strength, 1 to 3, is the row's weight."""

    @property
    def plain(self) -> bool:
        """Whether no row can have a label or a weight."""
        return self.ties == "drop" and not self.share and not self.strengths


@dataclass(frozen=True, slots=True)
class Preference:
    """A row: two replies to a prompt, the probability that the first is preferred, and its weight."""

    prompt: Sequence[Message]
    chosen: str
    rejected: str
    label: float
    weight: float
    beside: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the prompt's tools, and of the ids of both replies as they were sampled, where they are known."""

    def extras(self) -> dict[str, float]:
        """The keys "label" and "weight", where they are not 1."""
        return {k: v for k, v in (("label", self.label), ("weight", self.weight)) if v != 1}


def preferences(
    votes: Iterable[VoteRow], options: PairOptions, left_out: Counter[str]
) -> Iterator[tuple[Preference, int]]:
    """The rows that votes make, each with the number of its votes (0 for a tie's second row); the rest is counted by reason.

    Every first vote of every annotator is used, and so are the owner's decisions.  Repeats and gold questions are not: they
    measure annotators.
    """
    used: list[VoteRow] = []
    for vote in votes:
        reason = _unused(vote, options)
        if reason:
            left_out[reason] += 1
        else:
            used.append(vote)
    pairs = by_pair(used)
    typical = sum(_weight(vote, options) for vote in used) / max(len(pairs), 1)
    for given in pairs.values():
        if options.share:
            yield _shared(given, options, typical), len(given)
        else:
            for vote in given:
                yield from _each(vote, options)


def _unused(vote: VoteRow, options: PairOptions) -> str:
    if vote.choice == "skip":
        return "skipped"
    if vote.gold is not None:
        return "gold questions"
    if vote.occasion > 0:
        return "repeats"
    if vote.a.text == vote.b.text:
        return "equal replies"
    return {"tie": "ties", "both_bad": "both bad"}.get(vote.choice, "") if options.ties == "drop" else ""


def _weight(vote: VoteRow, options: PairOptions) -> float:
    return float(vote.strength) if options.strengths and vote.choice not in NO_SIDE else 1.0


def _each(vote: VoteRow, options: PairOptions) -> Iterator[tuple[Preference, int]]:
    weight = _weight(vote, options)
    if vote.choice in NO_SIDE and options.ties == "weight":
        yield _preference(vote, "a", 1.0, weight / 2), 1
        yield _preference(vote, "b", 1.0, weight / 2), 0
        return
    label = 0.5 if vote.choice in NO_SIDE else 1.0
    yield _preference(vote, "b" if vote.choice == "b" else "a", label, weight), 1


def _preference(vote: VoteRow, chosen: Side, label: float, weight: float) -> Preference:
    """The row in which the reply of one side is the chosen one."""
    first, second = (vote.a, vote.b) if chosen == "a" else (vote.b, vote.a)
    columns = template_columns(Turns(vote.prompt, vote.inputs))
    ids = sampled_column({"chosen": _sampled(first), "rejected": _sampled(second)})
    return Preference(vote.prompt, first.text, second.text, label, weight, columns | ids)


def _sampled(reply: Candidate) -> Sampled:
    return Sampled(reply.text, reply.tokens, tokenizer=str(reply.sampling.get(TOKENIZER) or ""))


def _shared(given: Sequence[VoteRow], options: PairOptions, typical: float) -> Preference:
    """The share of the votes for the reply that has most; the weight is their number, relative to the average pair."""
    total = sum(_weight(vote, options) for vote in given)
    for_a = sum(_weight(v, options) * (0.5 if v.choice in NO_SIDE else float(v.choice == "a")) for v in given) / total
    chosen: Side = "a" if for_a >= 0.5 else "b"
    return _preference(given[0], chosen, max(for_a, 1 - for_a), total / typical)


def write_pairs(votes: Iterable[VoteRow], options: PairOptions, row: Callable[[Preference], dict[str, Any]]) -> Written:
    """The rows of an export, one for each preference; ``row`` may raise CannotHold."""
    written = Written()
    for preference, count in preferences(votes, options, written.left_out):
        try:
            written.rows.append(row(preference))
            written.votes += count
        except CannotHold as reason:
            written.left_out[str(reason)] += count
    return written


def require_plain(options: PairOptions, name: str) -> None:
    """Raises UserError where a format without labels and weights is asked for them."""
    if not options.plain:
        raise UserError(
            f"--format {name} has no place for soft labels and weights; leave --ties, --share and --strengths out, or write"
            " --format trl."
        )


def vote_of(pair: NewPair, row: Row, where: Where) -> FileVote:
    """The vote that a row of chosen (candidate a) and rejected (b) states, with its label and weight.

    Raises UserError for a label or a weight that is no single vote's.
    """
    require_choice(pair, where)
    label, weight = soft_label(row, where)
    number_field(row, "margin", where, 1e6)
    if label not in (0.0, 0.5, 1.0):
        raise where.error(f"a label of {label:g} is a share of votes, not a vote; export one row for each vote.")
    if weight not in (1.0, 2.0, 3.0):
        raise where.error(f"a weight of {weight:g} is no strength of a vote (1, 2 or 3); export without --ties weight.")
    return FileVote(pair, {1.0: "a", 0.5: "tie", 0.0: "b"}[label], strength=int(weight))  # type: ignore[arg-type]
