"""TRL's formats of preferences: prompt, chosen and rejected as text or as messages; prompt, completion and label.

Source: TRL's documentation, "Dataset formats and types" (preference with an explicit prompt, standard and conversational; unpaired
preference).  The keys "label" (a probability) and "weight" of paired rows are accord's own: TRL's trainers do not read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from accord.data.rows import Where, messages_field, preference_fields, require, text_alone
from accord.feedback.convert.file_vote import (
    CannotHold,
    FileVote,
    Row,
    Written,
    assistant,
    by_pair,
    new_pair,
    only_text,
    user,
)
from accord.feedback.convert.pairs import PairOptions, Preference, require_plain, vote_of, write_pairs
from accord.feedback.entities import VoteRow


def write_text_pairs(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """Rows of plain text: {"prompt", "chosen", "rejected"}."""
    return write_pairs(votes, options, _text_row)


def _text_row(row: Preference) -> dict[str, Any]:
    return {"prompt": only_text(row.prompt), "chosen": row.chosen, "rejected": row.rejected, **row.extras()}


def write_chat_pairs(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """Rows of messages: "prompt" holds the turns so far, "chosen" and "rejected" one turn of the assistant each."""
    return write_pairs(votes, options, _chat_row)


def _chat_row(row: Preference) -> dict[str, Any]:
    replies = {"chosen": [assistant(row.chosen)], "rejected": [assistant(row.rejected)]}
    return {"prompt": [dict(m) for m in row.prompt], **replies, **row.extras(), **row.beside}


def read_pairs(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of rows of either kind, the prompt in a field of its own or as the common start of both replies."""
    for where, row in rows:
        prompt, chosen, rejected, _ = preference_fields(row, where)
        yield vote_of(
            new_pair(
                user(prompt) if isinstance(prompt, str) else prompt,
                text_alone(chosen, where),
                text_alone(rejected, where),
            ),
            row,
            where,
        )


# ------------------------------------------------------------------ unpaired
def write_unpaired(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """Two rows for each vote: the preferred reply true, the other false; both false where both are bad.

    A vote for one reply says only that it is better, which the format cannot say.
    """
    require_plain(options, "trl-unpaired")
    written = Written()
    for given in by_pair(votes).values():
        for vote in given:
            if vote.choice in ("skip", "tie") or vote.gold is not None or vote.occasion > 0:
                reason = {"skip": "skipped", "tie": "ties"}.get(vote.choice)
                written.left_out[reason or ("gold questions" if vote.gold is not None else "repeats")] += 1
                continue
            try:
                prompt = only_text(vote.prompt)
            except CannotHold as problem:
                written.left_out[str(problem)] += 1
                continue
            for side, text in (("a", vote.a.text), ("b", vote.b.text)):
                written.rows.append({"prompt": prompt, "completion": text, "label": vote.choice == side})
            written.votes += 1
    return written


def read_unpaired(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """A vote for each two rows in a row that have one prompt: true and false prefer, false and false are both bad.

    Rows without such a partner say nothing about a pair: they are counted, not read.
    """
    waiting: tuple[Where, list[Row], str, bool] | None = None
    for where, row in rows:
        prompt = _messages(row, where)
        text = row["completion"] if isinstance(require(row, "completion", where), str) else _reply(row, where)
        label = require(row, "label", where)
        if not isinstance(label, bool):
            raise where.error(f"label {label!r:.40}, expected true or false.")
        if waiting is None or waiting[1] != prompt or waiting[2] == text:
            if waiting is not None:
                yield "rows without a second reply to their prompt"
            waiting = (where, prompt, text, label)
            continue
        before, waiting = waiting, None
        if before[3] and label:
            yield "two replies that are both good"
        elif not before[3] and not label:
            yield FileVote(new_pair(prompt, before[2], text), "both_bad")
        else:
            yield FileVote(new_pair(prompt, before[2], text), "a" if before[3] else "b")
    if waiting is not None:
        yield "rows without a second reply to their prompt"


def _messages(row: Row, where: Where) -> list[Row]:
    prompt = require(row, "prompt", where)
    return list(user(prompt)) if isinstance(prompt, str) else list(messages_field(row, "prompt", where))


def _reply(row: Row, where: Where) -> str:
    messages = messages_field(row, "completion", where)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise where.error("'completion' must be text or one message of the assistant.")
    return text_alone(messages[0], where)
