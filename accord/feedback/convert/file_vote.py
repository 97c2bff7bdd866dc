"""A vote as a file of another program states it, and the helpers by which every format reads and writes votes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from accord.data.messages import with_texts
from accord.data.rows import Where
from accord.data.turns import inputs_of
from accord.errors import UserError
from accord.feedback.entities import ADJUDICATION, Choice, Message, NewCandidate, NewPair, Side, VoteRow
from accord.io.readers import json_kind, parse_json, read_text

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FileVote:
    """One vote of a file.  What a format does not say keeps its default."""

    pair: NewPair
    choice: Choice
    annotator: str = ""
    """As the file names them; empty where it names none."""
    strength: int = 1
    seconds: float = 0.0
    left: Side | None = None
    """None: the file does not say, and a side is drawn."""
    occasion: int | None = None
    created: datetime | None = None
    comment: str = ""
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class Written:
    """The rows of an export, and how many votes it leaves out for which reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    votes: int = 0
    """That are in the rows."""
    left_out: Counter[str] = field(default_factory=Counter)


class CannotHold(Exception):
    """A vote that a format has no place for; the message is the reason, as it is counted."""


# ------------------------------------------------------------------ prompts and replies
def new_pair(prompt: Sequence[Message], a: str, b: str, models: Sequence[str] = ("", "")) -> NewPair:
    """A pair of two texts by two models, of unknown settings."""
    first, second = (NewCandidate(text, None, model, {}) for text, model in zip((a, b), models, strict=True))
    return NewPair(with_texts(prompt), first, second, probability=1.0, inputs=inputs_of(prompt))


def require_choice(pair: NewPair, where: Where) -> None:
    """Raises UserError where the two replies are the same text and no gold question, so that there is nothing to prefer."""
    if pair.a.text == pair.b.text and pair.gold != "tie":
        raise where.error("its two replies are the same text, so there is nothing to prefer; remove the row.")


def user(text: str) -> list[dict[str, Any]]:
    """A prompt of one message of the user."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def only_text(prompt: Sequence[Message]) -> str:
    """The text of a prompt that is one message of the user.  Raises CannotHold for another."""
    if len(prompt) != 1 or prompt[0].get("role") != "user":
        raise CannotHold("the prompt is more than one message of the user")
    return str(prompt[0]["content"])


def left_out_as(vote: VoteRow) -> str:
    """Why a format of annotators' first votes leaves a vote out; empty where it does not."""
    if vote.occasion == ADJUDICATION:
        return "the owner's decisions"
    return "skipped" if vote.choice == "skip" else "repeats" if vote.occasion else ""


def by_pair(votes: Iterable[VoteRow]) -> dict[int, list[VoteRow]]:
    """Votes by pair, in the order of each pair's first vote."""
    found: dict[int, list[VoteRow]] = {}
    for vote in votes:
        found.setdefault(vote.pair, []).append(vote)
    return found


# ------------------------------------------------------------------ files
def as_lines(rows: Iterable[Row]) -> str:
    """JSON Lines in ASCII, so that U+2028 ends no line and half of a surrogate pair comes back unchanged."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def as_array(rows: Iterable[Row]) -> str:
    """A JSON array in ASCII."""
    return json.dumps(list(rows), allow_nan=False, indent=1) + "\n"


def read_rows(path: Path) -> Iterator[tuple[Where, Row]]:
    """The objects of a JSON array or of JSON Lines, each with its place, rows counted from 1.

    Raises UserError naming file and row.
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file.") from None
    found = False
    for number, value in _values(text, str(path)):
        if not isinstance(value, dict):
            raise UserError(f"{path}, row {number}: a JSON {json_kind(value)}, expected an object.")
        found = True
        yield Where(str(path), number), value
    if not found:
        raise UserError(f"{path}: no rows; expected one JSON object per line, or an array of objects.")


def _values(text: str, path: str) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("["):
        yield from enumerate(parse_json(text, path, constants=False, halves=True), 1)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, f"{path}, row {number}", constants=False, halves=True)


# ------------------------------------------------------------------ fields
def number_of(row: Row, key: str, where: Where, low: float, high: float, default: float) -> float:
    """A number of a row within bounds; ``default`` where it is missing or null.  Raises UserError."""
    value = row.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise where.error(f"{key} {value!r:.40}, expected a number from {low:g} to {high:g}.")
    return float(value)


def moment_of(value: object, where: Where, key: str) -> datetime | None:
    """A moment, as seconds since 1970 or in ISO 8601; UTC where it names no zone.  Raises UserError."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            made = datetime.fromisoformat(value.replace("Z", "+00:00"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            made = datetime.fromtimestamp(value, timezone.utc)
        else:
            raise ValueError
        return made.astimezone(timezone.utc) if made.tzinfo else made.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise where.error(f"{key} {value!r:.40}, expected a date such as 2026-11-28T09:30:00+00:00.") from None
