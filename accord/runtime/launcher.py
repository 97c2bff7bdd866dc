"""Whether a launcher such as torchrun started this process as one of several, by its environment; needs no torch."""

from __future__ import annotations

import os


def is_launched() -> bool:
    """Whether the environment names this process's rank and their number."""
    return bool(os.environ.get("RANK") and os.environ.get("WORLD_SIZE"))
