"""Files already in the chat template's format are divided into turns; what looks so among other rows stays text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from accord.data.chat import render
from accord.data.preferences import PairLengths, load_preferences
from accord.data.prompts import load_prompts
from accord.data.supervised import load_supervised
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Rows = Callable[..., Path]
Train = Callable[..., tokenizers.Tokenizer]

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi\n there"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "nothing <b> \\n"},
]
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
)
COUNTED = "rows already in the chat template's format, divided into their turns: "


@pytest.fixture(scope="module")
def brackets(train_bpe: Train) -> Tokenizer:
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(train_bpe(["<s>", "</s>", "[INST]", "[/INST]"]), named, BRACKETS)


@pytest.fixture(scope="module")
def bare(train_bpe: Train) -> Tokenizer:
    backend = train_bpe(["<s>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def test_a_templated_text_is_its_conversation(
    chatml: Tokenizer, small: Tokenizer, brackets: Tokenizer, rows: Rows
) -> None:
    for tokenizer in (chatml, small, brackets):
        talk = TALK[1:] if tokenizer is brackets else TALK
        texts = [render(tokenizer, talk[:n], False) for n in (len(talk), len(talk) - 2)]
        expected = load_supervised(rows({"messages": talk}, {"messages": talk[:-2]}), tokenizer, 400)
        for change in (str, str.strip, lambda text: text.removeprefix("<s>")):
            found = load_supervised(rows(*({"text": change(text)} for text in texts)), tokenizer, 400)
            assert found.examples == expected.examples
            assert f"{COUNTED}2" in found.report.describe().lower()


def test_a_templated_prompt_is_not_templated_again(chatml: Tokenizer, rows: Rows) -> None:
    prompt = render(chatml, TALK[:4], True)
    row = {"prompt": prompt, "completion": "nothing<|im_end|>\n", "chosen": "a<|im_end|>", "rejected": "b<|im_end|>"}
    plain = {"prompt": TALK[:4], "completion": "nothing", "chosen": "a", "rejected": "b"}
    assert load_supervised(rows(row), chatml, 400).examples == load_supervised(rows(plain), chatml, 400).examples
    lengths = PairLengths(300, 400)
    assert load_preferences(rows(row), chatml, lengths).pairs == load_preferences(rows(plain), chatml, lengths).pairs
    found = load_prompts(rows(row), chatml, 300)
    assert found.prompts == load_prompts(rows(plain), chatml, 300).prompts
    assert found.sources == (TALK[:4],)  # a reward model with another template reads the conversation


def test_whole_templated_replies_are_compared_as_conversations(chatml: Tokenizer, rows: Rows) -> None:
    other = [*TALK[:-1], {"role": "assistant", "content": "something"}]
    path = rows({"chosen": render(chatml, TALK, False), "rejected": render(chatml, other, False)})
    (pair,) = load_preferences(path, chatml, PairLengths(300, 400)).pairs
    assert chatml.decode(pair.chosen, skip_special=False) == "nothing <b> \\n<|im_end|>"
    assert chatml.decode(pair.rejected, skip_special=False) == "something<|im_end|>"


def test_one_templated_row_among_others_is_what_somebody_wrote(chatml: Tokenizer, rows: Rows) -> None:
    forged = {"prompt": render(chatml, TALK[:2], True), "completion": "no"}
    data = load_supervised(rows({"prompt": "hi", "completion": "yo"}, forged), chatml, 400)
    starts = [list(example.tokens).count(chatml.bos_id) for example in data.examples]
    assert starts == [3, 3]  # system, user, assistant: the forged ones are text
    assert COUNTED not in data.report.describe().lower()


def test_a_row_that_cannot_be_divided_is_named(chatml: Tokenizer, rows: Rows) -> None:
    good, odd = render(chatml, TALK, False), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n"
    for path in (rows({"text": good}, {"text": odd}), rows(*[{"text": good}] * 70, {"text": "hello"})):
        with pytest.raises(UserError, match=r"row (2|71): the file's texts are in the chat template's format"):
            load_supervised(path, chatml, 400)


def test_a_turn_of_a_tool_is_named(chatml: Tokenizer, rows: Rows) -> None:
    text = render(chatml, TALK[:3], False) + "<|im_start|>tool\n4<|im_end|>\n"
    with pytest.raises(
        UserError, match=r"row 1: .* at '<\|im_end\|>\\n<\|im_start\|>tool.*cannot be read back.*'messages'"
    ):
        load_supervised(rows({"text": text}), chatml, 400)


def test_bos_and_end_token_spelled_in_every_plain_text_are_written_once(bare: Tokenizer, rows: Rows) -> None:
    expected = load_supervised(rows({"text": "hi"}, {"text": "ho"}), bare, 100).examples
    for form in ("<s>{}</s>", "{}</s>\n", "<s>{}"):
        path = rows(*({"text": form.format(text)} for text in ("hi", "ho")))
        assert load_supervised(path, bare, 100).examples == expected
    row = {"prompt": "<s>hi", "completion": " ho</s>"}
    assert (
        load_supervised(rows(row), bare, 100).examples
        == load_supervised(rows({"prompt": "hi", "completion": " ho"}), bare, 100).examples
    )
