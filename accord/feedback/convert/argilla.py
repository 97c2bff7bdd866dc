"""Argilla's records of its preference template: fields prompt, response1, response2, and the ranking question "preference".

Source: Argilla, records/_io/_json.py and Record.to_dict of argilla 2 (the object of each record), and of its first version
FeedbackDataset.for_preference_modeling (names of fields and question; "1 = best, 2 = worst, ties are allowed").  Here
one record stands on each line.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from accord.data.rows import Where, messages_field, require, text_field
from accord.feedback.convert.file_vote import (
    CannotHold,
    FileVote,
    Row,
    Written,
    by_pair,
    left_out_as,
    new_pair,
    only_text,
    require_choice,
    user,
)
from accord.feedback.convert.pairs import PairOptions
from accord.feedback.entities import Choice, VoteRow

FIELDS = ("response1", "response2")
RANKS: dict[tuple[object, object], Choice] = {(1, 2): "a", (2, 1): "b", (1, 1): "tie", (2, 2): "both_bad"}
USERS = uuid.uuid5(uuid.NAMESPACE_URL, "accord:feedback")
"""Argilla names users by UUID: one is made of each annotator's public id."""


def write(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """One record for each pair, with a response of each annotator; equal ranks are a tie, twice 2 is both bad."""
    written = Written()
    for given in by_pair(votes).values():
        responses = []
        for vote in given:
            if reason := left_out_as(vote):
                written.left_out[reason] += 1
                continue
            ranks = next(r for r, choice in RANKS.items() if choice == vote.choice)
            value: Any = [{"value": name, "rank": rank} for name, rank in zip(FIELDS, ranks, strict=True)]
            if ranks[0] != ranks[1]:
                value = [name for _, name in sorted(zip(ranks, FIELDS, strict=True))]
            responses.append({"value": value, "user_id": str(uuid.uuid5(USERS, vote.annotator))})
        if not responses:
            continue
        first = given[0]
        try:
            prompt: Any = only_text(first.prompt)
        except CannotHold:
            prompt = [dict(m) for m in first.prompt]  # a chat field
        fields = {"prompt": prompt, "response1": first.a.text, "response2": first.b.text}
        written.rows.append(
            {
                "id": first.digest,
                "fields": fields,
                "metadata": {"policy1": first.a.policy, "policy2": first.b.policy},
                "suggestions": {},
                "responses": {"preference": responses},
                "vectors": {},
                "_server_id": None,
            }
        )
        written.votes += len(responses)
    return written


def read(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of records: rankings as a list of names, best first, or as ranks."""
    for where, row in rows:
        fields = require(row, "fields", where)
        if not isinstance(fields, dict):
            raise where.error("'fields' is not an object with prompt, response1 and response2.")
        is_text = isinstance(require(fields, "prompt", where), str)
        prompt = user(fields["prompt"]) if is_text else messages_field(fields, "prompt", where)
        metadata = row.get("metadata")
        about = metadata if isinstance(metadata, dict) else {}
        first, second = (text_field(fields, name, where) for name in FIELDS)
        pair = new_pair(prompt, first, second, [str(about.get(key) or "") for key in ("policy1", "policy2")])
        require_choice(pair, where)
        answers = row.get("responses")
        given = answers.get("preference") if isinstance(answers, dict) else None
        if not given:
            yield "records without a response"
        for response in given or []:
            if not isinstance(response, dict):
                raise where.error("a response is not an object with value and user_id.")
            yield FileVote(pair, _choice(response.get("value"), where), str(response.get("user_id") or ""))


def _choice(value: Any, where: Where) -> Choice:
    if isinstance(value, list) and len(value) == 2:
        if set(map(str, value)) == set(FIELDS):
            return "a" if value[0] == FIELDS[0] else "b"
        if all(isinstance(v, dict) for v in value) and {v.get("value") for v in value} == set(FIELDS):
            ranks = {v["value"]: v.get("rank") for v in value}
            choice = RANKS.get(tuple(ranks[name] for name in FIELDS))
            if choice is not None:
                return choice
    raise where.error(f"the preference {value!r:.60} is no ranking of response1 and response2.")
