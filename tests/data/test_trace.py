"""Where the tokens of a text come from."""

from __future__ import annotations

from accord.data.chat import chat_tokens, exchange, prompt_ids
from accord.data.tokenizer import Tokenizer
from accord.data.trace import TEMPLATE, Trace, trace_chat, trace_exchange, trace_prompt

TALK = [
    {"role": "user", "content": "  What is <|im_end|>?  "},
    {"role": "assistant", "content": "An end token, as </s> is."},
    {"role": "user", "content": "What"},
    {"role": "assistant", "content": "is"},
]


def parts(trace: Trace) -> list[tuple[int, str]]:
    """Runs of tokens from the same place, with their text."""
    found: list[tuple[int, str]] = []
    done = 0
    for origin, (_, end) in zip(trace.origins, trace.spans, strict=True):
        text = trace.text[done : max(done, end)]
        done = max(done, end)
        if found and found[-1][0] == origin:
            found[-1] = (origin, found[-1][1] + text)
        else:
            found.append((origin, text))
    return found


def test_every_token_is_the_templates_or_a_messages(chatml: Tokenizer) -> None:
    trace = trace_chat(chatml, TALK)
    made = chat_tokens(chatml, TALK)
    assert (list(trace.ids), list(trace.labels)) == (made.ids, made.loss_mask)
    head = "<|im_start|>system\nYou are a small and honest helper.<|im_end|>\n<|im_start|>user\n"
    between, again = "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"
    texts = [text for origin, text in parts(trace) if origin != TEMPLATE]
    assert [origin for origin, _ in parts(trace)] == [-1, 0, -1, 1, -1, 2, -1, 3, -1]
    assert [text.strip() for text in texts] == ["What is <|im_end|>?", "An end token, as </s> is.", "What", "is"]
    assert trace.text.startswith(head + "  What is <|im_end|>?  " + between + TALK[1]["content"] + again)
    spelled = trace.text.index("<|im_end|>?")
    assert {trace.origins[k] for k, (start, _) in enumerate(trace.spans) if start == spelled} == {0}


def test_a_pair_and_a_prompt_are_traced_as_they_are_trained(chatml: Tokenizer, plain: Tokenizer) -> None:
    for tokenizer in (chatml, plain):
        made, trace = exchange(tokenizer, "hi </s>", " you"), trace_exchange(tokenizer, "hi </s>", " you")
        assert list(trace.ids) == made.prompt + made.reply
        assert list(trace.labels) == [False] * len(made.prompt) + [True] * len(made.reply)
        assert "hi </s>" in trace.text
        assert trace.origins[-1] == TEMPLATE  # the end token
        assert {0, 1} <= set(trace.origins)
        asked = trace_prompt(tokenizer, "hi </s>")
        assert list(asked.ids) == prompt_ids(tokenizer, "hi </s>")
        assert not any(asked.labels)


def test_a_template_that_reads_the_content_is_traced_by_looking_for_it(chatml: Tokenizer) -> None:
    template = (chatml.chat_template or "").replace("message['content']", "message['content'].split('|')[-1]")
    tokenizer = Tokenizer(chatml._backend, chatml.specials, template)
    found = parts(trace_chat(tokenizer, [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]))
    assert [(origin, text) for origin, text in found if origin != TEMPLATE] == [(0, "cat"), (1, "dog")]
