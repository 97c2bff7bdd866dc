from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.config.common import PromptedModel, SplitData
from accord.data.chat import prompt_ids, reply_ids
from accord.data.heldout import is_heldout, split_by_prompt
from accord.data.preferences import PairLengths, PreferencePair, load_preferences, read_pairs
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Rows = Callable[..., Path]


def row(prompt: str = "hi", chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_a_pair_is_tokenized_as_computed_by_hand(rows: Rows, small: Tokenizer) -> None:
    data = load_preferences(rows(row(chosen="b", rejected="cd", margin=0.5)), small, PairLengths(16, 32))
    assert data.pairs == (PreferencePair((3, 12, 13, 4), (6, 1), (7, 8, 1), 0.5),)
    assert len(data.pairs[0]) == 9
    assert (data.report.rows, data.report.tokens, data.report.dropped) == (1, 9, {})


def test_every_format_of_a_pair_gives_the_same_tokens(rows: Rows, chatml: Tokenizer) -> None:
    ask = {"role": "user", "content": "Who?"}
    a, b = ({"role": "assistant", "content": c} for c in ("The cat.", "The dog."))
    path = rows(
        row("Who?", "The cat.", "The dog."),
        {"prompt": [ask], "chosen": [a], "rejected": [b]},
        {"chosen": [ask, a], "rejected": [ask, b]},
        {"prompt": "Who?", "chosen": [ask, a], "rejected": [ask, b]},
    )
    data = load_preferences(path, chatml, PairLengths(100, 200))
    assert len(data) == 4
    assert len(set(data.pairs)) == 1
    pair = data.pairs[0]
    assert list(pair.prompt) == prompt_ids(chatml, "Who?")
    assert [list(pair.chosen), list(pair.rejected)] == [reply_ids(chatml, "Who?", c) for c in ("The cat.", "The dog.")]


def test_ties_and_empty_rows_go_as_pairs(rows: Rows, small: Tokenizer) -> None:
    path = rows(
        row(chosen="same", rejected=" same"),
        row(chosen="Ab", rejected="ab"),  # the same once lower-cased
        row(chosen="abcdefX", rejected="abcdefY"),  # the same once cut
        row(chosen=""),
        row(rejected=" \n"),
        row(prompt=" "),
        row(),
    )
    data = load_preferences(path, small, PairLengths(4, 8))
    assert data.report.dropped == {"tie": 2, "tie once cut": 1, "empty reply": 2, "empty prompt": 1}
    assert (data.report.rows, data.report.used, len(data)) == (7, 1, 1)


def test_both_replies_follow_the_same_cut_prompt(rows: Rows, small: Tokenizer) -> None:
    path = rows(row(prompt="abcdef", chosen="xyxyxy", rejected="z"))
    (pair,) = (data := load_preferences(path, small, PairLengths(4, 7))).pairs
    assert pair.prompt == (3, 9, 10, 4)  # <user>ef<assistant>: the end is kept, and what the template writes
    assert pair.chosen == (28, 29, 28)  # cut: no end token
    assert pair.rejected == (30, 1)
    assert (data.report.truncated_prompts, data.report.truncated_replies) == (1, 1)
    (right,) = load_preferences(path, small, PairLengths(4, 7, cut_prompt="right")).pairs
    assert right.prompt == (3, 5, 6, 4)


def test_too_long_can_mean_dropped(rows: Rows, small: Tokenizer) -> None:
    path = rows(row(prompt="abcdef"), row(chosen="yes yes yes"), row())
    report = load_preferences(path, small, PairLengths(6, 10, cut_prompt="drop", cut_reply="drop")).report
    assert report.dropped == {"prompt too long": 1, "reply too long": 1}
    assert (report.truncated_prompts, report.truncated_replies) == (0, 0)


def test_mistakes_in_pairs_name_their_row(rows: Rows, small: Tokenizer, plain: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: no 'rejected' \(did you mean 'rejectd'"):
        load_preferences(rows(row(), {"prompt": "a", "chosen": "b", "rejectd": "c"}), small, PairLengths(8, 16))
    ask = [{"role": "user", "content": "a"}]
    with pytest.raises(UserError, match=r"rows\.jsonl, row 1: .*no chat template"):
        load_preferences(rows({"prompt": ask, "chosen": "b", "rejected": "c"}), plain, PairLengths(8, 16))
    with pytest.raises(UserError, match=r"max_prompt_length: 8.*max_length \(8\)"):
        load_preferences("x", small, PairLengths(8, 8))


def test_impossible_pairs_are_refused() -> None:
    for parts in (((), (1,), (2,)), ((1,), (), (2,)), ((1,), (2,), (2,))):
        with pytest.raises(ValueError, match="preference pair"):
            PreferencePair(*parts)
    with pytest.raises(ValueError, match="margin"):
        PreferencePair((1,), (2,), (3,), -1.0)


rows_of_pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(10, 19)), max_size=30)


@given(rows_of_pairs, rows_of_pairs, st.floats(0, 1), st.integers(-5, 5))
def test_all_pairs_of_a_prompt_stay_on_one_side_when_rows_are_added(
    rows: list[tuple[int, int, int]], more: list[tuple[int, int, int]], fraction: float, seed: int
) -> None:
    def split(some: list[tuple[int, int, int]]) -> tuple[list[PreferencePair], list[PreferencePair]]:
        pairs = [PreferencePair((prompt,), (a,), (b,)) for prompt, a, b in some]
        return split_by_prompt(pairs, [f"prompt {prompt}" for prompt, _, _ in some], fraction, seed)

    train, heldout = split(rows)
    assert len(train) + len(heldout) == len(rows)
    assert not {p.prompt for p in train} & {p.prompt for p in heldout}  # no prompt is on both sides
    again_train, again_heldout = split(more + rows)
    assert set(train) <= set(again_train)
    assert set(heldout) <= set(again_heldout)


def test_prompts_on_both_sides_are_counted(rows: Rows, small: Tokenizer) -> None:
    """Split off, no prompt is on both sides; a file of one's own may repeat prompts, and the report says so."""
    made = [row(prompt=p, chosen=c) for p in "abcdefgh" for c in ("yes", "so")]
    train, model = str(rows(*made)), PromptedModel(max_length=64)
    split = read_pairs(SplitData(train=train, heldout_fraction=0.5), model, small, 3)
    assert 0 < len(split.heldout) < 16
    assert split.describe() == f"{len(split.train)} to train on, {len(split.heldout)} held out, no prompt on both sides"
    assert (
        read_pairs(SplitData(train=train, heldout_fraction=0), model, small, 3).describe()
        == "16 to train on, none held out"
    )
    own = Path(train).with_name("own.jsonl")
    own.write_text("".join(json.dumps(row(prompt=p)) + "\n" for p in "axbx"))
    given = read_pairs(SplitData(train=train, heldout=str(own)), model, small, 3)
    assert given.describe() == "16 to train on, 4 held out, but the prompts of 2 of these are trained on as well"
    assert (
        read_pairs(SplitData(train=train, heldout=str(own), limit=2), model, small, 3).shared == 1
    )  # of what is trained on


def test_a_prompt_in_other_spelling_or_cut_to_the_same_tokens_is_on_both_sides(rows: Rows, small: Tokenizer) -> None:
    train = str(rows(row(prompt="what is a cat"), row(prompt="hello  there, reader")))
    own = Path(train).with_name("own.jsonl")
    asked = ("What is  a Cat ", "again: hello there, reader", "hello there, writer")
    own.write_text("".join(json.dumps(row(prompt=p)) + "\n" for p in asked))
    data = SplitData(train=train, heldout=str(own))
    assert read_pairs(data, PromptedModel(max_length=64), small, 3).shared == 1
    assert read_pairs(data, PromptedModel(max_length=64, max_prompt_length=8), small, 3).shared == 2
    fraction = SplitData(
        train=str(rows(*(row(prompt=p) for p in ("a", "A", "b", "B", "c", "C")))), heldout_fraction=0.5
    )
    seed = next(seed for seed in range(99) if is_heldout("a", 0.5, seed) and not is_heldout("A", 0.5, seed))
    split = read_pairs(fraction, PromptedModel(max_length=64), small, seed)
    sides = [{pair.prompt for pair in side} for side in (split.train, split.heldout)]
    assert split.shared == len([pair for pair in split.heldout if pair.prompt in sides[0]]) > 0


# ------------------------------------------------------------------ soft labels
def test_a_label_below_a_half_exchanges_the_replies(rows: Rows, small: Tokenizer) -> None:
    path = rows(
        row(chosen="b", rejected="cd", label=0.25, weight=2), row(chosen="cd", rejected="b", label=0.75, weight=2)
    )
    data = load_preferences(path, small, PairLengths(16, 32))
    assert data.pairs[0] == data.pairs[1]
    assert (data.pairs[0].label, data.pairs[0].weight) == (0.75, 2.0)
    assert data.replies[0] == ("cd", "b")


def test_a_tie_stays_and_a_row_without_weight_is_dropped(rows: Rows, small: Tokenizer) -> None:
    data = load_preferences(rows(row(label=0.5), row(weight=0), row(label=None)), small, PairLengths(16, 32))
    assert [pair.tied for pair in data.pairs] == [True, False]
    assert data.report.dropped == {"weight 0": 1}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"label": 1.5}, "label 1.5, expected a number from 0 to 1"),
        ({"label": True}, "label True"),
        ({"label": float("nan")}, "row 1: NaN is not JSON|label nan"),
        ({"weight": -1}, "weight -1"),
        ({"weight": "2"}, "weight '2'"),
        ({"label": 0.5, "margin": 2}, "a margin of 2 beside a label of 0.5"),
    ],
)
def test_a_bad_label_or_weight_is_named(more: dict[str, Any], said: str, rows: Rows, small: Tokenizer) -> None:
    with pytest.raises(UserError, match=said):
        load_preferences(rows(row(**more)), small, PairLengths(16, 32))


def test_an_impossible_label_is_no_pair() -> None:
    with pytest.raises(ValueError, match="label"):
        PreferencePair((1,), (2,), (3,), label=0.4)
    with pytest.raises(ValueError, match="weight"):
        PreferencePair((1,), (2,), (3,), weight=-1.0)
