"""What a person reads at the end: the table of models, answers side by side, and the results file.

The numbers come from ``metrics``.  What surrounds the answers on a terminal is plain ASCII.
"""

from __future__ import annotations

import json
import math
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
from accord.runtime.tables import Column, as_text, make_table, right

WIDE = 100  # characters of terminal that the table takes for names of up to 25
STACKED_BELOW = 80  # characters of terminal; columns narrower than NARROWEST are stacked as well
NARROWEST = 20
GAP = " | "
HEADERS = ("model", "gold reward", "win rate vs SFT", "KL to ref", "length", "ends (EOS)")
FIRST_NUMBER = 3  # the columns from here on hold bare numbers, aligned to the right


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model in the table; the 95 % intervals are over prompts.

    ``kl_mean``: nats a reply, to the reference (SFT).  ``length_mean``: tokens.  ``eos_rate``: the share that ended.
    ``win_rate``: against SFT on gold, 0 … 1; None, with its interval, for SFT itself: shown as a dash.
    """

    name: str
    gold_mean: float
    gold_ci95: tuple[float, float]
    win_rate: float | None
    win_rate_ci95: tuple[float, float] | None
    kl_mean: float
    length_mean: float
    eos_rate: float


# ----------------------------------------------------------------- the table
def _cells(row: ModelRow) -> tuple[str, ...]:
    win = "-"
    if row.win_rate is not None:
        win = f"{row.win_rate:.2f}"
        if row.win_rate_ci95 is not None:
            win += f" [{row.win_rate_ci95[0]:.2f}, {row.win_rate_ci95[1]:.2f}]"
    low, high = (f"{end:+.2f}" for end in row.gold_ci95)
    kl = f"{round(row.kl_mean, 2) + 0.0:.2f}"  # + 0.0: a KL of -0.001 is noise around zero, not "-0.00"
    gold = f"{row.gold_mean:+.3f} [{low}, {high}]"
    return (_clean(row.name), gold, win, kl, f"{row.length_mean:.1f}", f"{100 * row.eos_rate:.0f} %")


def table(rows: Sequence[ModelRow], width: int = WIDE) -> str:
    """The models as aligned text, a line each; below ``WIDE`` headers take several lines, and long names wrap."""
    name, *figures = HEADERS if width >= WIDE else [textwrap.fill(header, 8) for header in HEADERS]
    columns: list[str | Column] = [Column(name, overflow="fold"), *figures[: FIRST_NUMBER - 1]]
    columns += map(right, figures[FIRST_NUMBER - 1 :])
    text = as_text(make_table(columns, map(_cells, rows)), width)
    return f"{text}\nbrackets: 95 % interval over prompts; KL in nats a reply, length in tokens"


def markdown_table(rows: Sequence[ModelRow]) -> str:
    """The same table in Markdown, for the README and the docs."""
    rules = ["---" if i < FIRST_NUMBER else "---:" for i in range(len(HEADERS))]
    lines = [HEADERS, rules, *([_escape(cell) for cell in _cells(row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ----------------------------------------------------------------- answers side by side
def _clean(text: str) -> str:
    """Text without what could move a terminal's cursor; line ends stay."""
    lines = text.expandtabs(4).splitlines()
    return "\n".join("".join(c if unicodedata.category(c)[0] != "C" else "\ufffd" for c in line) for line in lines)


def _pad(text: str, width: int) -> str:
    return text + " " * max(0, width - cell_len(text))


def _join(cells: Iterable[str], gap: str) -> str:
    return gap.join(cells).rstrip()


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns; the text's own line ends are kept, its blank lines are not."""
    lines: list[str] = []
    for paragraph in _clean(text).split("\n"):
        for line in textwrap.wrap(paragraph, width):
            # textwrap counts characters; only wide ones make a line too long, and then each may take two columns
            lines += [line] if cell_len(line) <= width else textwrap.wrap(line, max(1, width // 2))
    return lines or ["(empty)"]


def _check_samples(prompts: Sequence[str], samples: Mapping[str, Sequence[str]]) -> None:
    if not samples:
        raise ValueError("samples: no model to show")
    for name, answers in samples.items():
        if len(answers) != len(prompts):
            raise ValueError(f"samples of {name}: {len(answers)} answers to {len(prompts)} prompts")


def _columns(answers: Mapping[str, str], width: int) -> list[str]:
    blocks = [_wrap(answer, width) for answer in answers.values()]
    heads = [[name[:width], "-" * width] for name in answers]
    blocks = [head + block for head, block in zip(heads, blocks, strict=True)]
    height = max(len(block) for block in blocks)
    filled = [block + [""] * (height - len(block)) for block in blocks]
    return [_join([_pad(cell, width) for cell in line], GAP) for line in zip(*filled, strict=True)]


def _stack(answers: Mapping[str, str], width: int) -> list[str]:
    label = max(cell_len(name) for name in answers) + 2
    lines = []
    for name, answer in answers.items():
        for i, line in enumerate(_wrap(answer, max(1, width - label))):
            lines.append(_pad(f"{name}:" if i == 0 else "", label) + line)
    return lines


def side_by_side(prompts: Sequence[str], samples: Mapping[str, Sequence[str]], width: int) -> str:
    """Each prompt with the models' answers in columns, in the mapping's order; stacked where ``width`` < 80.

    ``samples``: by model, one answer a prompt.  Raises ValueError where their numbers differ.
    """
    _check_samples(prompts, samples)
    column = (width - len(GAP) * (len(samples) - 1)) // len(samples)
    stacked = width < STACKED_BELOW or column < NARROWEST
    blocks = []
    for i, prompt in enumerate(prompts):
        answers = {_clean(name): texts[i] for name, texts in samples.items()}
        head = textwrap.indent("\n".join(_wrap(prompt, max(1, width - 2))), "  ")
        body = _stack(answers, width) if stacked else _columns(answers, column)
        blocks.append("\n".join([">" + head[1:], *body]))
    return "\n\n".join(blocks)


def _escape(text: str) -> str:
    """Text as itself in a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", _clean(text).strip()).replace("\n", "<br>")


def markdown_samples(prompts: Sequence[str], samples: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table with a row a prompt and a column a model."""
    _check_samples(prompts, samples)
    lines = [["prompt", *map(_escape, samples)], ["---"] * (len(samples) + 1)]
    for prompt, *answers in zip(prompts, *samples.values(), strict=True):
        lines.append([_escape(prompt), *(_escape(answer) or "(empty)" for answer in answers)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ----------------------------------------------------------------- the results file
def _plain(value: Any, key: str) -> Any:
    """What JSON can hold: NumPy's numbers become Python's; a number that is not finite is refused with its key."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist(), key)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"results: {key} is {value}, which JSON cannot hold")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"results: {key} is of type {type(value).__name__}, which JSON cannot hold")


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes ``results`` as JSON.

    Raises ValueError for NaN or infinity and TypeError for what JSON cannot hold, both before anything is written.
    """
    text = json.dumps(_plain(results, ""), indent=2, ensure_ascii=False) + "\n"
    write_text(Path(path), text)
