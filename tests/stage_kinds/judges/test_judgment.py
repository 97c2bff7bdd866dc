"""From judgments to rows: what is preferred, what ties become, which prompts are held out."""

from __future__ import annotations

from typing import Any

import pytest

from accord.data.heldout import is_heldout
from accord.data.samples import Candidate, Sample
from accord.stage_kinds.judges.judgment import Choice, Comparison, Judgment, as_row, preference, preference_files

SAMPLES = [Sample("p", (Candidate("x", model="sft"), Candidate("y", model="dpo", sample=2)))]


def said(choice: Choice, **more: Any) -> Judgment:
    return Judgment(Comparison(0, 1, 0, 0.25), choice, "me", **more)


def test_the_preferred_reply_is_chosen() -> None:
    assert preference(SAMPLES, said("a"), "drop") == {"prompt": "p", "chosen": "y", "rejected": "x"}
    assert preference(SAMPLES, said("b"), "drop") == {"prompt": "p", "chosen": "x", "rejected": "y"}


@pytest.mark.parametrize("choice", ["tie", "both_bad"])
def test_a_tie_becomes_a_pair_only_where_it_is_asked_for(choice: Choice) -> None:
    half = {"prompt": "p", "chosen": "y", "rejected": "x", "label": 0.5}
    assert preference(SAMPLES, said(choice), "drop") is None
    assert preference(SAMPLES, said(choice), "half") == half
    assert preference(SAMPLES, said(choice), "keep") == {**half, "tie": choice}


def test_no_answer_and_a_repeat_make_no_row() -> None:
    assert preference(SAMPLES, said("skip"), "keep") is None
    assert preference(SAMPLES, said("a", repeat=True), "keep") is None


def test_every_judgment_of_a_pair_counts_on_the_side_of_its_prompt() -> None:
    samples = [Sample(f"p{i}", (Candidate("x"), Candidate("y"))) for i in range(40)]
    judgments = [Judgment(Comparison(i, 0, 1), c, "me") for i in range(40) for c in ("a", "b", "a", "tie")]
    files = preference_files(samples, judgments, "drop", 0.3, 5)
    for name, rows in files.items():
        assert {is_heldout(row["prompt"], 0.3, 5) for row in rows} == {name.startswith("heldout")}
    rows = [row for found in files.values() for row in found]
    assert len(rows) == 120
    assert sum(row["chosen"] == "x" for row in rows) == 80
    assert list(preference_files(samples, judgments, "drop", 0.0, 5)) == ["preferences.jsonl"]


def test_the_raw_row_names_models_judge_and_probability() -> None:
    assert as_row(SAMPLES, said("both_bad", details={"seconds": 3.0})) == {
        "prompt": "p",
        "a": {"text": "y", "model": "dpo", "sample": 2},
        "b": {"text": "x", "model": "sft", "sample": 0},
        "choice": "both_bad",
        "judge": "me",
        "asked_with": 0.25,
        "seconds": 3.0,
    }
