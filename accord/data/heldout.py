"""Which rows are held out of training: those of a file, or of a share of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

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


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def split_by_prompt(
    rows: Sequence[Row], texts: Sequence[str], heldout_fraction: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """(train, held out), by the text of each row's prompt, so that all rows of a prompt fall on the same side."""
    sides = [is_heldout(text, heldout_fraction, seed) for text in texts]
    train = [row for row, heldout in zip(rows, sides, strict=True) if not heldout]
    return train, [row for row, heldout in zip(rows, sides, strict=True) if heldout]


@dataclass(frozen=True, slots=True)
class Split(Generic[Row]):
    """The rows of a stage: those to train on, and those held out."""

    train: Sequence[Row]
    heldout: Sequence[Row]
    report: str
    """What was read of the training file."""
    shared: int = 0
    """Held-out rows whose prompt is also trained on, apart from case and spaces, or once cut to the model's length."""

    def describe(self) -> str:
        """Both numbers, and whether a prompt is on both sides, for the screen.

        >>> Split([], [], "").describe()
        '0 to train on, none held out'
        """
        train, heldout = f"{len(self.train):,} to train on", f"{len(self.heldout):,} held out"
        if not self.heldout:
            return f"{train}, none held out"
        if not self.shared:
            return f"{train}, {heldout}, no prompt on both sides"
        return f"{train}, {heldout}, but the prompts of {self.shared:,} of these are trained on as well"


def read_split(
    data: SplitData,
    read: Callable[[str], tuple[Sequence[Row], Sequence[str], str]],
    seed: int,
    prompt: Callable[[Row], Sequence[int]],
) -> Split[Row]:
    """The rows of ``data.train`` and those held out.

    ``read`` turns a path into usable rows, the text of each row's prompt, and a report; ``prompt`` gives the tokens that a
    model reads of a row's prompt.  ``data.limit`` is one of training rows.  Raises UserError where no training row is left.
    """
    found, texts, report = read(data.train)
    rows, texts = found[: data.limit or None], texts[: data.limit or None]
    if data.heldout:
        heldout, asked, _ = read(data.heldout)
        return Split(rows, heldout, report, _shared(rows, texts, heldout, asked, prompt))
    if data.heldout_fraction == 0:
        return Split(rows, [], report)
    train, split_off = split_by_prompt(rows, texts, data.heldout_fraction, seed)
    if not split_off:
        report += f" data.heldout_fraction={data.heldout_fraction:g} of these prompts is none."
    if not train:
        raise UserError(
            f"data.heldout_fraction={data.heldout_fraction:g} leaves none of the {len(rows):,} rows of {data.train} to"
            " train on; make it smaller."
        )
    sides = [is_heldout(text, data.heldout_fraction, seed) for text in texts]
    trained, asked = (
        [text for text, side in zip(texts, sides, strict=True) if side is wanted] for wanted in (False, True)
    )
    return Split(train, split_off, report, _shared(train, trained, split_off, asked, prompt))


def _shared(
    train: Sequence[Row],
    trained: Sequence[str],
    heldout: Sequence[Row],
    asked: Sequence[str],
    prompt: Callable[[Row], Sequence[int]],
) -> int:
    """How many held-out rows have a prompt that is trained on, by its text or by the tokens that a model reads of it."""
    texts, tokens = set(map(_plain, trained)), {tuple(prompt(row)) for row in train}
    return sum(_plain(text) in texts or tuple(prompt(row)) in tokens for row, text in zip(heldout, asked, strict=True))
