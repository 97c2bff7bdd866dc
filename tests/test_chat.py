"""accord chat: tokens appear as they are drawn, the conversation is remembered, the seed repeats it."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage's folder with a Transformer of a few thousand weights in it."""
    from accord.data.tokenizer import small_tokenizer
    from accord.models.open import small_backbone

    folder = tmp_path_factory.mktemp("stage") / "model"
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    backbone = small_backbone("transformer", 32, 1, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)
    backbone.save(str(folder))
    tokenizer.save(folder)
    return folder.parent


class Events(io.StringIO):
    """A screen that remembers in which order things happened."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def write(self, text: str) -> int:
        self.events.append(text)
        return super().write(text)


def converse(
    monkeypatch: pytest.MonkeyPatch, lines: str, *words: str
) -> tuple[int, list[str], list[tuple[int, ...]], list[list[int]]]:
    """The exit code, what happened in its order, the prompts that the model was given, and its replies."""
    import accord.chat
    from accord.rollout import generate

    events: list[str] = []
    prompts: list[tuple[int, ...]] = []
    replies: list[list[int]] = []

    def watched(backbone: Any, prompt: Sequence[int], *rest: Any) -> Iterator[int]:
        prompts.append(tuple(prompt))
        replies.append([])
        for token in generate.stream(backbone, prompt, *rest):
            events.append("<token>")
            replies[-1].append(token)
            yield token

    monkeypatch.setattr(accord.chat, "stream", watched)
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    monkeypatch.setattr(sys, "stdout", Events(events))
    code = main(["chat", *words])
    return code, events, prompts, replies


def test_a_chat_streams_and_remembers_until_its_input_ends(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.data.chat import prompt_ids
    from accord.data.tokenizer import Tokenizer

    code, events, prompts, replies = converse(
        monkeypatch, "hello there\nand the moon?\n", str(model), "--max-new-tokens", "12", "--system", "be kind"
    )
    assert code == 0
    assert len(prompts) == 2
    assert sum(map(len, replies)) > 4
    # every token is on the screen before the next one is drawn
    assert ("<token>", "<token>") not in itertools.pairwise(events)
    tokenizer = Tokenizer.open(str(model / "model"))
    first, second = (tokenizer.decode(reply) for reply in replies)
    shown = "".join(e for e in events if e != "<token>")
    assert f"{first}\n" in shown
    assert f"{second}\n" in shown
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and the moon?"},
    ]
    assert prompts[0] == tuple(prompt_ids(tokenizer, messages[:2]))  # type: ignore[arg-type]
    assert prompts[1] == tuple(prompt_ids(tokenizer, messages))  # type: ignore[arg-type]


def test_a_chat_ends_at_an_empty_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, prompts, _ = converse(monkeypatch, "hi\n\nnever said\n", str(model), "--max-new-tokens", "2")
    assert (code, len(prompts)) == (0, 1)


def test_a_chat_repeats_with_its_seed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        converse(
            monkeypatch, "hi\n", str(model / "model"), "--max-new-tokens", "20", "--temperature", t, "--seed", seed
        )[3]
        for t, seed in (("1", "0"), ("1", "0"), ("1", "1"), ("0", "0"), ("0", "1"))
    ]
    assert said[0] == said[1] != said[2]
    assert said[3] == said[4] != said[0]
