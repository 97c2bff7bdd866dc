from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from accord.data.chat import chat_tokens, document_ids, exchange, prompt_ids, prompt_to_continue, render, reply_ids
from accord.data.chat_template import dated
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Train = Callable[..., tokenizers.Tokenizer]

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital is Paris."},
    {"role": "user", "content": "  And the sea? \n"},
    {"role": "assistant", "content": "It is blue,\n\nand deep. é☃"},
]
WITH_SYSTEM = [{"role": "system", "content": "Write short lines."}, *CHAT]
# Turns in brackets, BOS written by the template, the end token after a space.
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}{% endfor %}"
)
# Block tags on lines of their own, generation tags, a loop control, tojson and a date.
BLOCKS = """\
{%- set ns = namespace(found=false) %}
{% for m in messages %}
    {% if m.role == 'system' %}
        {% continue %}
    {% endif %}
    {% if m.role == 'assistant' %}
<|im_start|>assistant
        {% generation %}
{{ m.content }}<|im_end|>
        {% endgeneration %}
    {% else %}
<|im_start|>{{ m.role }} {{ {"now": strftime_now("%Y"), "<b>": none} | tojson }}
{{ m.content }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


@pytest.fixture(scope="module")
def brackets(train_bpe: Train) -> Tokenizer:
    """A Llama-like one: the post-processor would add BOS, and the template writes it."""
    backend = train_bpe(["<s>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer(backend, named, BRACKETS)


def backend_of(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A copy of the tokenizer's backend, through its saved folder."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    return Tokenizer(backend_of(tokenizer), tokenizer.specials, template)


def in_transformers(tokenizer: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    backend = backend_of(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=tokenizer.chat_template, **tokenizer.specials
    )


def labels(tokenizer: Tokenizer, ids: list[int], mask: list[bool]) -> str:
    return tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special=False)


# ------------------------------------------------------------------ rendering
@dated(str(date.today()))  # transformers writes today's
def test_rendering_and_tokenization_are_those_of_transformers(
    chatml: Tokenizer, small: Tokenizer, brackets: Tokenizer
) -> None:
    for tokenizer in (chatml, small, brackets, with_template(chatml, BLOCKS)):
        theirs = in_transformers(tokenizer)
        conversations = [CHAT, CHAT[:1], CHAT[:3]]
        if tokenizer is not brackets:
            conversations.append(WITH_SYSTEM)
        for messages in conversations:
            for opening in (False, True):
                expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=opening)
                assert render(tokenizer, messages, opening) == expected
            asked = theirs.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
            assert prompt_ids(tokenizer, messages[:1]) == asked
            whole = theirs.apply_chat_template(messages)["input_ids"]
            if any(m["role"] == "assistant" for m in messages):
                ids = chat_tokens(tokenizer, messages).ids
                assert ids == whole[: len(ids)]  # ours ends with the last label


def test_labels_agree_with_generation_tags(chatml: Tokenizer) -> None:
    """transformers' own assistant mask, from the template's tags, marks the same tokens up to what follows the end."""
    tokenizer = with_template(chatml, BLOCKS)
    said = in_transformers(tokenizer).apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    chat = chat_tokens(tokenizer, CHAT)
    ids, mask = chat.ids, chat.loss_mask
    theirs = [bool(m) for m in said["assistant_masks"]][: len(ids)]
    newline = tokenizer.encode("\n")
    assert [i for i, a, b in zip(ids, mask, theirs, strict=True) if a != b] == newline  # after the first end token


def test_templates_are_sandboxed(chatml: Tokenizer) -> None:
    for attack in ("{{ messages.append(1) }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"):
        with pytest.raises(UserError, match=r"the chat template fails at line 1: access to attribute .* is unsafe"):
            with_template(chatml, attack)


def test_template_errors_are_sentences(chatml: Tokenizer, small: Tokenizer, plain: Tokenizer) -> None:
    with pytest.raises(UserError, match="broken at line 2"):
        with_template(chatml, "{{ messages }}\n{% if %}")
    with pytest.raises(UserError, match=r"roles user, tool.*not tool"):
        render(small, [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], False)
    with pytest.raises(UserError, match="must come first"):
        render(small, [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], False)
    with pytest.raises(UserError, match=r"no chat template.*chat_template\.jinja"):
        render(plain, CHAT, False)


def test_the_small_template_writes_user_and_assistant_tokens(small: Tokenizer) -> None:
    assert render(small, CHAT[:1], True) == "<user>What is the capital of France?<assistant>"
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert render(small, said, True) == "<user>Be kind.\nHi<assistant>"
    assert prompt_ids(small, "Hi") == [3, 12, 13, 4]
    assert reply_ids(small, "Hi", "Yo") == [29, 19, 1]


# ------------------------------------------------------------------ labels
def test_labels_are_the_assistants_words_and_end_tokens(chatml: Tokenizer) -> None:
    chat = chat_tokens(chatml, CHAT)
    ids, mask = chat.ids, chat.loss_mask
    assert labels(chatml, ids, mask) == "The capital is Paris.<|im_end|>It is blue,\n\nand deep. é☃<|im_end|>"
    assert mask[-1]
    assert ids[-1] == chatml.eos_id  # the final end token is a label
    ends = [k for k, i in enumerate(ids) if i == chatml.eos_id]
    assert [mask[k] for k in ends] == [False, False, True, False, True]  # system, user, assistant, user, assistant
    assert not mask[ends[2] + 1]  # the newline that the template adds


def test_one_turn_is_tokenized_as_prompt_and_reply(chatml: Tokenizer, small: Tokenizer, brackets: Tokenizer) -> None:
    for tokenizer in (chatml, small, brackets):
        for n in (1, 3):
            asked, answer = CHAT[:n], CHAT[n]["content"]
            chat = chat_tokens(tokenizer, CHAT[: n + 1])
            ids, mask = chat.ids, chat.loss_mask
            prompt, reply = prompt_ids(tokenizer, asked), reply_ids(tokenizer, asked, answer)
            assert prompt + reply == ids
            assert mask[len(prompt) :] == [True] * len(reply)
            assert reply[-1] == tokenizer.eos_id
            assert reply.count(tokenizer.eos_id) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.text(max_size=12), answer=st.text(max_size=12))
def test_prompt_and_reply_are_what_training_sees(chatml: Tokenizer, asked: str, answer: str) -> None:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    chat = chat_tokens(chatml, messages)
    ids, mask = chat.ids, chat.loss_mask
    prompt, reply = prompt_ids(chatml, asked), reply_ids(chatml, asked, answer)
    assert prompt + reply == ids
    assert mask == [False] * len(prompt) + [True] * len(reply)
    assert chatml.decode(reply, skip_special=False) == answer + "<|im_end|>"


def test_a_conversation_without_labels_is_an_error(chatml: Tokenizer) -> None:
    with pytest.raises(UserError, match="no assistant message"):
        chat_tokens(chatml, CHAT[:1])


def test_a_template_that_rewrites_the_past_is_refused(chatml: Tokenizer) -> None:
    # The generation prompt opens a thought that the finished text does not show.
    thinking = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    )
    tokenizer = with_template(chatml, thinking)
    for call in (lambda: chat_tokens(tokenizer, CHAT), lambda: reply_ids(tokenizer, "a", "b")):
        with pytest.raises(UserError, match="another way"):
            call()


def test_a_template_without_end_tokens_is_refused(chatml: Tokenizer) -> None:
    tokenizer = with_template(chatml, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    for call in (lambda: chat_tokens(tokenizer, CHAT), lambda: reply_ids(tokenizer, "a", "b")):
        with pytest.raises(UserError, match=r"no end token.*im_end"):
            call()


def test_a_prompt_ends_where_the_assistant_speaks(chatml: Tokenizer) -> None:
    with pytest.raises(UserError, match="ends with an assistant message"):
        prompt_ids(chatml, CHAT[:2])


# ------------------------------------------------------------------ BOS
def test_there_is_at_most_one_bos(brackets: Tokenizer, train_bpe: Train) -> None:
    assert prompt_ids(brackets, "hi").count(0) == 1  # the template's, none from the post-processor
    doubled = with_template(brackets, "{{ bos_token }}" + BRACKETS)
    assert prompt_ids(doubled, "hi") == prompt_ids(brackets, "hi")
    assert chat_tokens(doubled, CHAT) == chat_tokens(brackets, CHAT)
    backend = train_bpe(["<s>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    bare = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    assert prompt_ids(bare, "hi") == [0, *bare.encode("hi")]  # plain text for a model trained with BOS
    assert exchange(bare, "hi", " yo").reply == [*bare.encode(" yo"), bare.eos_id]
    assert document_ids(bare, "hi") == [0, *bare.encode("hi"), 1]


# ------------------------------------------------------------------ the boundary of prompt and reply
def test_the_prompts_tokens_win_at_its_boundary_with_a_plain_reply(plain: Tokenizer) -> None:
    joined = exchange(plain, "The cat", " sat on")
    assert not joined.split
    assert joined.prompt + joined.reply == [*plain.encode("The cat sat on"), plain.eos_id]
    # "the " + "cat" share the token " cat" when joined: the prompt's ids win, the reply is tokenized separately.
    assert plain.encode("the cat")[: len(plain.encode("the "))] != plain.encode("the ")
    merged = exchange(plain, "the ", "cat")
    assert merged.split
    assert merged.prompt == plain.encode("the ")
    assert merged.reply == [*plain.encode("cat"), plain.eos_id]


def test_the_prompts_tokens_win_at_its_boundary_in_a_chat(chatml: Tokenizer) -> None:
    # The generation prompt ends in a space, so that " The" would straddle it.
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = with_template(chatml, template)
    chat = chat_tokens(tokenizer, CHAT)
    assert chat.split
    assert labels(tokenizer, chat.ids, chat.loss_mask) == (
        "The capital is Paris.<|im_end|>It is blue,\n\nand deep. é☃<|im_end|>"
    )
    one = exchange(tokenizer, CHAT[:1], CHAT[1]["content"])
    assert one.split
    assert one.prompt == tokenizer.encode(render(tokenizer, CHAT[:1], True))
    assert chat_tokens(tokenizer, CHAT[:2]).ids == one.prompt + one.reply
    assert not chat_tokens(chatml, CHAT).split


def test_a_reply_that_spells_the_end_token_is_learned_whole(chatml: Tokenizer, plain: Tokenizer) -> None:
    for tokenizer, reply in ((chatml, "yes<|im_end|>no"), (plain, " yes</s> no")):
        ids = reply_ids(tokenizer, "a", reply)
        assert tokenizer.decode(ids) == reply
        assert [k for k, i in enumerate(ids) if i == tokenizer.eos_id] == [len(ids) - 1]


def test_an_empty_reply_is_the_end_token(chatml: Tokenizer, plain: Tokenizer) -> None:
    assert reply_ids(chatml, "a", "") == [chatml.eos_id]
    assert reply_ids(plain, "a", "") == [plain.eos_id]


@pytest.mark.parametrize(
    ("template", "prompt", "message"),
    [
        ("", "hello", "the chat template writes nothing for it; correct the template"),
        ("{% if false %}x{% endif %}", "hello", "the chat template writes nothing for it"),
        (None, "", "write at least one character"),
    ],
)
def test_a_prompt_without_tokens_cannot_be_continued(
    brackets: Tokenizer, template: str | None, prompt: str, message: str
) -> None:
    tokenizer = copy.copy(brackets)
    tokenizer.chat_template, tokenizer.bos_id = template, None
    assert prompt_ids(tokenizer, prompt) == []
    with pytest.raises(UserError, match=f"the prompt has no tokens to continue: {message}"):
        prompt_to_continue(tokenizer, prompt)
    assert prompt_to_continue(brackets, "hello") == prompt_ids(brackets, "hello")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=6), min_size=2, max_size=6))
def test_every_turn_begins_after_the_ids_of_its_prompt(
    chatml: Tokenizer, brackets: Tokenizer, texts: list[str]
) -> None:
    roles = ("user", "assistant")
    talk = [{"role": roles[i % 2], "content": f"t{text}"} for i, text in enumerate(texts[: len(texts) // 2 * 2])]
    for tokenizer in (chatml, brackets):
        chat = chat_tokens(tokenizer, talk)
        if chat.split:
            continue
        for i in range(1, len(talk), 2):
            asked = prompt_ids(tokenizer, talk[:i])
            assert chat.ids[: len(asked)] == asked
            assert chat.loss_mask[len(asked) - 1 : len(asked) + 1] == [False, True]


def test_a_role_that_is_no_text_is_a_sentence(chatml: Tokenizer) -> None:
    with pytest.raises(UserError, match="the role 5 of a message is no text"):
        prompt_ids(chatml, [{"role": 5, "content": "hi"}])
