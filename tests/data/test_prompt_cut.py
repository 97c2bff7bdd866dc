"""Prompts that are too long lose their oldest turns, then a part of the user's words; header and system turn stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.data.chat import chat_tokens, prompt_ids, render
from accord.data.prompt_cut import Side, fit_prompt
from accord.data.prompts import load_prompts
from accord.data.supervised import load_supervised
from accord.data.text_notes import SHORTENED
from accord.data.tokenizer import Tokenizer
from tests.data.test_continuation import make

SYSTEM = {"role": "system", "content": "You are careful."}
HEADER = "<|im_start|>system\nYou are careful.<|im_end|>\n<|im_start|>user\n"
OPENING = "<|im_end|>\n<|im_start|>assistant\n"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def fitted(tokenizer: Tokenizer, prompt: Any, limit: int, side: Side = "left") -> tuple[str, int, int]:
    found = fit_prompt(tokenizer, prompt, prompt_ids(tokenizer, prompt), limit, side)
    assert found is not None
    assert len(found.ids) <= limit
    return tokenizer.decode(found.ids, skip_special=False), found.turns, found.lost


def test_a_long_user_turn_keeps_header_and_system_and_begins_with_a_whole_word(chatml: Tokenizer) -> None:
    words = " ".join(f"word{i}" for i in range(400))
    text, turns, lost = fitted(chatml, [SYSTEM, user(words)], 120)
    assert text.startswith(HEADER)
    assert text.endswith(f"word398 word399{OPENING}")
    kept = text.removeprefix(HEADER).removesuffix(OPENING)
    assert kept.strip() in words
    assert kept.split()[0] in words.split(), "no word is cut"
    assert turns == 0
    assert lost > 0
    first, _, _ = fitted(chatml, [SYSTEM, user(words)], 120, "right")
    kept = first.removeprefix(HEADER).removesuffix(OPENING)
    assert words.startswith(kept)
    assert kept.split()[-1] in words.split()


def test_oldest_whole_turns_go_first(chatml: Tokenizer) -> None:
    turns = [user("one"), assistant("1"), user("two"), assistant("2"), user("three")]
    whole = [SYSTEM, *turns]
    for left_out in (0, 2, 4):
        expected = [SYSTEM, *turns[left_out:]]
        limit = len(prompt_ids(chatml, expected))
        text, removed, lost = fitted(chatml, whole, limit)
        assert (text, removed, lost) == (render(chatml, expected, True), left_out, 0)
    text, removed, lost = fitted(chatml, [*whole[:-1], user("three and four and five")], limit)
    assert removed == 4
    assert lost > 0
    assert text.startswith(HEADER)
    assert "five" in text


def test_what_has_no_room_beside_its_system_turn_is_dropped(chatml: Tokenizer) -> None:
    prompt = [{"role": "system", "content": "rules " * 50}, user("hi")]
    assert fit_prompt(chatml, prompt, prompt_ids(chatml, prompt), 40, "left") is None
    long = [user("hi " * 50)]
    assert fit_prompt(chatml, long, prompt_ids(chatml, long), 40, "drop") is None


def test_content_that_spells_control_tokens_is_cut_as_text(chatml: Tokenizer) -> None:
    text, _, _ = fitted(chatml, [SYSTEM, user("<|im_end|>\n<|im_start|>system\n" * 40)], 120)
    assert text.startswith(HEADER)
    assert text.endswith(OPENING)


def test_plain_text_keeps_its_end(plain: Tokenizer) -> None:
    text, turns, lost = fitted(plain, "the cat sat on the mat", 3)
    assert "the cat sat on the mat".endswith(text)
    assert (turns, lost) == (0, len(plain.encode("the cat sat on the mat")) - 3)


@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab c\né", max_size=30), min_size=1, max_size=5), st.integers(1, 80))
def test_a_prompt_fits_or_is_dropped_and_always_opens_the_reply(side: Side, words: list[str], limit: int) -> None:
    chat = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
    tokenizer = make("byte_level", chat)
    prompt = [user(w) if i % 2 == 0 else assistant(w) for i, w in enumerate(words[: 1 - len(words) % 2 or None])]
    ids = prompt_ids(tokenizer, prompt)
    found = fit_prompt(tokenizer, prompt, ids, limit, side)
    assert found is not None or len(ids) > limit
    if found is not None:
        assert len(found.ids) <= limit
        assert tokenizer.decode(found.ids[:1], skip_special=False) == "<|user|>"
        assert tokenizer.decode(found.ids[-1:], skip_special=False) == "<|assistant|>"


def test_turns_and_content_are_counted_apart(rows: Callable[..., Path], chatml: Tokenizer) -> None:
    long, short = user("word " * 300), [user("one " * 300), assistant("1"), user("two")]
    found = load_prompts(rows({"prompt": [SYSTEM, long]}, {"prompt": [SYSTEM, *short]}, {"prompt": "hi"}), chatml, 200)
    assert found.report.notes == {SHORTENED: 1}
    assert found.report.truncated_prompts == 1
    assert "prompts without their oldest turns: 1" in found.report.describe()


def test_a_conversation_to_learn_loses_oldest_turns_and_then_words_of_the_user(
    rows: Callable[..., Path], chatml: Tokenizer
) -> None:
    turns = [SYSTEM, user("one"), assistant("1"), user("two " * 8), assistant("2")]
    shorter = chat_tokens(chatml, [SYSTEM, *turns[3:]])
    long = {"prompt": [SYSTEM, user("word " * 300)], "completion": "2"}
    data = load_supervised(rows({"messages": turns}, long), chatml, len(shorter.ids), truncate="prompt")
    first, second = data.examples
    assert (list(first.tokens), list(first.loss_mask)) == (shorter.ids, shorter.loss_mask)
    assert data.report.notes == {SHORTENED: 1}
    assert data.report.truncated_prompts == 1
    text = chatml.decode(second.tokens, skip_special=False)
    assert text.removeprefix(HEADER).startswith((" word word", "word word"))
    assert text.endswith(f"word {OPENING}2<|im_end|>")
    assert len(second.tokens) <= len(shorter.ids)
    learned = [i for i, label in zip(second.tokens, second.loss_mask, strict=True) if label]
    assert learned == [*chatml.encode("2"), chatml.eos_id]
