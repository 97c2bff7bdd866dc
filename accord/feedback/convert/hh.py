"""HH-RLHF: "chosen" and "rejected" are whole transcripts of "\\n\\nHuman: …" and "\\n\\nAssistant: …".

Source: the data of Bai et al. 2022 (arXiv 2204.05862), Anthropic/hh-rlhf on the Hugging Face hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from accord.data.rows import Where, text_field
from accord.feedback.convert.file_vote import CannotHold, FileVote, Row, Written, new_pair
from accord.feedback.convert.pairs import PairOptions, Preference, require_plain, vote_of, write_pairs
from accord.feedback.entities import VoteRow

MARKS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")


def write(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """Rows of transcripts.  A text that holds a mark of a turn would be read as turns: it is left out, and counted."""
    require_plain(options, "hh-rlhf")
    return write_pairs(votes, options, _row)


def _row(row: Preference) -> dict[str, Any]:
    texts = [str(m["content"]) for m in row.prompt] + [row.chosen, row.rejected]
    if any(m["role"] not in MARKS for m in row.prompt):
        raise CannotHold("the prompt has other turns than the user's and the assistant's")
    if any(TURN.search(f"\n{text}") for text in texts):
        raise CannotHold("a text holds '\\n\\nHuman:' or '\\n\\nAssistant:'")
    opening = "".join(MARKS[m["role"]] + str(m["content"]) for m in row.prompt)
    return {
        side: f"{opening}{MARKS['assistant']}{text}"
        for side, text in (("chosen", row.chosen), ("rejected", row.rejected))
    }


def read(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of rows; the turns that both transcripts begin with are the prompt."""
    for where, row in rows:
        chosen, rejected = (_turns(text_field(row, key, where), key, where) for key in ("chosen", "rejected"))
        if chosen[:-1] != rejected[:-1]:
            yield "transcripts that differ before their last turn"
            continue
        yield vote_of(new_pair(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]), row, where)


def _turns(text: str, key: str, where: Where) -> list[dict[str, Any]]:
    """The messages of a transcript.  Raises UserError where it does not go from a human turn to one of the assistant."""
    parts = TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    roles = ["user" if name == "Human" else "assistant" for name in parts[1::2]]
    if parts[0].strip() or len(roles) < 2 or roles[-1] != "assistant":
        raise where.error(
            f"{key!r} is no transcript: expected '\\n\\nHuman: …' turns, the last one '\\n\\nAssistant: …'."
        )
    return [{"role": role, "content": content} for role, content in zip(roles, parts[2::2], strict=True)]
