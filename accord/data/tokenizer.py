"""Text to token ids and back: a ``tokenizers`` backend with its special tokens, independent of transformers.

Three rules: ``encode`` adds no token that the text does not contain; the pad token is never the end token (a model
whose end token is masked as padding does not learn to stop); the end token is the one that the chat template writes
after a reply, whatever the config names as EOS.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.data.chat_template import render_template, sample_reply
from accord.data.control_tokens import MARK, ControlTokens, is_control
from accord.data.private_tokens import with_private_names
from accord.data.rendered_offsets import offsets_in_rendered
from accord.data.thoughts import opened_at_end
from accord.errors import UserError
from accord.io.atomic import write_json, write_text
from accord.io.digests import TOKENIZER_FILES, verify
from accord.io.gguf_header import check_gguf
from accord.io.readers import read_text, require_file, shorten
from accord.io.records import TokenizerConfig, read_record

if TYPE_CHECKING:
    import tokenizers

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPARE = ("pad", "reserved", "unused", "fim", "endoftext", "extra")
"""Substrings of the names of unused special tokens, preferred first, to find a pad token."""


class Tokenizer:
    """A tokenizer and its special tokens.  Turns off the backend's truncation, padding and post-processing.

    ``specials`` maps names such as ``eos_token`` to their text, for the chat template.
    Raises UserError where there is no end token.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        specials: Mapping[str, str],
        chat_template: str | None = None,
        model_max_length: int | None = None,
    ) -> None:
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.specials = {name: text for name, text in specials.items() if backend.token_to_id(text) is not None}
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([text for text in self.specials.values() if text not in added])
        self.chat_template = chat_template
        self.model_max_length = model_max_length
        self.bos_id: int | None = self._named_id("bos_token")
        self.adds_bos = self.bos_id is not None and backend.encode("").ids[:1] == [self.bos_id]
        """Whether the tokenizer adds BOS before plain text."""
        # Not used: it adds tokens, and some post-processors shift offsets over spaces.
        self._post_processor = backend.post_processor
        backend.post_processor = None
        self.eos_id: int = self._find_eos()
        self.pad_id: int = self._find_pad()

    # -------------------------------------------------------------- opening and saving
    @classmethod
    def open(cls, directory: str | Path) -> Tokenizer:
        """Opens a Hugging Face folder, through transformers where it has no ``tokenizer.json``.

        Raises UserError where the folder has no tokenizer, or one that differs from its manifest.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected one with tokenizer.json")
        verify(folder, TOKENIZER_FILES)
        if not (folder / "tokenizer.json").exists():
            return cls._through_transformers(folder)
        import tokenizers

        require_file(folder / "tokenizer.json")
        with _named_errors(f"{folder / 'tokenizer.json'}: not a tokenizer"):
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        files, remedy = ("special_tokens_map.json", "tokenizer_config.json"), "copy or download the folder again."
        listed, config = (read_record(folder / name, TokenizerConfig, remedy) for name in files)
        config = listed | {key: value for key, value in config.items() if value is not None}
        template = folder / "chat_template.jinja"
        chat_template = read_text(template) if template.exists() else config.get("chat_template")
        limit = config.get("model_max_length")
        with _named_errors(f"{folder}"):
            _add_listed(backend, config.get("added_tokens_decoder") or {})
            return cls(backend, _named(config), _default(chat_template), limit if isinstance(limit, int) else None)

    @classmethod
    def from_gguf(cls, path: str | Path) -> Tokenizer:
        """Opens the tokenizer inside a GGUF file (needs transformers and gguf)."""
        file = Path(path)
        check_gguf(file)
        return cls._through_transformers(file.parent, gguf_file=file.name)

    @classmethod
    def _through_transformers(cls, folder: Path, **how: str) -> Tokenizer:
        from transformers import AutoTokenizer

        name = folder / how.get("gguf_file", "")
        try:
            opened = AutoTokenizer.from_pretrained(  # type: ignore[no-untyped-call, unused-ignore]
                str(folder), local_files_only=True, trust_remote_code=False, **how
            )
        except Exception as error:  # transformers raises whatever a damaged file leads it to
            reason = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 300)
            raise UserError(f"{name}: has no tokenizer that transformers can open ({reason})") from error
        backend = getattr(opened, "backend_tokenizer", None) or getattr(opened, "_tokenizer", None)
        if backend is None:
            raise UserError(f"{name}: a tokenizer written in Python only; convert it to tokenizer.json first")
        with _named_errors(f"{name}"):
            return cls(backend, _named(opened.special_tokens_map), _default(opened.chat_template))

    def save(self, directory: str | Path) -> None:
        """Writes ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``; AutoTokenizer reads the
        same ids from them.  (``PreTrainedTokenizerFast`` takes tokenizer.json as it is; named classes rebuild parts.)
        """
        folder = Path(directory)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.specials,
            "pad_token": self.token(self.pad_id),
        }
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        # A template that refers to {{ eos_token }} needs the original one.
        if "eos_token" not in (self.chat_template or "") or "eos_token" not in config:
            config["eos_token"] = self.token(self.eos_id)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
            write_text(folder / "chat_template.jinja", self.chat_template)
        write_text(folder / "tokenizer.json", self._serialized())
        write_json(folder / "tokenizer_config.json", config)

    def _serialized(self) -> str:
        self._backend.post_processor = self._post_processor
        text: str = self._backend.to_str(pretty=True)
        self._backend.post_processor = None
        return text

    def digest(self) -> str:
        """32 hexadecimal digits; equal where ids, special tokens and chat template are equal."""
        ends = [self.bos_id, self.eos_id, self.pad_id, self.chat_template]
        return hashlib.blake2b((self._serialized() + json.dumps(ends)).encode(), digest_size=16).hexdigest()

    # -------------------------------------------------------------- text and ids
    def encode(self, text: str) -> list[int]:
        """Ids of the text alone; special tokens in the text are recognized."""
        return list(self._encoded(text).ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the (start, end) character offsets of each."""
        encoded = self._encoded(text)
        return list(encoded.ids), list(encoded.offsets)

    def encode_rendered(self, rendered: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of text in which content is escaped (``controls.escape``): only what a template spells becomes a
        control token.  Offsets count the characters of ``rendered``.
        """
        controls = self.controls
        if MARK not in rendered:
            ids, offsets = self.encode_with_offsets(rendered)
            if sum(map(controls.numbers.__contains__, ids)) == controls.count(rendered):
                return ids, offsets
        pieces = controls.pieces(rendered)
        encoded = self._encoded("".join(piece.private for piece in pieces), self._private_backend)
        return list(encoded.ids), offsets_in_rendered(pieces, encoded.offsets)

    def encode_content(self, text: str) -> list[int]:
        """Ids of content, none of which is a control token."""
        return self.encode_rendered(self.controls.escape(text))[0]

    @cached_property
    def controls(self) -> ControlTokens:
        """The control tokens, which only a template writes."""
        added = self._backend.get_added_tokens_decoder().items()
        found = {token.content: number for number, token in added if is_control(token, self.chat_template or "")}
        return ControlTokens(found, self._named_id("unk_token"))

    @cached_property
    def opened_thought(self) -> str:
        """The marker with which the chat template opens the thought of every reply; empty where it opens none."""
        if self.chat_template is None:
            return ""
        try:
            question = [{"role": "user", "content": "ask"}]
            return opened_at_end(render_template(self.chat_template, self.specials, question, True))
        except UserError:
            return ""

    @cached_property
    def _private_backend(self) -> tokenizers.Tokenizer:
        return with_private_names(self._backend, {text: self.controls.private(text) for text in self.controls.ids})

    def _encoded(self, text: str, backend: tokenizers.Tokenizer | None = None) -> tokenizers.Encoding:
        try:
            return (backend or self._backend).encode(text, add_special_tokens=False)
        except Exception as error:  # the Rust side raises bare Exception
            why = "half of a surrogate pair is not a character" if isinstance(error, TypeError) else str(error)
            raise UserError(f"the tokenizer cannot read the text {shorten(text, 60)!r} ({why})") from error

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def token(self, token_id: int) -> str:
        """The token's text.  Raises ValueError for an id outside the vocabulary."""
        text = self._backend.id_to_token(token_id)
        if text is None:
            raise ValueError(f"token {token_id} is not in the vocabulary of {self.vocab_size}")
        return str(text)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def ids_without_token(self, size: int) -> frozenset[int]:
        """Those of the ids below ``size``, a model's vocabulary, that mean no token: padding, or gaps."""
        return frozenset(range(size)) - set(self._backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of added tokens, which are matched as a whole anywhere in a text."""
        return frozenset(self._backend.get_added_tokens_decoder())

    def find(self, token: str) -> int | None:
        """The id of a token by its text; None where there is none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def are_content(self, ids: Sequence[int]) -> bool:
        """Whether all ids are tokens of the vocabulary, and none is special or a control token."""
        return all(0 <= i < self.vocab_size for i in ids) and not {*ids} & (self.special_ids | self.controls.numbers)

    # -------------------------------------------------------------- how pieces join
    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which ``decode`` leaves out."""
        return frozenset(i for i, token in self._backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._backend.to_str())
        return found

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether a character of a token stands for a byte."""
        return "ByteLevel" in _kinds(self._content["decoder"])

    @cached_property
    def continuing_prefix(self) -> str:
        """What begins a token that continues a word (WordPiece's ``##``); mostly nothing."""
        return str(self._content["model"].get("continuing_subword_prefix") or "")

    @cached_property
    def decodes_alone(self) -> bool:
        """Whether the text of a token does not depend on the tokens before it."""
        return set(_kinds(self._content["decoder"])) in ({"ByteLevel"}, {"Fuse"})

    @cached_property
    def starts_again_after_special(self) -> bool:
        """Whether text after a special token is tokenized like the start of a text, and decoded with a space too many."""
        special = next(
            (t.content for _, t in sorted(self._backend.get_added_tokens_decoder().items()) if t.special), None
        )
        return special is not None and self.decode(self.encode(f"{special}a"), skip_special=False) != f"{special}a"

    # -------------------------------------------------------------- choosing the special tokens
    def _named_id(self, name: str) -> int | None:
        return self._backend.token_to_id(self.specials[name]) if name in self.specials else None

    def _find_eos(self) -> int:
        if (written := self._end_of_reply()) is not None:
            return written
        if (eos := self._named_id("eos_token")) is None:
            raise UserError('the tokenizer has no end token; set "eos_token" in tokenizer_config.json')
        return eos

    def _end_of_reply(self) -> int | None:
        """The id that the chat template writes after an assistant's content; None where it writes none."""
        sample = sample_reply(self.chat_template, self.specials) if self.chat_template is not None else None
        if sample is None:
            return None
        text, end = sample
        ids, offsets = self.encode_with_offsets(text)
        after = (i for i, (start, _) in zip(ids, offsets, strict=True) if start >= end)
        return next((i for i in after if i in self.added_ids), None)

    def _find_pad(self) -> int:
        named = self._named_id("pad_token")
        if named is not None and named != self.eos_id:
            return named
        taken = {self.eos_id, self.bos_id}
        template = self.chat_template or ""
        special = {t.content: i for i, t in sorted(self._backend.get_added_tokens_decoder().items()) if t.special}
        free = {text: i for text, i in special.items() if i not in taken and text not in template}
        if (spare := _first_spare(free, self.specials.get("unk_token"))) is not None:
            return free[spare]
        # GPT-2 and similar tokenizers have one special token.  Padding is always masked here, so any other token
        # works; the last one is rare.
        known = sorted(self._backend.get_vocab(with_added_tokens=True).values(), reverse=True)
        free_id = next((i for i in known if i not in taken), None)
        if free_id is None:
            raise UserError("the tokenizer has no token besides its end token, so none can pad")
        return free_id


@contextmanager
def _named_errors(place: str) -> Iterator[None]:
    """Names ``place`` in a UserError for what a damaged tokenizer raises: ours, or bare Exception and panics of Rust."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{place} ({shorten(str(error) or type(error).__name__, 300)})") from error


def _kinds(decoder: Mapping[str, Any] | None) -> list[str]:
    """The types of a decoder's parts in ``tokenizer.json``; of none where tokens are joined by spaces."""
    if decoder is None:
        return []
    return [
        kind
        for part in decoder.get("decoders", [decoder])
        for kind in ([part["type"]] if part is decoder else _kinds(part))
    ]


def _first_spare(free: Mapping[str, int], unk: str | None) -> str | None:
    by_name = (text for word in SPARE for text in free if word in text.lower())
    return next(by_name, unk if unk in free else next(iter(free), None))


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens, given as text or as {"content": text}."""
    found = {name: config[name] for name in NAMED if config.get(name)}
    texts = {name: value["content"] if isinstance(value, dict) else str(value) for name, value in found.items()}
    return {name: text for name, text in texts.items() if text}


def _default(template: Any) -> str | None:
    """The default chat template; a folder may have several, as a mapping or a list of {"name", "template"}."""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    return template.get("default") if isinstance(template, dict) else template


def _add_listed(backend: tokenizers.Tokenizer, listed: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds tokens that only tokenizer_config.json lists, in the order of their ids, as transformers does."""
    import tokenizers

    known = backend.get_vocab(with_added_tokens=True)
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        if entry["content"] not in known:
            flags = {k: bool(entry.get(k, False)) for k in ("single_word", "lstrip", "rstrip", "special")}
            normalized = bool(entry.get("normalized", not flags["special"]))
            backend.add_tokens([tokenizers.AddedToken(entry["content"], normalized=normalized, **flags)])


# ------------------------------------------------------------------ the small world's tokenizer
SMALL_SPECIALS = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
SMALL_ALPHABET = string.ascii_lowercase + string.digits + " " + ".,?!'-:" + "\n"
SMALL_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- if not loop.first -%}{{ raise_exception('a system message must come first') }}{%- endif -%}
{%- set ns.system = message['content'] + '\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- '<user>' + ns.system + message['content'] -}}
{%- set ns.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{%- if ns.system -%}{{ raise_exception('a user message must follow the system message') }}{%- endif -%}
{{- '<assistant>' + message['content'] + '<eos>' -}}
{%- else -%}
{{ raise_exception('this model knows the roles system, user and assistant, not ' + message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}
"""


def small_tokenizer() -> Tokenizer:
    """50 symbols: five special tokens, a-z, 0-9, space, ``. , ? ! ' - :`` and newline.  Lower-cases; no BOS.

    >>> tokenizer = small_tokenizer()
    >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("Why, 2 cats?"))
    (50, 'why, 2 cats?')
    """
    return Tokenizer(
        _characters(SMALL_SPECIALS, SMALL_ALPHABET),
        {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"},
        SMALL_TEMPLATE,
    )


def _characters(specials: Sequence[str], alphabet: Iterable[str]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    vocab = {symbol: i for i, symbol in enumerate([*specials, *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))  # no merges: characters
    backend.normalizer = normalizers.Lowercase()
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(specials))
    return backend
