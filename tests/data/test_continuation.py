"""decode(prompt + reply) is the text, for every kind of tokenizer that joins its pieces in a way of its own."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from accord.data.chat import chat_tokens, exchange, prompt_ids
from accord.data.reply_text import reply_text, streamed
from accord.data.tokenizer import Tokenizer

CORPUS = [
    "A: yes it is, the cat sat on the mat. B: no, the dog ran; why? unhappily",
    "yes yes:yes no.no the ",
    "éà 猫が",
] * 4
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "éà猫が \n"
CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
WORDS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
WORDS += "{% if add_generation_prompt %}assistant: {% endif %}"
SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]


def trained(model: Any, trainer: Any, parts: dict[str, Any], corpus: Iterable[str] = CORPUS) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator(corpus, trainer)
    return backend


def bpe(size: int = 160, bytes_too: bool = False, **parts: Any) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if bytes_too else [*CHARACTERS, "▁"]
    size = size + 256 if bytes_too else size
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    model = models.BPE() if bytes_too else models.BPE(unk_token="<unk>")
    return trained(model, trainer, parts)


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2: characters that are not pieces are bytes, and every text gets a space first."""
    spelled = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), "▁", *string.ascii_letters, ":", ".", ",", "?"]
    merges = [("▁", "y"), ("e", "s"), ("▁y", "es"), ("t", "h"), ("th", "e"), (":", "y"), ("▁", "A"), ("A", ":")]
    spelled += ["".join(merge) for merge in merges]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(spelled))}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIALS)
    return backend


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    pre = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return bpe(pre_tokenizer=pre, decoder=decoders.Metaspace(prepend_scheme=scheme))


def unigram() -> tokenizers.Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=SPECIALS,
        unk_token="<unk>",
        initial_alphabet=[*CHARACTERS, "▁"],
        show_progress=False,
    )
    parts = {"pre_tokenizer": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}
    return trained(models.Unigram(), trainer, parts)


def word_piece() -> tokenizers.Tokenizer:
    alphabet = [*CHARACTERS]
    vocab = {
        p: i
        for i, p in enumerate(
            dict.fromkeys([*SPECIALS, *alphabet, *(f"##{c}" for c in alphabet), "yes", "##es", "the", "cat", "##at"])
        )
    }
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(SPECIALS)
    return backend


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level": lambda: bpe(
        bytes_too=True, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.ByteLevel()
    ),
    "byte_level_without_split": lambda: bpe(
        bytes_too=True,
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoder=decoders.ByteLevel(),
    ),
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_first": lambda: metaspace("first"),
    "metaspace_never": lambda: metaspace("never"),
    "unigram": unigram,
    "prepend_and_byte_fallback": byte_fallback,
    "word_piece": word_piece,
}
_made: dict[tuple[str, str | None], Tokenizer] = {}


def make(kind: str, template: str | None = None) -> Tokenizer:
    if (kind, template) not in _made:
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        _made[kind, template] = Tokenizer(KINDS[kind](), named, template)
    return _made[kind, template]


def readable(kind: str) -> st.SearchStrategy[str]:
    """Texts that the kind of tokenizer can spell at all: WordPiece forgets spaces beside punctuation."""
    if kind == "word_piece":
        return st.text(string.ascii_lowercase, min_size=1, max_size=8)
    characters = CHARACTERS if "byte" in kind else CHARACTERS.replace("\n", "")
    return st.text(characters, min_size=1, max_size=12).filter(lambda text: bool(text.strip()))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_prompt_and_reply_together_decode_to_the_text(kind: str, data: st.DataObject) -> None:
    tokenizer = make(kind)
    prompt, reply = data.draw(readable(kind)), data.draw(readable(kind))
    made = exchange(tokenizer, prompt, reply)
    assert made.prompt == prompt_ids(tokenizer, prompt), "a model continues these"
    assert made.reply[-1] == tokenizer.eos_id
    first_space_is_lost = kind in ("metaspace_always", "metaspace_first", "unigram") and prompt.startswith(" ")
    text = prompt + reply
    spelled = tokenizer.decode(tokenizer.encode(text)) if first_space_is_lost else text
    assert tokenizer.decode(made.prompt + made.reply) == spelled


@pytest.mark.parametrize("template", [CHAT, WORDS], ids=["tokens", "words"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_conversation_decodes_to_the_text_of_its_whole(kind: str, template: str, data: st.DataObject) -> None:
    tokenizer = make(kind, template)
    words = [data.draw(readable(kind)) for _ in range(4)]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, words, strict=True)]
    made = chat_tokens(tokenizer, messages)
    whole, _ = tokenizer.encode_rendered(made.rendered.rstrip("\n"))
    assert tokenizer.decode(made.ids) == tokenizer.decode(whole)
    assert any(made.loss_mask)
    assert made.ids[-1] == tokenizer.eos_id


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_text_of_a_reply_is_what_it_adds_to_its_prompt(kind: str, data: st.DataObject) -> None:
    tokenizer = make(kind)
    prompt, reply = data.draw(readable(kind)), data.draw(readable(kind))
    made = exchange(tokenizer, prompt, reply)
    assert reply_text(tokenizer, made.prompt, made.reply) == reply
    assert "".join(streamed(tokenizer, made.prompt, made.reply)) == reply


def test_the_end_of_a_prompt_is_not_read_from_the_middle_of_a_character() -> None:
    """Three bytes and two digits that are bytes too: the last four tokens begin within the character."""
    tokenizer = make("prepend_and_byte_fallback")
    for prompt in ("が00", "がが0", "0がが"):
        made = exchange(tokenizer, prompt, "0")
        assert reply_text(tokenizer, made.prompt, made.reply) == "0"
        assert "".join(streamed(tokenizer, made.prompt, made.reply)) == "0"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_reply_after_a_control_token_reads_as_it_was_written(kind: str, data: st.DataObject) -> None:
    tokenizer = make(kind, CHAT)
    prompt, reply = data.draw(readable(kind)), data.draw(readable(kind)).strip()
    made = exchange(tokenizer, prompt, reply)
    assert reply_text(tokenizer, made.prompt, made.reply) == reply
    assert "".join(streamed(tokenizer, made.prompt, made.reply)) == reply


def test_the_case_of_a_space_that_the_text_does_not_have() -> None:
    """As TRL's preference trainers tokenize: apart, where the pieces then decode to ``A: yes``."""
    tokenizer = make("metaspace_first")
    apart = tokenizer.encode("A:") + tokenizer.encode("yes")
    assert tokenizer.decode(apart) == "A: yes"
    made = exchange(tokenizer, "A:", "yes")
    assert tokenizer.decode(made.prompt + made.reply) == "A:yes"
    spaced = exchange(tokenizer, "A:", " yes")
    assert tokenizer.decode(spaced.prompt + spaced.reply) == "A: yes"
    assert spaced.reply != made.reply


def test_a_byte_level_reply_is_tokenized_apart_as_trl_does() -> None:
    tokenizer = make("byte_level_without_split")
    joined = tokenizer.encode("ye" + "s")
    made = exchange(tokenizer, "ye", "s")
    assert made.prompt != joined[: len(made.prompt)], "the tokenizer merges over the boundary"
    assert made.split
    assert made.reply == [*tokenizer.encode("s"), tokenizer.eos_id]


@pytest.mark.parametrize("kind", ["metaspace_first", "prepend_and_byte_fallback", "unigram"])
def test_a_first_word_keeps_its_space_after_the_prompt(kind: str) -> None:
    tokenizer = make(kind)
    made = exchange(tokenizer, "A:", " yes")
    assert tokenizer.decode(made.reply) == "yes"
    assert reply_text(tokenizer, made.prompt, made.reply) == " yes"


def test_a_word_that_goes_on_has_no_space() -> None:
    tokenizer = make("word_piece")
    made = exchange(tokenizer, "ye", "s")
    assert reply_text(tokenizer, made.prompt, made.reply) == "s"
    assert tokenizer.decode(made.prompt + made.reply) == "yes"
