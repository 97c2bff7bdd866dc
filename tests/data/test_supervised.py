from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from accord.config.sft import TextData
from accord.data.chat import chat_tokens, prompt_ids, reply_ids
from accord.data.row_texts import opening_text
from accord.data.supervised import (
    SupervisedData,
    SupervisedExample,
    describe_split,
    load_supervised,
    split_texts,
)
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Rows = Callable[..., Path]


def turns(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


def test_a_completion_is_learned_and_its_prompt_is_not(rows: Rows, small: Tokenizer) -> None:
    (example,) = load_supervised(rows({"prompt": "Hi", "completion": "yo", "id": 3}), small, 64).examples
    assert example.tokens == (3, 12, 13, 4, 29, 19, 1)  # <user>hi<assistant>yo<eos>
    assert example.loss_mask == (False, False, False, False, True, True, True)


def test_every_shape_gives_the_same_example(rows: Rows, chatml: Tokenizer) -> None:
    ask, answer = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The cat."}
    path = rows(
        {"prompt": "Who?", "completion": "The cat."},
        {"prompt": [ask], "completion": [answer]},
        {"prompt": [ask], "completion": "The cat."},
        {"messages": [ask, answer]},
    )
    data = load_supervised(path, chatml, 256)
    assert len(set(data.examples)) == 1
    assert list(data.examples[0].tokens) == prompt_ids(chatml, "Who?") + reply_ids(chatml, "Who?", "The cat.")
    assert data.report.tokens == 4 * len(data.examples[0])
    assert (data.report.rows, data.report.used, len(data)) == (4, 4, 4)


def test_turns_in_the_prompt_are_no_labels(rows: Rows, small: Tokenizer) -> None:
    messages = turns("a", "b", "c", "d")["messages"]
    path = rows({"messages": messages}, {"prompt": messages[:3], "completion": "d"})
    every, last = load_supervised(path, small, 64).examples
    assert every.tokens == last.tokens
    assert sum(every.loss_mask) == 4
    assert sum(last.loss_mask) == 2
    chat = chat_tokens(small, messages)
    assert (list(every.tokens), list(every.loss_mask)) == (chat.ids, chat.loss_mask)


def test_a_document_is_learned_from_its_second_token(rows: Rows, small: Tokenizer) -> None:
    (example,) = load_supervised(rows({"text": "abc"}), small, 64).examples
    assert example.tokens == (5, 6, 7, 1)
    assert example.loss_mask == (False, True, True, True)  # nothing precedes the first


def test_cutting_the_reply_leaves_no_end(rows: Rows, small: Tokenizer) -> None:
    path = rows({"prompt": "hi", "completion": "abcdef"}, {"prompt": "hi", "completion": "a"})
    data = load_supervised(path, small, 7)
    assert data.examples[0].tokens == (3, 12, 13, 4, 5, 6, 7)  # a cut reply gets no end token
    assert data.examples[1].tokens[-1] == small.eos_id
    assert (data.report.truncated_replies, data.report.truncated_prompts) == (1, 0)
    assert data.report.tokens == 7 + 6


def test_cutting_the_prompt_keeps_its_end_and_the_reply(rows: Rows, small: Tokenizer) -> None:
    path = rows({"prompt": "abcdef", "completion": "xy"}, {"prompt": "a", "completion": "abcdefgh"})
    data = load_supervised(path, small, 7, truncate="prompt")
    assert data.examples[0].tokens == (3, 9, 10, 4, 28, 29, 1)  # <user>ef<assistant>xy<eos>
    assert data.examples[0].loss_mask == (False,) * 4 + (True,) * 3
    assert data.report.dropped == {"no room for a reply": 1}
    assert (data.report.truncated_prompts, data.report.truncated_replies) == (1, 0)


def test_cutting_a_chat_removes_its_oldest_turns(rows: Rows, small: Tokenizer) -> None:
    data = load_supervised(rows(turns("a", "bcd", "e", "f")), small, 8, truncate="prompt")
    #       whole: <user> a <assistant> b c d <eos> <user> e <assistant> f <eos>
    assert data.examples[0].tokens == (3, 9, 4, 10, 1)
    assert data.examples[0].loss_mask == (False, False, False, True, True)


def test_rows_without_a_reply_are_dropped_and_counted(rows: Rows, small: Tokenizer) -> None:
    path = rows(
        {"prompt": "hi", "completion": " \n"},
        {"prompt": "hi", "completion": ""},
        turns("hi", " "),
        {"text": " "},
        {"prompt": "a long question", "completion": "no room"},
        {"prompt": "hi", "completion": "yo"},
    )
    report = load_supervised(path, small, 8).report
    assert report.dropped == {"empty reply": 4, "no room for a reply": 1}
    assert (report.rows, report.used) == (6, 1)
    assert load_supervised(path, small, 8, truncate="drop").report.dropped == {"empty reply": 4, "too long": 1}
    with pytest.raises(UserError, match="no row is usable"):
        load_supervised(path, small, 8, limit=5)


def test_empty_prompts_are_plain_text(rows: Rows, plain: Tokenizer) -> None:
    (example,) = load_supervised(rows({"prompt": "", "completion": "The cat"}), plain, 64).examples
    assert list(example.tokens) == [*plain.encode("The cat"), plain.eos_id]
    assert example.loss_mask[0] is False


def test_boundaries_tokenized_apart_are_counted(rows: Rows, plain: Tokenizer) -> None:
    path = rows({"prompt": "the ", "completion": "cat"}, {"prompt": "the", "completion": " cat"})
    assert load_supervised(path, plain, 64).report.retokenized == 1


def test_a_bos_in_front_stays(rows: Rows, train_bpe: Callable[..., tokenizers.Tokenizer]) -> None:
    backend = train_bpe(["<s>", "</s>", "<pad>"])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    tokenizer = Tokenizer(backend, named, template)
    (example,) = load_supervised(rows({"prompt": "abcd zq", "completion": "xkcd"}), tokenizer, 8, "prompt").examples
    assert len(example) == 8
    assert example.tokens[0] == tokenizer.bos_id
    assert tokenizer.decode(example.tokens, skip_special=False).endswith("zqxkcd</s>")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "row 1: no 'completion'"),
        ({"promt": "a", "completion": "b"}, "did you mean 'promt'"),
        ({"mesages": [{"role": "user", "content": "a"}]}, "did you mean 'mesages'"),
        (turns("a"), "row 1: no assistant message"),
        (
            {"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "a"}]},
            "row 1: the chat template",
        ),
    ],
)
def test_mistakes_in_examples_name_their_row(rows: Rows, small: Tokenizer, row: dict[str, Any], said: str) -> None:
    path = rows(row)
    with pytest.raises(UserError, match=said) as caught:
        load_supervised(path, small, 64)
    assert str(caught.value).count(str(path)) == 1


def test_impossible_examples_are_refused() -> None:
    for tokens, mask in (((1, 2), (False,)), ((1, 2), (False, False)), ((1, 2), (True, True))):
        with pytest.raises(ValueError, match=r"label|length"):
            SupervisedExample(tokens, mask)
    with pytest.raises(UserError, match="max_length: 1"):
        load_supervised("x", None, 1)  # type: ignore[arg-type]


def test_rows_of_one_prompt_are_held_out_together_in_every_format(rows: Rows, small: Tokenizer) -> None:
    """A conversation goes by its turns before the first reply, a text by itself."""
    path = rows(
        {"prompt": "hi", "completion": "a"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "b"}]},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": "c"},
        turns("hi", "d", "more", "e"),
        {"text": "hi there"},
        {"prompt": "", "completion": "alone"},
    )
    assert load_supervised(path, small, 64).texts == ("hi", "hi", "hi", "hi", "hi there", "alone")
    assert opening_text([{"role": "assistant", "content": "first"}]) == "first"


def test_a_split_says_how_many_held_out_prompts_are_trained_on(rows: Rows, small: Tokenizer) -> None:
    train = rows(
        {"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "x"}, {"prompt": "c", "completion": "x"}
    )
    other = train.with_name("other.jsonl")
    other.write_text('{"prompt": "c", "completion": "y"}\n{"prompt": "d", "completion": "y"}\n', encoding="utf-8")

    def read(path: str) -> SupervisedData:
        return load_supervised(path, small, 64)

    found = split_texts(TextData(train=str(train), heldout=str(other)), read, 0)
    assert (len(found.train), len(found.heldout)) == (3, 2)
    assert found.describe() == "3 to train on, 2 held out, but the prompts of 1 of these are trained on as well"
    found = split_texts(TextData(train=str(train), heldout=str(other), limit=2), read, 0)
    assert (len(found.train), len(found.heldout)) == (2, 2)  # the limit is one of training rows
    assert found.describe() == "2 to train on, 2 held out, no prompt on both sides"
    words = describe_split(found, 25)
    assert words.endswith("; loss of its 4 labels before the first step, every 25 steps and after the last")
    found = split_texts(TextData(train=str(train)), read, 0)
    few = split_texts(TextData(train=str(train), heldout_fraction=1e-6), read, 0)
    assert few.report.endswith(" data.heldout_fraction=1e-06 of these prompts is none.")
    assert describe_split(found, 0).startswith("3 to train on, none held out; data.heldout or data.heldout_fraction")
