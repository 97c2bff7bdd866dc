"""FastChat's battles, the records of Chatbot Arena: two models, the winner, and both conversations.

Source: FastChat, fastchat/serve/monitor/clean_battle_data.py: model_a is shown left; winner is model_a, model_b, tie or
"tie (bothbad)".  The file is a JSON array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from accord.data.messages import with_texts
from accord.data.rows import Where, messages_field, require, text_alone, text_field
from accord.feedback.convert.file_vote import FileVote, Row, Written, assistant, left_out_as, moment_of, new_pair
from accord.feedback.convert.pairs import PairOptions
from accord.feedback.entities import Choice, VoteRow

WINNERS: dict[str, Choice] = {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "both_bad"}


def write(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """One battle for each vote; the candidate that was shown left is model_a."""
    written = Written()
    for vote in votes:
        if reason := left_out_as(vote):
            written.left_out[reason] += 1
            continue
        left, right = (vote.a, vote.b) if vote.left == "a" else (vote.b, vote.a)
        choice = vote.choice
        if choice in ("a", "b"):
            choice = "a" if choice == vote.left else "b"
        prompt = [dict(m) for m in vote.prompt]
        written.rows.append(
            {
                "question_id": vote.digest,
                "model_a": left.policy,
                "model_b": right.policy,
                "winner": next(word for word, meant in WINNERS.items() if meant == choice),
                "judge": vote.annotator,
                "conversation_a": [*prompt, assistant(left.text)],
                "conversation_b": [*prompt, assistant(right.text)],
                "turn": sum(m["role"] == "user" for m in prompt),
                "anony": True,
                "tstamp": vote.created.timestamp(),
            }
        )
        written.votes += 1
    return written


def read(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of battles; one whose conversations differ before their last reply has no common prompt: it is counted."""
    for where, row in rows:
        a, b = (messages_field(row, key, where) for key in ("conversation_a", "conversation_b"))
        winner = require(row, "winner", where)
        if not isinstance(winner, str) or winner not in WINNERS:
            raise where.error(f"winner {winner!r:.40}, expected {', '.join(WINNERS)}.")
        if any(talk[-1]["role"] != "assistant" or len(talk) < 2 for talk in (a, b)):
            raise where.error("a conversation does not end with a reply of the assistant to a message.")
        if _turns(a) != _turns(b):
            yield "battles that differ before their last reply"
            continue
        models = [text_field(row, f"model_{side}", where) for side in ("a", "b")]
        pair = new_pair(a[:-1], text_alone(a[-1], where), text_alone(b[-1], where), models)
        if pair.a.text == pair.b.text:
            yield "battles of two equal replies"
            continue
        created = moment_of(row.get("tstamp"), where, "tstamp")
        yield FileVote(pair, WINNERS[winner], str(row.get("judge") or ""), left="a", created=created)


def _turns(talk: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in with_texts(talk[:-1])]
