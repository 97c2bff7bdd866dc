"""Which prompts are held out of training."""

from __future__ import annotations

from accord.errors import UserError
from accord.runtime.seeds import derive

_PARTS = 10**6


def is_heldout(prompt: str, fraction: float, seed: int) -> bool:
    """Whether a prompt is held out, by a hash of the seed and its text (``plain_text``) and of nothing else.

    Added rows, another tokenizer or another length limit move no prompt to the other side.  ``fraction`` is resolved to
    millionths.  Raises UserError where it is not in 0 … 1.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"heldout_fraction: {fraction}, expected a number from 0 to 1")
    return derive(seed, f"held out {prompt}") % _PARTS < fraction * _PARTS
