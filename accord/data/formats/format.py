"""What a format of rows is: a name, the columns that are read, and how a row becomes one of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from accord.data.rows import Row, Where

Kind = Literal["base", "sft", "preferences", "prompts"]
"""What rows are read for: plain text, demonstrations, pairs of replies, prompts."""

TEMPLATE_COLUMNS = ("tools", "documents", "chat_template_kwargs")
"""Columns that go to the chat template, where a kind is read through one."""
SAMPLED = "tokens"
"""The column with token ids as they were sampled (``accord.data.sampled_ids``)."""
_BESIDE: dict[Kind, tuple[str, ...]] = {
    "base": (),
    "sft": (*TEMPLATE_COLUMNS, SAMPLED),
    "preferences": (*TEMPLATE_COLUMNS, "margin", "label", "weight", SAMPLED),
    "prompts": TEMPLATE_COLUMNS,
}
"""Columns that are read beside those of a format, where a row has them."""
_PLAIN = {kind: tuple(key for key in keys if key not in TEMPLATE_COLUMNS) for kind, keys in _BESIDE.items()}
"""The same for rows that no chat template writes."""


class Unusable(Exception):
    """A row that its format cannot turn into one of ours; the message is the reason, as it is counted."""


@dataclass(frozen=True, slots=True)
class Format:
    """How rows of one kind are read.

    ``read`` returns rows of the shapes that ``accord.data.rows`` reads (messages; prompt and completion; text; prompt, chosen
    and rejected), other columns unchanged.  It raises UserError for a value that no such row may have, and Unusable for a row
    that is left out and counted.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, Where], list[Row]]
    note: str = ""
    """What is not plain from name and columns, for people."""
    plain: bool = False
    """Whether the rows are text that no chat template writes."""


def unused_columns(row: Row, kind: Kind, found: Format) -> Iterator[str]:
    """The columns of a row that hold something which is not read: neither the format's nor one that is read beside it.

    ``tokens`` is read only where it is an object of ids, since other files count tokens under that name.
    """
    beside = _PLAIN[kind] if found.plain else _BESIDE[kind]
    for key, value in row.items():
        if value is None or key in found.columns:
            continue
        if key not in beside or (key == SAMPLED and not isinstance(value, Mapping)):
            yield key


def present(row: Row, *keys: str) -> bool:
    """Whether a row has all of these columns, none of them null."""
    for key in keys:  # noqa: SIM110  (once for each row and format: all() is three times slower)
        if row.get(key) is None:
            return False
    return True


def without_nulls(row: Row) -> Row:
    """A row without its null columns; the row itself where it has none."""
    return {key: value for key, value in row.items() if value is not None} if None in row.values() else row


def replaced(row: Row, columns: tuple[str, ...], **values: Any) -> Row:
    """A row with other values in place of some columns."""
    return {key: value for key, value in row.items() if key not in columns and value is not None} | values
