"""Files whose texts are already in the chat template's format: each is divided into its turns, which take the usual path.

A file is such a file only if all of its first rows are.  In any other file what looks like a template is text, since people's
words could look so too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from accord.data.chat import render
from accord.data.formats.format import TEMPLATE_COLUMNS
from accord.data.rows import Message, Row, Where
from accord.data.text_notes import TEMPLATED, TextNotes, spelled_in
from accord.data.tokenizer import Tokenizer
from accord.data.turns import as_turns
from accord.errors import UserError
from accord.io.readers import shorten

FIRST_ROWS = 64
"""Rows that decide for a file."""
REPLIES = ("completion", "chosen", "rejected")


def divided(rows: Iterable[tuple[Where, Row]], tokenizer: Tokenizer, notes: TextNotes) -> Iterator[tuple[Where, Row]]:
    """The rows of a file, those of a templated one with messages in place of text.

    Raises UserError where a row of a templated file is not templated, or cannot be divided into its turns.
    """
    source = iter(rows if tokenizer.chat_template is not None else _without_inputs(rows, notes))
    first = list(islice(source, FIRST_ROWS))
    frame = _frame_of([row for _, row in first], tokenizer)
    if frame is None:
        yield from chain(first, source)
        return
    for where, row in chain(first, source):
        with where.named():
            if not _looks_templated(row, frame):
                raise _undivided()
            made = _divide_row(row, frame, tokenizer)
        notes.add(TEMPLATED, 1)
        yield where, made


def _undivided(found: str = "") -> UserError:
    """``found``: what stands where a turn of the user or the assistant should end."""
    why = f" at '{shorten(found, 60)}': turns of tools, and calls, cannot be read back from text" if found else ""
    return UserError(
        f"the file's texts are in the chat template's format, but this row's cannot be divided into its turns{why}; give"
        " conversations as 'messages', or write the row as the others are"
    )


def is_templated(first: Sequence[Row], tokenizer: Tokenizer) -> bool:
    """Whether a file that begins with these rows is in the template's format: all of them look like it."""
    return _frame_of(first, tokenizer) is not None


def _frame_of(first: Sequence[Row], tokenizer: Tokenizer) -> Frame | None:
    """The frame of all of a file's first rows; None where one has none."""
    frame = _frame(tokenizer)
    return frame if first and frame is not None and all(_looks_templated(row, frame) for row in first) else None


def _without_inputs(rows: Iterable[tuple[Where, Row]], notes: TextNotes) -> Iterator[tuple[Where, Row]]:
    """Rows for a tokenizer without a chat template, which could not use the columns that are for one."""
    for where, row in rows:
        for key in row.keys() & set(TEMPLATE_COLUMNS):
            notes.add(f"{key} not used, since the tokenizer has no chat template", 1)
        yield where, {key: value for key, value in row.items() if key not in TEMPLATE_COLUMNS}


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chat template writes around the contents of turns; of a tokenizer without one, BOS and end token."""

    start: str  # before the first user's content
    system: str | None  # before a system message's content at the start; None where the template takes none
    after_system: str
    after_user: str  # up to the assistant's content
    after_reply: str  # up to the next user's content
    end: str  # after the last reply
    bos: str

    @property
    def bos_written(self) -> bool:
        """Whether the template begins with BOS, which texts in its format may lack, and which opens no turn."""
        rest = self.start.lstrip().removeprefix(self.bos)
        return bool(self.bos) and rest != self.start.lstrip() and self.bos not in self.after_user + self.after_reply


def _frame(tokenizer: Tokenizer) -> Frame | None:
    """None where the template's texts cannot be divided: it writes contents in another form, or no marks around them."""
    bos = tokenizer.specials.get("bos_token", "")
    eos = tokenizer.token(tokenizer.eos_id)
    if tokenizer.chat_template is None:
        return Frame(bos if tokenizer.adds_bos else "", None, "", "", "", eos, "")
    asked, said = ("qask1", "qask2"), ("qreply1", "qreply2")
    turns: list[Message] = []
    for question, answer in zip(asked, said, strict=True):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        text = render(tokenizer, turns, False)
    except UserError:
        return None
    parts = _between(text, [asked[0], said[0], asked[1], said[1]])
    if parts is None or parts[1] != parts[3] or not tokenizer.controls.count(parts[0] + parts[1]):
        return None
    system, after_system = None, ""
    try:
        text = render(tokenizer, [{"role": "system", "content": "qsystem"}, *turns[:1]], False)
        if (found := _between(text, ["qsystem", asked[0]])) is not None:
            system, after_system = found[0], found[1]
    except UserError:
        pass
    return Frame(parts[0], system, after_system, parts[1], parts[2], parts[4], bos)


def _between(text: str, contents: list[str]) -> list[str] | None:
    """The text before, between and after the contents; None where one is missing."""
    parts = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _looks_templated(row: Row, frame: Frame) -> bool:
    """Whether the row's text, or its prompt, or both its replies, have the frame of the template."""
    if not frame.after_user:  # no template: an end token after every text
        texts = [row[key] for key in ("text", *REPLIES) if isinstance(row.get(key), str)]
        begins = [row[key] for key in ("text", "prompt") if isinstance(row.get(key), str)] if frame.start else []
        return bool(texts or begins) and (
            (bool(texts) and all(text.rstrip().endswith(frame.end) for text in texts))
            or (bool(begins) and all(text.startswith(frame.start) for text in begins))
        )
    return any(_starts(row[key], frame) for key in ("text", "prompt", "chosen") if isinstance(row.get(key), str))


def _starts(text: str, frame: Frame) -> bool:
    starts = (frame.start, *([frame.system] if frame.system else []))
    return any(_from_start(text, frame).startswith(_from_start(start, frame)) for start in starts)


def _from_start(text: str, frame: Frame) -> str:
    """A text without the space and the BOS that it may begin with."""
    return text.lstrip().removeprefix(frame.bos).lstrip() if frame.bos_written else text.lstrip()


def _divide_row(row: Row, frame: Frame, tokenizer: Tokenizer) -> Row:
    """Raises UserError where a text cannot be divided."""
    if not frame.after_user:
        return {key: _without_ends(key, value, frame) for key, value in row.items()}
    if isinstance(row.get("text"), str) and "prompt" not in row and "completion" not in row:
        messages = _turns(row["text"], frame, tokenizer)
        return {k: v for k, v in row.items() if k != "text"} | {"messages": messages}
    replies = {key: _without_end(row[key], frame, tokenizer) for key in REPLIES if isinstance(row.get(key), str)}
    if isinstance(row.get("prompt"), str):
        return {**row, "prompt": _turns(row["prompt"], frame, tokenizer), **replies}
    return {**row, **{key: _turns(row[key], frame, tokenizer) for key in replies}}


def _without_ends(key: str, value: Any, frame: Frame) -> Any:
    """A text of a tokenizer without a template, without the BOS and the end token that training adds itself."""
    if not isinstance(value, str) or key not in ("text", "prompt", *REPLIES):
        return value
    text = value.removeprefix(frame.start) if key in ("text", "prompt") and frame.start else value
    return text if key == "prompt" or not text.rstrip().endswith(frame.end) else text.rstrip().removesuffix(frame.end)


def _without_end(reply: str, frame: Frame, tokenizer: Tokenizer) -> str:
    """A reply without the end token that the template writes after it."""
    eos = tokenizer.token(tokenizer.eos_id)
    text = reply.rstrip()
    return text.removesuffix(eos) if text.endswith(eos) else reply


def _turns(text: str, frame: Frame, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """The messages whose rendering is the text, up to BOS and space at its ends.  Raises UserError where there are none."""
    rest, found = _from_start(text, frame).rstrip(), []
    system = _from_start(frame.system, frame) if frame.system else ""
    if system and rest.startswith(system) and frame.after_system in rest:
        content, _, rest = rest[len(system) :].partition(frame.after_system)
        found.append({"role": "system", "content": content})
    elif rest.startswith(start := _from_start(frame.start, frame)):
        rest = rest[len(start) :]
    else:
        raise _undivided()
    waits = ((frame.after_user, "user"), (frame.after_reply, "assistant"))
    turn = 0
    while True:
        mark, role = waits[turn % 2]
        content, met, after = rest.partition(mark)
        if role == "user" and not met:  # the mark at the end of a prompt lost its space
            content, met, after = rest.removesuffix(mark.rstrip()), mark if rest.endswith(mark.rstrip()) else "", ""
        if not met:
            content = rest.removesuffix(frame.end.rstrip()) if role == "assistant" else content
        found.append({"role": role, "content": content})
        turn += 1
        if not met or not after:
            break
        rest = after
    opened = found[-1]["role"] == "user"
    for message in found:
        if spelled := spelled_in(tokenizer, message):
            raise _undivided(message["content"][message["content"].index(spelled[0]) :])
    try:
        again = render(tokenizer, as_turns(found), opened)
    except UserError:
        raise _undivided() from None
    if _from_start(again, frame).rstrip() != _from_start(text, frame).rstrip():
        raise _undivided()
    return found
