from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from accord.data.tokenizer import SMALL_ALPHABET, Tokenizer, small_tokenizer
from accord.errors import UserError

Train = Callable[..., tokenizers.Tokenizer]
SMALL = small_tokenizer()


@given(st.text(alphabet=SMALL_ALPHABET + SMALL_ALPHABET.upper()))
def test_small_tokenizer_gives_back_lower_case(text: str) -> None:
    ids = SMALL.encode(text)
    assert SMALL.decode(ids) == text.lower()
    assert len(ids) == len(text)
    assert all(5 <= i < 50 for i in ids)


def test_the_small_tokenizer_has_the_documented_symbols() -> None:
    assert SMALL.vocab_size == 50
    assert [SMALL.token(i) for i in range(5)] == ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
    assert SMALL.encode("az09 .,?!'-:\n") == [5, 30, 31, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
    assert SMALL.encode("<user>a~<eos>") == [3, 5, 2, 1]  # template's specials are recognized, unknown is <unk>
    assert (SMALL.pad_id, SMALL.eos_id, SMALL.bos_id) == (0, 1, None)
    assert SMALL.decode([3, 5, 1, 0]) == "a"
    assert SMALL.decode([3, 5, 1], skip_special=False) == "<user>a<eos>"
    with pytest.raises(ValueError, match="50"):
        SMALL.token(50)


def test_save_opens_in_transformers_with_the_same_ids(tmp_path: Path, chatml: Tokenizer) -> None:
    from transformers import AutoTokenizer

    text = "The cat,  é\n\n2 mats <|im_start|>user\nhello<|im_end|>\n"
    for tokenizer in (SMALL, chatml):
        folder = tmp_path / str(tokenizer.vocab_size)
        tokenizer.save(folder)
        theirs = AutoTokenizer.from_pretrained(folder)
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
        assert theirs.chat_template == tokenizer.chat_template
        assert len(theirs) == tokenizer.vocab_size
        assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text), skip_special=False)


def test_a_saved_tokenizer_opens_as_it_was(tmp_path: Path, chatml: Tokenizer, plain: Tokenizer) -> None:
    for tokenizer in (chatml, plain, SMALL):
        folder = tmp_path / tokenizer.digest()
        tokenizer.save(folder)
        opened = Tokenizer.open(folder)
        assert opened.digest() == tokenizer.digest()
        assert opened.chat_template == tokenizer.chat_template
    assert len({t.digest() for t in (chatml, plain, SMALL)}) == 3


def test_a_folder_saved_by_transformers_opens(tmp_path: Path, train_bpe: Train) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = train_bpe(["<s>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=None
    )
    theirs.add_special_tokens({"pad_token": "<[pad]>"})
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.open(tmp_path)
    text = "The dog looked </s>"
    assert theirs(text)["input_ids"] == [ours.bos_id, *ours.encode(text)]  # encode never adds BOS …
    assert ours.adds_bos  # … but knows that the makers do
    assert (ours.pad_id, ours.eos_id) == (theirs.pad_token_id, theirs.eos_token_id)
    ours.save(tmp_path / "again")  # and the post-processor survives
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "again")(text)["input_ids"] == theirs(text)["input_ids"]


def test_tokens_listed_only_in_the_config_are_found(tmp_path: Path, plain: Tokenizer) -> None:
    plain.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    size = plain.vocab_size
    config["added_tokens_decoder"] = {str(size): {"content": "<|extra|>", "special": True, "lstrip": False}}
    config["eos_token"] = {"content": "</s>", "special": True}
    config["unk_token"] = None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    opened = Tokenizer.open(tmp_path)
    assert opened.encode("<|extra|>") == [size]
    assert opened.token(opened.eos_id) == "</s>"


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path, train_bpe: Train) -> None:
    backend = train_bpe(["<pad>", "</s>"])
    backend.enable_truncation(3)
    backend.enable_padding(length=8, pad_token="<pad>")
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "pad_token": "<pad>"}')
    text = "The cat sat on the mat, and the dog looked at the cat."
    assert Tokenizer.open(tmp_path).decode(Tokenizer.open(tmp_path).encode(text)) == text


def test_pad_is_never_the_end_token(chatml: Tokenizer, train_bpe: Train) -> None:
    assert chatml.token(chatml.eos_id) == "<|im_end|>"
    assert chatml.token(chatml.pad_id) == "<|endoftext|>"  # the free special that no text of ours holds

    def pad(specials: list[str], **named: str) -> str:
        made = Tokenizer(train_bpe(specials), named)
        return made.token(made.pad_id)

    assert pad(["</s>", "<fim_middle>", "<fim_pad>"], eos_token="</s>", pad_token="</s>") == "<fim_pad>"
    assert pad(["</s>", "<s>", "<unk>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>") == "<unk>"
    assert pad(["</s>", "<|reserved_0|>", "<unk>"], eos_token="</s>", unk_token="<unk>") == "<|reserved_0|>"
    assert pad(["</s>"], eos_token="</s>", pad_token="!") == "!"  # any token of the vocabulary may be named
    only = pad(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    assert only not in ("", "<|endoftext|>")  # GPT-2: any other token, since it is only ever under a mask


def test_the_end_token_is_the_templates(tmp_path: Path, train_bpe: Train, chatml_template: str) -> None:
    backend = train_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"])
    named = {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    tokenizer = Tokenizer(backend, named, chatml_template)
    assert tokenizer.token(tokenizer.eos_id) == "<|im_end|>"
    tokenizer.save(tmp_path)  # so that generate() in transformers stops there as well
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    without = Tokenizer(train_bpe(["<|endoftext|>", "<pad>"]), named)
    assert without.token(without.eos_id) == "<|endoftext|>"


def test_offsets_cover_spaces_and_split_characters(train_bpe: Train) -> None:
    chatml = Tokenizer(train_bpe(["<pad>", "<|im_end|>"]), {"eos_token": "<|im_end|>", "pad_token": "<pad>"})
    text = "  the cat  é☃ \n sat<|im_end|> x"
    ids, offsets = chatml.encode_with_offsets(text)
    assert ids == chatml.encode(text)
    covered = set()
    for start, end in offsets:
        assert start < end
        covered |= set(range(start, end))
    assert covered == set(range(len(text)))


def test_mistakes_name_the_folder_and_the_fix(tmp_path: Path, train_bpe: Train) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Tokenizer.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=str(tmp_path)):
        Tokenizer.open(tmp_path)  # no tokenizer of any kind
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.open(tmp_path)
    train_bpe(["<pad>"]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="eos_token"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        Tokenizer.open(tmp_path)


def test_a_folder_without_tokenizer_json_is_read_by_transformers(tmp_path: Path, train_bpe: Train) -> None:
    backend = train_bpe(["<|endoftext|>", "<pad>"])
    model = json.loads(backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(backend.get_vocab()))
    merges = "\n".join(" ".join(m) if isinstance(m, list) else m for m in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    opened = Tokenizer.open(tmp_path)
    text = "The dog looked at Paris."
    assert opened.encode(text) == backend.encode(text).ids
    assert (opened.eos_id, opened.pad_id) == (0, 1)


def test_a_gguf_files_tokenizer_gives_the_same_tokens(tmp_path: Path, train_bpe: Train, chatml_template: str) -> None:
    gguf = pytest.importorskip("gguf")
    backend = train_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"])
    vocab = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "llama")
    for add, value in (
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 8),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 8),
        (writer.add_head_count, 2),
        (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, len(vocab)),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "gpt-2"),
        (writer.add_token_list, [token for token, _ in vocab]),
        (writer.add_token_types, [3 if i < 4 else 1 for _, i in vocab]),
        (writer.add_token_merges, [m if isinstance(m, str) else " ".join(m) for m in merges]),
        (writer.add_eos_token_id, 2),
        (writer.add_bos_token_id, 1),
        (writer.add_pad_token_id, 3),
        (writer.add_chat_template, chatml_template),
    ):
        add(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    opened = Tokenizer.from_gguf(tmp_path / "tiny.gguf")
    text = "The cat<|im_end|>"
    assert opened.encode(text) == backend.encode(text, add_special_tokens=False).ids
    assert (opened.eos_id, opened.pad_id, opened.chat_template) == (2, 3, chatml_template)
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.from_gguf(tmp_path / "other.gguf")


def test_the_common_path_needs_no_transformers_and_no_torch(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    code = (
        "import sys\nfrom accord.data.tokenizer import Tokenizer\nfrom accord.data.chat import reply_ids\n"
        f"reply_ids(Tokenizer.open({str(tmp_path)!r}), 'hi', 'yo')\n"
        "print({'transformers', 'torch'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_a_byte_level_tokenizer_gives_every_text_back(plain: Tokenizer, text: str) -> None:
    assert plain.decode(plain.encode(text), skip_special=False) == text
