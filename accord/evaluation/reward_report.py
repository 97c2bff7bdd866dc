"""The table of a reward model that is judged alone: accuracy by category and over all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accord.evaluation.report import clean, escape
from accord.io.finite_json import shown
from accord.runtime.tables import Column, as_text, make_table, right

WIDE = 105
HEADERS = ("category", "pairs", "accuracy", "95 % interval", "equal scores")
ALL = "all pairs"


def rows_of(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of each category, then of all pairs."""
    every = {**figures, "accuracy": figures["heldout_accuracy"], "pairs": figures["n_heldout"]}
    return [_cells(name, part) for name, part in [*figures["categories"].items(), (ALL, every)]]


def _cells(name: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = part["accuracy_ci95"]
    return (
        clean(name),
        f"{part['pairs']:,}",
        f"{part['accuracy']:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        f"{part['equal_scores']:,}",
    )


def table(figures: Mapping[str, Any], width: int = WIDE) -> str:
    """The categories as aligned text, and below it what is measured."""
    columns: list[str | Column] = [Column(HEADERS[0], overflow="fold"), *map(right, HEADERS[1:])]
    return f"{as_text(make_table(columns, rows_of(figures)), width)}\n{legend(figures)}"


def markdown_table(figures: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    lines: list[Sequence[str]] = [HEADERS, ["---", *["---:"] * (len(HEADERS) - 1)]]
    lines += [[escape(cell) for cell in row] for row in rows_of(figures)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{legend(figures)}\n"


def legend(figures: Mapping[str, Any]) -> str:
    """What the figures are, and those of length."""
    ties = figures["tied_labels"]
    left_out = f"; {ties:,} pairs without a preferred reply are left out" if ties else ""
    matched, number = figures["length_matched_accuracy"], figures["length_matched_pairs"]
    return (
        "accuracy: share of pairs whose chosen reply scores higher, equal scores counting one half; intervals over prompts"
        f"{left_out}\nlength: correlation with the score {shown(figures['length_correlation'], '+.2f')}, accuracy on pairs of"
        f" similar length {shown(matched, '.3f')} ({number:,} pairs)"
    )
