"""Which rows are held out of training: those of a file, or of a share of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accord.config.common import SplitData
from accord.errors import UserError
from accord.runtime.seeds import derive

_PARTS = 10**6

Row = TypeVar("Row")


def is_heldout(prompt: str, fraction: float, seed: int) -> bool:
    """Whether a prompt is held out, by a hash of the seed and its text (``plain_text``) and of nothing else.

    Added rows, another tokenizer or another length limit move no prompt to the other side.  ``fraction`` is resolved to
    millionths.  Raises UserError where it is not in 0 … 1.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"heldout_fraction: {fraction}, expected a number from 0 to 1")
    return derive(seed, f"held out {prompt}") % _PARTS < fraction * _PARTS


def split_by_prompt(
    rows: Sequence[Row], texts: Sequence[str], heldout_fraction: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """(train, held out), by the text of each row's prompt, so that all rows of a prompt fall on the same side."""
    sides = [is_heldout(text, heldout_fraction, seed) for text in texts]
    train = [row for row, heldout in zip(rows, sides, strict=True) if not heldout]
    return train, [row for row, heldout in zip(rows, sides, strict=True) if heldout]


def read_split(
    data: SplitData, read: Callable[[str], tuple[Sequence[Row], Sequence[str], str]], seed: int
) -> tuple[list[Row], list[Row], str]:
    """(training rows, held-out rows, report as text) for a stage.

    ``read`` turns a path into usable rows, the text of each row's prompt, and a report.  ``data.limit`` is one of
    training rows.  Raises UserError where no training row is left.
    """
    found, texts, report = read(data.train)
    rows, texts = list(found[: data.limit or None]), texts[: data.limit or None]
    if data.heldout:
        heldout, asked, _ = read(data.heldout)
        trained = set(texts)
        if shared := sum(text in trained for text in asked):
            report += f" Of the {len(heldout):,} held-out rows {shared:,} have a prompt that is also trained on."
        return rows, list(heldout), report
    if data.heldout_fraction == 0:
        return rows, [], report
    train, split = split_by_prompt(rows, texts, data.heldout_fraction, seed)
    if not train:
        raise UserError(
            f"data.heldout_fraction={data.heldout_fraction:g} leaves none of the {len(rows):,} rows of {data.train} to"
            " train on; make it smaller."
        )
    return train, split, report
