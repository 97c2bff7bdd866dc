"""OpenRLHF's preference data: "chosen" and "rejected" are whole conversations, for --apply_chat_template without a prompt key.

Source: OpenRLHF, openrlhf/datasets/reward_dataset.py, preprocess_data.  It reads a "margin" and no labels or weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accord.feedback.convert.file_vote import Written, assistant
from accord.feedback.convert.pairs import PairOptions, Preference, require_plain, write_pairs
from accord.feedback.convert.trl import read_pairs
from accord.feedback.entities import VoteRow

read = read_pairs


def write(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """Rows of {"chosen", "rejected"}, messages each."""
    require_plain(options, "openrlhf")
    return write_pairs(votes, options, _row)


def _row(row: Preference) -> dict[str, Any]:
    prompt = [dict(m) for m in row.prompt]
    return {"chosen": [*prompt, assistant(row.chosen)], "rejected": [*prompt, assistant(row.rejected)]}
