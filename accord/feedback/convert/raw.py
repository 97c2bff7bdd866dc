"""accord's own format: every vote with everything that was shown, as in a snapshot's votes.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from accord.data.messages import with_texts
from accord.data.rows import Where, messages_field, require, text_field
from accord.feedback.convert.file_vote import FileVote, Row, Written, moment_of, number_of, require_choice
from accord.feedback.convert.pairs import PairOptions
from accord.feedback.entities import ADJUDICATION, NewCandidate, NewPair, VoteRow
from accord.feedback.vote_rows import as_json

CHOICES = ("a", "b", "tie", "both_bad", "skip")


def write(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """One row for each vote, ties, both bad, skips, repeats and gold questions among them."""
    rows = [as_json(vote, bool(vote.comment or vote.tags)) for vote in votes]
    return Written(rows, len(rows))


def read(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of rows.  Raises UserError naming the row."""
    for where, row in rows:
        a, b = (_candidate(require(row, key, where), key, where) for key in ("a", "b"))
        prompt = messages_field(row, "prompt", where)
        gold = _one_of(row, "gold", (None, "a", "b", "tie"), where)
        pair = NewPair(
            with_texts(prompt),
            a,
            b,
            probability=number_of(row, "probability", where, 1e-12, 1, 1),
            gold=gold,
            source=str(row.get("source") or ""),
            inputs=prompt.inputs,
        )
        require_choice(pair, where)
        tags = row.get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise where.error("'tags' is not a list of texts.")
        yield FileVote(
            pair,
            _one_of(row, "choice", CHOICES, where),
            text_field(row, "annotator", where),
            strength=int(number_of(row, "strength", where, 1, 3, 1)),
            seconds=number_of(row, "seconds", where, 0, 86400, 0),
            left=_one_of(row, "left", ("a", "b"), where),
            occasion=int(number_of(row, "occasion", where, ADJUDICATION, 1000, 0)),
            created=moment_of(row.get("created"), where, "created"),
            comment=str(row.get("comment") or ""),
            tags=tuple(tags),
        )


def _one_of(row: Row, key: str, values: tuple[Any, ...], where: Where) -> Any:
    value = row.get(key)
    if value not in values:
        raise where.error(f"{key} {value!r:.40}, expected {', '.join(str(v) for v in values if v)}.")
    return value


def _candidate(value: Any, key: str, where: Where) -> NewCandidate:
    if not isinstance(value, Mapping):
        raise where.error(f"{key!r} is not an object with a text.")
    tokens, sampling = value.get("tokens"), value.get("sampling") or {}
    if tokens is not None and not (isinstance(tokens, list) and all(type(t) is int for t in tokens)):
        raise where.error(f"{key}: 'tokens' is not a list of whole numbers.")
    if not isinstance(sampling, Mapping):
        raise where.error(f"{key}: 'sampling' is not an object.")
    policy = str(value.get("policy") or "")
    return NewCandidate(
        text_field(value, "text", where), None if tokens is None else tuple(tokens), policy, dict(sampling)
    )
