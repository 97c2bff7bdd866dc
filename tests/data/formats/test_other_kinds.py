"""Rows of another kind of stage: the message says what to change, and the changed file is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.data.formats.other_kinds import advice
from accord.data.preferences import PairLengths, load_preferences
from accord.data.prompts import load_prompts
from accord.data.supervised import load_supervised
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Rows = Callable[..., Path]
ASK, TURNS = (
    {"role": "user", "content": "hi"},
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
)
HH = "\n\nHuman: hi\n\nAssistant: yo"
KTO = [
    {"prompt": "hi", "completion": "hello", "label": True},
    {"prompt": "hi", "completion": "go away", "label": False},
]


def load(path: Path, kind: str, tokenizer: Tokenizer) -> Any:
    if kind == "sft":
        return load_supervised(path, tokenizer, 100)
    if kind == "prompts":
        return load_prompts(path, tokenizer, 100)
    return load_preferences(path, tokenizer, PairLengths(50, 100))


def renamed(row: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in row.items()}


PAIR = {"prompt": "hi", "chosen": "yo", "rejected": "no"}
WHOLE = {"prompt": "hi", "chosen": TURNS, "rejected": [ASK, {"role": "assistant", "content": "no"}]}
ULTRA = {"instruction": "hi", "completions": [{"response": "yo", "overall_score": 2}]}
CASES: list[tuple[str, list[dict[str, Any]], str, list[dict[str, Any]]]] = [
    ("sft", KTO, "row 1: KTO rows (prompt, completion, label): 'label' says whether the reply is wanted, which no stage reads yet;"
     " the stage 'kto' will; for sft keep the rows whose 'label' is true, and remove that column",
     [{"prompt": "hi", "completion": "hello"}]),
    ("sft", [{"messages": TURNS, "kto_tag": False}], "keep the rows whose 'kto_tag' is true", [{"messages": TURNS}]),
    ("preferences", KTO, "put a wanted and an unwanted reply to the same prompt in 'chosen' and 'rejected' of one row",
     [{"prompt": "hi", "chosen": "hello", "rejected": "go away"}]),
    ("sft", [PAIR], "which reward and dpo read; for sft rename 'chosen' to 'completion'", [renamed(PAIR, "chosen", "completion")]),
    ("sft", [WHOLE], "for sft rename 'chosen' to 'messages'", [renamed(WHOLE, "chosen", "messages")]),
    ("sft", [{"chosen": HH, "rejected": HH}], "rename it to 'text'", [{"text": HH, "rejected": HH}]),
    ("sft", [{"chosen": "so it is", "rejected": "so it was"}], "put what both replies begin with in 'prompt'",
     [{"prompt": "so it", "completion": " is"}]),
    ("sft", [{"question": "q", "chosen": "a", "rejected": "b"}], "rename 'chosen' to 'response'",
     [{"question": "q", "response": "a", "rejected": "b"}]),
    ("sft", [{"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "yo"},
              "rejected": {"from": "gpt", "value": "no"}}], "append 'chosen' to 'conversations'",
     [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}]),
    ("sft", [{"input": {"messages": [ASK]}, "preferred_output": TURNS[1:], "non_preferred_output": TURNS[1:]}],
     "write the turns of 'input' and the preferred one as 'messages'", [{"messages": TURNS}]),
    ("sft", [ULTRA], "best response as 'output' beside 'instruction'", [{"instruction": "hi", "output": "yo"}]),
    ("preferences", [{"messages": TURNS}], "demonstrations, which sft reads; reward and dpo compare two replies", [PAIR]),
    ("preferences", [{"prompt": "hi", "candidates": []}], "sampled replies (prompt, candidates), which judge reads", [PAIR]),
    ("prompts", [{"text": "hi"}], "rename 'text' to 'prompt'", [{"prompt": "hi"}]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "said", "changed"), CASES)
def test_the_stage_is_named_and_the_advice_leads_to_a_file_that_is_read(
    rows: Rows, chatml: Tokenizer, kind: str, given: list[Any], said: str, changed: list[Any]
) -> None:
    with pytest.raises(UserError) as caught:
        load(rows(*given), kind, chatml)
    assert said in str(caught.value)
    assert "rows.jsonl, row 1: " in str(caught.value)
    assert load(rows(*changed), kind, chatml).report.used == len(changed)


@pytest.mark.parametrize("label", [1, 0, "True", "false"])
def test_every_notation_of_a_verdict_is_seen(label: Any) -> None:
    assert "KTO" in advice({"prompt": "a", "completion": "b", "label": label}, "sft")


@pytest.mark.parametrize("label", ["positive", 0.5, 3, None, [1]])
def test_another_label_is_an_unused_column(label: Any) -> None:
    assert not advice({"prompt": "a", "completion": "b", "label": label}, "sft")


def test_a_soft_label_of_a_pair_is_no_verdict(rows: Rows, chatml: Tokenizer) -> None:
    pair = {"prompt": "hi", "chosen": "yo", "rejected": "no", "label": 1, "completion": "yo"}
    assert load(rows(pair), "preferences", chatml).pairs[0].label == 1.0


def test_kto_rows_are_prompts() -> None:
    assert not advice(KTO[0], "prompts")
