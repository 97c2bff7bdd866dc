"""The report of a comparison: a table of models, replies side by side, and the results file.

The numbers come from ``metrics``.  Decoration on the terminal is plain ASCII.
"""

from __future__ import annotations

import os
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from accord.io.atomic import write_text
from accord.io.finite_json import dumps, shown
from accord.runtime.tables import Column, as_text, make_table, right

WIDE = 105  # columns that the table needs for names of up to 30
STACKED_BELOW = 80  # columns of the terminal; replies are also stacked where a column would be narrower than NARROWEST
NARROWEST = 20
GAP = " | "
HEADERS = ("model", "gold reward", "win rate vs SFT", "KL to ref", "length", "ends (EOS)")
FIRST_NUMBER = 3  # the columns from here on hold bare numbers, aligned to the right


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model in the table; the 95 % intervals are over prompts.

    ``kl_mean``: nats per reply, to the reference (SFT).  ``length_mean``: tokens.  ``eos_rate``: share of ended replies.
    ``win_rate``: against SFT on gold, 0 … 1.  None, shown as a dash: undefined, as the win rate is for SFT itself.
    """

    name: str
    gold_mean: float | None
    gold_ci95: Sequence[float] | None
    win_rate: float | None
    win_rate_ci95: Sequence[float] | None
    kl_mean: float | None
    length_mean: float
    eos_rate: float


# ----------------------------------------------------------------- the table
def _cells(row: ModelRow) -> tuple[str, ...]:
    win = shown(row.win_rate, ".2f") + _interval(row.win_rate_ci95, ".2f")
    kl = shown(row.kl_mean if row.kl_mean is None else round(row.kl_mean, 2) + 0.0, ".2f")  # -0.001 is not "-0.00"
    gold = shown(row.gold_mean, "+.3f") + _interval(row.gold_ci95, "+.2f")
    return (clean(row.name), gold, win, kl, f"{row.length_mean:.1f}", f"{100 * row.eos_rate:.0f} %")


def _interval(ends: Sequence[float] | None, form: str) -> str:
    return "" if ends is None else f" [{shown(ends[0], form)}, {shown(ends[1], form)}]"


def table(rows: Sequence[ModelRow], width: int = WIDE) -> str:
    """The models as aligned text, one line each; below ``WIDE`` columns headers take several lines, and long names wrap."""
    name, *figures = HEADERS if width >= WIDE else [textwrap.fill(header, 8) for header in HEADERS]
    columns: list[str | Column] = [Column(name, overflow="fold"), *figures[: FIRST_NUMBER - 1]]
    columns += map(right, figures[FIRST_NUMBER - 1 :])
    text = as_text(make_table(columns, map(_cells, rows)), width)
    return f"{text}\nbrackets: 95 % interval over prompts; KL in nats per reply, length in tokens"


def markdown_table(rows: Sequence[ModelRow]) -> str:
    """The same table in Markdown, for the README and the docs."""
    rules = ["---" if i < FIRST_NUMBER else "---:" for i in range(len(HEADERS))]
    lines = [HEADERS, rules, *([escape(cell) for cell in _cells(row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ----------------------------------------------------------------- replies side by side
def clean(text: str) -> str:
    """Text without control characters, which could move a terminal's cursor; line ends are kept."""
    lines = text.expandtabs(4).splitlines()
    return "\n".join("".join(c if unicodedata.category(c)[0] != "C" else "\ufffd" for c in line) for line in lines)


def _pad(text: str, width: int) -> str:
    return text + " " * max(0, width - cell_len(text))


def _join(cells: Iterable[str], gap: str) -> str:
    return gap.join(cells).rstrip()


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns; the text's own line ends are kept, its blank lines are not."""
    lines: list[str] = []
    for paragraph in clean(text).split("\n"):
        for line in textwrap.wrap(paragraph, width):
            # textwrap counts characters; only wide ones make a line too long, and then each may take two columns
            lines += [line] if cell_len(line) <= width else textwrap.wrap(line, max(1, width // 2))
    return lines or ["(empty)"]


def _check_samples(prompts: Sequence[str], samples: Mapping[str, Sequence[str]]) -> None:
    if not samples:
        raise ValueError("samples: no model to show")
    for name, replies in samples.items():
        if len(replies) != len(prompts):
            raise ValueError(f"samples of {name}: {len(replies)} replies to {len(prompts)} prompts")


def _columns(replies: Mapping[str, str], width: int) -> list[str]:
    blocks = [_wrap(reply, width) for reply in replies.values()]
    heads = [[name[:width], "-" * width] for name in replies]
    blocks = [head + block for head, block in zip(heads, blocks, strict=True)]
    height = max(len(block) for block in blocks)
    filled = [block + [""] * (height - len(block)) for block in blocks]
    return [_join([_pad(cell, width) for cell in line], GAP) for line in zip(*filled, strict=True)]


def _stack(replies: Mapping[str, str], width: int) -> list[str]:
    label = max(cell_len(name) for name in replies) + 2
    lines = []
    for name, reply in replies.items():
        for i, line in enumerate(_wrap(reply, max(1, width - label))):
            lines.append(_pad(f"{name}:" if i == 0 else "", label) + line)
    return lines


def side_by_side(prompts: Sequence[str], samples: Mapping[str, Sequence[str]], width: int) -> str:
    """Each prompt with the models' replies in columns, in the mapping's order; stacked where ``width`` < 80.

    ``samples``: by model, one reply per prompt.  Raises ValueError where their numbers differ.
    """
    _check_samples(prompts, samples)
    column = (width - len(GAP) * (len(samples) - 1)) // len(samples)
    stacked = width < STACKED_BELOW or column < NARROWEST
    blocks = []
    for i, prompt in enumerate(prompts):
        replies = {clean(name): texts[i] for name, texts in samples.items()}
        head = textwrap.indent("\n".join(_wrap(prompt, max(1, width - 2))), "  ")
        body = _stack(replies, width) if stacked else _columns(replies, column)
        blocks.append("\n".join([">" + head[1:], *body]))
    return "\n\n".join(blocks)


def escape(text: str) -> str:
    """Text escaped for a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", clean(text).strip()).replace("\n", "<br>")


def markdown_samples(prompts: Sequence[str], samples: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table with a row per prompt and a column per model."""
    _check_samples(prompts, samples)
    lines = [["prompt", *map(escape, samples)], ["---"] * (len(samples) + 1)]
    for prompt, *replies in zip(prompts, *samples.values(), strict=True):
        lines.append([escape(prompt), *(escape(reply) or "(empty)" for reply in replies)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ----------------------------------------------------------------- the results file
def _plain(value: Any, key: str) -> Any:
    """A JSON value: NumPy numbers become Python numbers.  Raises TypeError naming the key of another value."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist(), key)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"results: {key} is of type {type(value).__name__}, which JSON cannot hold")


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes ``results`` as JSON, with null for NaN and infinity.

    Raises TypeError for values that JSON has not, before anything is written.
    """
    text = dumps(_plain(results, ""), indent=2, ensure_ascii=False) + "\n"
    write_text(Path(path), text)
