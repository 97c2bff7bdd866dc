"""Puts a comparison's table or samples between two markers of a Markdown file, so that no figure is written by hand.

python docs/fill.py checkpoints/rlhf/compare/results.md README.md results
"""

from __future__ import annotations

import sys
from pathlib import Path

PARTS = {"results": 0, "samples": 1}


def fill(source: str, target: str, part: str) -> None:
    """``part`` is "results" (the table) or "samples".  Raises SystemExit where a marker is missing."""
    content = Path(source).read_text(encoding="utf-8").split("\n\n")[PARTS[part]].strip()
    begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
    text = Path(target).read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise SystemExit(f"{target}: the markers {begin} and {end} are needed.")
    head, tail = text.split(begin)[0], text.split(end)[1]
    Path(target).write_text(f"{head}{begin}\n{content}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    fill(*sys.argv[1:4])
