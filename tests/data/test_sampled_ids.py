"""Training reads the token ids that were sampled, where they are this tokenizer's and spell the row's text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.data.chat import exchange, prompt_ids
from accord.data.preferences import PairLengths, PreferenceData, load_preferences
from accord.data.sampled_ids import sampled_column
from accord.data.samples import Candidate
from accord.data.supervised import load_supervised
from accord.data.text_notes import SAMPLED
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from tests.data.test_continuation import make

LENGTHS = PairLengths(32, 64)


@pytest.fixture
def pieces() -> Tokenizer:
    return make("byte_level")


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """Another way to write a text than the tokenizer's own: letter by letter."""
    return [i for letter in text for i in tokenizer.encode(letter)]


def load(rows: Callable[..., Path], tokenizer: Tokenizer, tokens: Any, **more: Any) -> PreferenceData:
    return load_preferences(
        rows({"prompt": "A: ", "chosen": "yes", "rejected": "the cat", "tokens": tokens, **more}), tokenizer, LENGTHS
    )


def test_sampled_ids_are_used_where_the_text_would_be_tokenized_otherwise(
    rows: Callable[..., Path], pieces: Tokenizer
) -> None:
    drifted = [*spelled(pieces, "yes"), pieces.eos_id]
    own = exchange(pieces, "A: ", "the cat").reply
    assert drifted != exchange(pieces, "A: ", "yes").reply
    found = load(rows, pieces, {"tokenizer": pieces.digest(), "chosen": drifted, "rejected": own})
    (pair,) = found.pairs
    assert (list(pair.chosen), list(pair.rejected)) == (drifted, own)
    assert found.report.notes == {SAMPLED: 1}
    assert "Tokens as sampled, which differ from those of the text: 1." in found.report.describe()
    assert "Not used" not in found.report.describe()


def test_a_label_below_a_half_exchanges_the_ids_with_the_texts(rows: Callable[..., Path], pieces: Tokenizer) -> None:
    drifted = [*spelled(pieces, "yes"), pieces.eos_id]
    (pair,) = load(rows, pieces, {"tokenizer": pieces.digest(), "chosen": drifted}, label=0.1).pairs
    assert list(pair.rejected) == drifted


@pytest.mark.parametrize("change", ["digest", "text", "end", "control", "range"])
def test_other_ids_are_left_alone(change: str, rows: Callable[..., Path], pieces: Tokenizer) -> None:
    ids = [*spelled(pieces, "yes"), pieces.eos_id]
    column: dict[str, Any] = {"tokenizer": pieces.digest(), "chosen": ids}
    if change == "digest":
        column["tokenizer"] = "0" * 32
    elif change == "text":
        column["chosen"] = [*spelled(pieces, "yet"), pieces.eos_id]
    elif change == "end":
        column["chosen"] = ids[:-1]
    elif change == "control":
        column["chosen"] = [pieces.find("<|user|>"), *ids]
    else:
        column["chosen"] = [10**9, *ids]
    found = load(rows, pieces, column)
    assert list(found.pairs[0].chosen) == exchange(pieces, "A: ", "yes").reply
    assert not found.report.notes


@pytest.mark.parametrize("column", [{"chosen": "x"}, {"chosen": [1.5]}, {"chosen": [True]}, {"chosen": [-1]}])
def test_a_column_that_holds_no_ids_is_a_sentence(column: Any, rows: Callable[..., Path], pieces: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"row 1: 'tokens' has under 'chosen' no list of token ids"):
        load(rows, pieces, column)


@pytest.mark.parametrize("column", [57, [1, 2], "5 tokens"])
def test_a_count_of_tokens_is_an_unused_column(column: Any, rows: Callable[..., Path], pieces: Tokenizer) -> None:
    found = load(rows, pieces, column).report.describe()
    assert "Not used: tokens." in found
    path = rows({"prompt": "A: ", "completion": "yes", "tokens": column})
    assert "Not used: tokens." in load_supervised(path, pieces, 64).report.describe()


def test_a_demonstration_is_learned_as_it_was_sampled(rows: Callable[..., Path], pieces: Tokenizer) -> None:
    drifted = [*spelled(pieces, "yes"), pieces.eos_id]
    prompt = prompt_ids(pieces, "A: ")
    row = {"prompt": "A: ", "completion": "yes", "tokens": {"tokenizer": pieces.digest(), "completion": drifted}}
    found = load_supervised(rows(row, {**row, "completion": "yet"}), pieces, 64)
    assert list(found.examples[0].tokens) == [*prompt, *drifted]
    assert found.examples[0].loss_mask == (*[False] * len(prompt), *[True] * len(drifted))
    assert list(found.examples[1].tokens) == [*prompt, *exchange(pieces, "A: ", "yet").reply], "another text"
    assert found.report.notes == {SAMPLED: 1}
    assert "Not used" not in found.report.describe()


def test_the_column_needs_ids_of_one_tokenizer() -> None:
    one, two = Candidate("a", (1, 2), tokenizer="x"), Candidate("b", (3,), tokenizer="x")
    assert sampled_column({"chosen": one, "rejected": two}) == {
        "tokens": {"tokenizer": "x", "chosen": [1, 2], "rejected": [3]}
    }
    assert sampled_column({"chosen": one, "rejected": Candidate("b", (3,), tokenizer="y")}) == {}
    assert sampled_column({"chosen": one, "rejected": Candidate("b", None, tokenizer="x")}) == {}
    assert sampled_column({"chosen": Candidate("a", (1,)), "rejected": Candidate("b", (2,))}) == {}


def test_pairs_of_a_stage_hold_the_ids_and_train_as_their_text_does(
    stage: Any, world: Any, rewards: str, tmp_path: Path
) -> None:
    stage("pairs", {"model": {"base_model": world.mamba}, "prompts": world.prompts, "annotator": f"{rewards}:share_of_a",
                    "replies": 8, "max_new_tokens": 64, "heldout_fraction": 0})  # fmt: skip
    path = tmp_path / "out" / "pairs" / "preferences.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = Tokenizer.open(world.mamba)
    for row in written:
        assert row["tokens"]["tokenizer"] == tokenizer.digest()
        for side in ("chosen", "rejected"):
            assert row["tokens"][side][-1] == tokenizer.eos_id
            assert tokenizer.decode(row["tokens"][side]).strip() == row[side]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "tokens"}) + "\n" for row in written))
    with_ids, without = (load_preferences(p, tokenizer, PairLengths(64, 128)) for p in (path, bare))
    assert with_ids.pairs == without.pairs, "letters have one tokenization, so nothing changes in the small world"
    assert prompt_ids(tokenizer, written[0]["prompt"]) == list(with_ids.pairs[0].prompt)
