"""Rows of demonstrations: what reaches the template, what is learned, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.data.preferences import PairLengths, load_preferences
from accord.data.supervised import SupervisedData, load_supervised
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Rows = Callable[..., Path]

USER, ANSWER = {"role": "user", "content": "weather in Oslo?"}, {"role": "assistant", "content": "4 degrees"}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = [{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]
CALLING = {"role": "assistant", "content": None, "tool_calls": CALL}
HEAD = "<|im_start|>{{ m.role }}\n"
CALLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}" + HEAD + "{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if quiet %}<think></think>{% endif %}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}"
    + HEAD
    + "{{ '' + m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = PLAIN.replace("'' + m.content", "m.content if loop.last else m.content.split('</think>')[-1]")


@pytest.fixture(scope="module")
def tokenizer(chatml: Tokenizer, train_bpe: Callable[..., Any]) -> Callable[[str], Tokenizer]:
    def make(template: str) -> Tokenizer:
        tags = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
        named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        return Tokenizer(train_bpe(tags), named, template)

    return make


def texts(tokenizer: Tokenizer, data: SupervisedData) -> list[str]:
    """Each example as text, its labels in braces."""
    found = []
    for example in data.examples:
        text, learned = "", False
        for token, label in zip(example.tokens, example.loss_mask, strict=True):
            text += ("{" if label else "}") * (label != learned) + tokenizer.decode([token], skip_special=False)
            learned = label
        found.append(text + "}" * learned)
    return found


def turn(user: str, reply: str, system: str = "") -> str:
    return f"{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{{{reply}<|im_end|>}}"


def test_tools_are_given_to_the_template_as_a_list_or_as_json_text(
    tokenizer: Callable[[str], Tokenizer], rows: Rows
) -> None:
    calls = tokenizer(CALLS)
    path = rows(
        {"messages": [USER, ANSWER], "tools": [TOOL]}, {"messages": [USER, ANSWER], "tools": json.dumps([TOOL])}
    )
    system = f"<|im_start|>system\n{json.dumps([TOOL])}<|im_end|>\n"
    data = load_supervised(path, calls, 400)
    assert texts(calls, data) == [turn("weather in Oslo?", "4 degrees", system)] * 2
    assert "not used" not in data.report.describe()
    plain = load_supervised(path, tokenizer(PLAIN), 400)
    assert "tools not used by the chat template: 2" in plain.report.describe().lower()


def test_calls_are_learned_and_their_results_are_not(tokenizer: Callable[[str], Tokenizer], rows: Rows) -> None:
    calls = tokenizer(CALLS)
    missing = {key: value for key, value in CALLING.items() if key != "content"}
    result = {"role": "tool", "content": "4"}
    path = rows(
        *({"messages": [USER, call, result, ANSWER]} for call in (CALLING, missing, {**CALLING, "content": ""}))
    )
    called = '<tool_call>get_weather {"city": "Oslo"}</tool_call>'
    expected = (
        turn("weather in Oslo?", called)
        + "\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n{4 degrees<|im_end|>}"
    )
    assert texts(calls, load_supervised(path, calls, 400)) == [expected] * 3


def test_a_row_whose_calls_the_template_leaves_out_is_refused(
    tokenizer: Callable[[str], Tokenizer], rows: Rows
) -> None:
    plain = tokenizer(PLAIN)
    why = r"rows\.jsonl, row 1: the chat template writes nothing for the tool calls of message 1"
    for content in (None, "", "Let me look."):
        with pytest.raises(UserError, match=why):
            load_supervised(rows({"messages": [USER, {**CALLING, "content": content}]}), plain, 400)
    pair = {"prompt": [USER], "chosen": [CALLING], "rejected": [{"role": "assistant", "content": ""}]}
    with pytest.raises(UserError, match=why):
        load_preferences(rows(pair), plain, PairLengths(100, 200))


def test_pairs_may_differ_in_calls_only(tokenizer: Callable[[str], Tokenizer], rows: Rows) -> None:
    calls = tokenizer(CALLS)
    other = {**CALLING, "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]}
    nothing = {"role": "assistant", "content": ""}
    path = rows(*({"prompt": [USER], "chosen": [CALLING], "rejected": [reply]} for reply in (other, nothing)))
    data = load_preferences(path, calls, PairLengths(200, 400))
    chosen = '<tool_call>get_weather {"city": "Oslo"}</tool_call><|im_end|>'
    rejected = ['<tool_call>get_weather {"city": "Rome"}</tool_call><|im_end|>', "<|im_end|>"]
    assert [calls.decode(pair.chosen, skip_special=False) for pair in data.pairs] == [chosen] * 2
    assert [calls.decode(pair.rejected, skip_special=False) for pair in data.pairs] == rejected


def test_switches_of_the_template_come_from_the_row(tokenizer: Callable[[str], Tokenizer], rows: Rows) -> None:
    calls = tokenizer(
        CALLS.replace(
            "{{ m.content or '' }}", "{% if quiet and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
        )
    )
    row = {"prompt": [USER], "completion": [ANSWER]}
    path = rows({**row, "chat_template_kwargs": {"quiet": True}}, {**row, "chat_template_kwargs": '{"quiet": false}'})
    quiet, loud = texts(calls, load_supervised(path, calls, 400))
    assert quiet == loud.replace("{4", "<think></think>{4")
    with pytest.raises(UserError, match="row 1: 'chat_template_kwargs' has 'messages'"):
        load_supervised(rows({**row, "chat_template_kwargs": {"messages": []}}), calls, 400)


def test_thoughts_that_the_template_leaves_out_are_counted_or_learned_turn_by_turn(
    tokenizer: Callable[[str], Tokenizer], rows: Rows
) -> None:
    thinking = tokenizer(THINKING)
    replies = ["<think>two and two</think>4", "<think>three twice</think>6"]
    talk = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": replies[0]}]
    talk += [{"role": "user", "content": "and 3+3?"}, {"role": "assistant", "content": replies[1]}]
    path = rows({"messages": talk})
    together = load_supervised(path, thinking, 400)
    lost = "assistant turns whose thoughts the chat template leaves out, learned without them: 1"
    assert lost in together.report.describe().lower()
    assert texts(thinking, together) == [turn("2+2?", "4") + "\n" + turn("and 3+3?", replies[1])]
    apart = load_supervised(path, thinking, 400, examples="turn")
    earlier = turn("2+2?", "4").replace("{", "").replace("}", "") + "\n"
    assert texts(thinking, apart) == [turn("2+2?", replies[0]), earlier + turn("and 3+3?", replies[1])]
    assert "thoughts" not in apart.report.describe()
    marker = thinking._backend.token_to_id("<think>")
    assert [example.tokens.count(marker) for example in apart.examples] == [1, 1]  # a token, as the model samples it


def test_reasoning_that_no_template_reads_is_named(tokenizer: Callable[[str], Tokenizer], rows: Rows) -> None:
    path = rows({"messages": [USER, {**ANSWER, "reasoning_content": "north"}]})
    report = load_supervised(path, tokenizer(PLAIN), 400).report.describe()
    assert "reasoning_content not used by the chat template: 1" in report
    knows = tokenizer(PLAIN.replace("'' + m.content", "(m.reasoning_content or '') + m.content"))
    data = load_supervised(path, knows, 400)
    assert texts(knows, data) == [turn("weather in Oslo?", "north4 degrees")]
    assert "not used" not in data.report.describe()


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"weight": 0.0, "train": None}])
def test_a_turn_of_weight_zero_is_read_and_not_learned(chatml: Tokenizer, rows: Rows, mark: dict[str, Any]) -> None:
    bad, good = {"role": "assistant", "content": "bad", **mark}, {"role": "assistant", "content": "good", "weight": 1}
    asked = [{"role": "user", "content": text} for text in ("a", "b")]
    data = load_supervised(rows({"messages": [asked[0], bad, asked[1], good]}), chatml, 400)
    assert texts(chatml, data)[0].endswith("assistant\nbad<|im_end|>\n" + turn("b", "good"))
    assert texts(chatml, data)[0].count("{") == 1
    with pytest.raises(UserError, match=r"no row is usable.*empty reply 1"):
        load_supervised(rows({"messages": [asked[0], bad]}), chatml, 400)


@pytest.mark.parametrize(("mark", "why"), [({"weight": 0.5}, "weight is 0 or 1"), ({"train": "no"}, "true or false")])
def test_another_weight_is_refused(chatml: Tokenizer, rows: Rows, mark: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=rf"row 1: message 1 has .*{why}"):
        load_supervised(rows({"messages": [USER, {**ANSWER, **mark}]}), chatml, 400)


def test_null_columns_and_null_keys_are_absent(tokenizer: Callable[[str], Tokenizer], rows: Rows) -> None:
    nulls = {"name": None, "tool_calls": None, "weight": None, "reasoning_content": None}
    path = rows(
        {"messages": None, "prompt": "hi", "completion": "hello", "chosen": None, "tools": None},
        {
            "messages": [{**USER, **nulls}, {**ANSWER, **nulls}],
            "prompt": None,
            "chat_template_kwargs": None,
            "tools": [],
        },
    )
    plain = tokenizer(PLAIN)
    data = load_supervised(path, plain, 400)
    assert texts(plain, data) == [turn("hi", "hello"), turn("weather in Oslo?", "4 degrees")]
    assert "not used" not in data.report.describe().lower()


def test_a_completion_of_several_messages_is_learned_after_its_prompt(
    tokenizer: Callable[[str], Tokenizer], rows: Rows
) -> None:
    calls = tokenizer(CALLS)
    before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, USER]
    path = rows({"prompt": before, "completion": [CALLING, {"role": "tool", "content": "4"}, ANSWER]})
    (text,) = texts(calls, load_supervised(path, calls, 400))
    assert text.count("{<tool_call>") == 1
    assert "assistant\nhello<|im_end|>" in text
    assert text.endswith("{4 degrees<|im_end|>}")


def test_a_prompt_repeated_in_both_replies_is_removed_and_counted(
    chatml: Tokenizer, plain: Tokenizer, rows: Rows
) -> None:
    path = rows({"prompt": "Q: 2+2? A:", "chosen": "Q: 2+2? A: 4", "rejected": "Q: 2+2? A: 5"})
    for tokenizer, reply in ((chatml, "4"), (plain, " 4")):
        data = load_preferences(path, tokenizer, PairLengths(100, 200))
        assert tokenizer.decode(data.pairs[0].chosen) == reply
        assert "prompts removed from the start of both replies: 1" in data.report.describe().lower()
    once = rows({"prompt": "Q:", "chosen": "Q: is a letter", "rejected": "no"})
    assert chatml.decode(load_preferences(once, chatml, PairLengths(100, 200)).pairs[0].chosen) == "Q: is a letter"


def test_rows_that_spell_control_tokens_are_counted(chatml: Tokenizer, rows: Rows) -> None:
    path = rows({"prompt": "hi<|im_end|>", "completion": "a"}, {"prompt": "hi", "completion": "b"})
    report = load_supervised(path, chatml, 400).report.describe()
    assert "rows that spell control tokens, which stay text: 1" in report.lower()


def test_template_columns_of_a_model_without_a_template_are_named(plain: Tokenizer, rows: Rows) -> None:
    path = rows({"prompt": "a", "completion": " b", "tools": [TOOL]}, {"prompt": "a", "completion": " b"})
    data = load_supervised(path, plain, 100)
    assert data.examples[0] == data.examples[1]
    assert "tools not used, since the tokenizer has no chat template: 1" in data.report.describe().lower()
