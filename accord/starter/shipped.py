"""Which configs and recipes come with accord."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from accord.io.installation import CONFIGS, shipped_configs
from accord.runtime.tables import Column, make_table, show


def shipped() -> Iterator[tuple[str, str]]:
    """The name of each config, which works in any folder, and the first sentence of its comment."""
    root = shipped_configs()
    for path in sorted(root.rglob("*.yaml")):
        lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        text = " ".join(line.lstrip("# ") for line in lines)
        yield f"{CONFIGS}/{path.relative_to(root).as_posix()}", text.partition(". ")[0].rstrip(".") + "."


def show_shipped() -> None:
    """Prints them as a table."""
    show(make_table(["", Column(overflow="fold")], list(shipped())))
