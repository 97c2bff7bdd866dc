"""What a format of rows is: a name, the columns that are read, and how a row becomes one of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from accord.data.rows import Row, Where

Kind = Literal["base", "sft", "preferences", "prompts"]
"""What rows are read for: plain text, demonstrations, pairs of replies, prompts."""

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that go to the chat template, in every format."""
BESIDE: dict[Kind, tuple[str, ...]] = {
    "base": TEMPLATE_COLUMNS,
    "sft": TEMPLATE_COLUMNS,
    "preferences": (*TEMPLATE_COLUMNS, "margin", "label", "weight", "tokens"),
    "prompts": TEMPLATE_COLUMNS,
}
"""Columns that are read beside those of a format, where a row has them."""


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
