"""A GGUF file's own claims are checked against its size before anything of that size is made."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from accord.errors import UserError
from accord.io.gguf_header import check_gguf


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def string(key: bytes, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def number(key: bytes, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def tensor(name: bytes, *shape: int, kind: int = 0, start: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


SIZES = [number(b"llama.block_count", 0), number(b"llama.embedding_length", 4), number(b"llama.feed_forward_length", 8)]
KEYS = [string(b"general.architecture", b"llama"), *SIZES]


def gguf(keys: list[bytes], tensors: list[bytes], data: int = 64, head: bytes = b"GGUF", version: int = 3) -> bytes:
    body = head + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return body.ljust(-(-len(body) // 32) * 32, b"\0") + b"\0" * data


def test_a_sound_header_passes(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(KEYS, [tensor(b"token_embd.weight", 4, 4)]))
    check_gguf(tmp_path / "x.gguf")


WEIGHT = tensor(b"token_embd.weight", 4, 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the header goes beyond its end"),
        (gguf(KEYS, [WEIGHT], head=b"ABCD"), "it does not begin with 'GGUF'"),
        (gguf(KEYS, [WEIGHT], version=9), "version 9 is not 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "its header claims 1,152,921,504,606,846,976 tensors"),
        (
            gguf([text(b"a") + struct.pack("<IIQ", 9, 4, 2**60)], [WEIGHT]),
            "the key 'a' claims 1,152,.* values, more than",
        ),
        (
            gguf([text(b"a") + struct.pack("<IIQ", 9, 8, 2**60)], [WEIGHT]),
            "the key 'a' claims 1,152,.* strings, more than",
        ),
        (gguf([text(b"a") + struct.pack("<I", 99)], [WEIGHT]), "the key 'a' has the unknown type 99"),
        (gguf([string(b"a", b"\xff")], [WEIGHT]), "the key 'a' is not UTF-8"),
        (gguf([*KEYS, KEYS[0]], [WEIGHT]), "the key 'general.architecture' occurs twice"),
        (gguf(KEYS, [tensor(b"t", 4, 2**40)]), "tensor 't' goes beyond its end"),
        (gguf(KEYS, [tensor(b"t", 4, 4, kind=77)]), "tensor 't' has the unknown type 77"),
        (gguf(KEYS, [tensor(b"t", 4, 4, kind=8)]), "which its type cannot have"),
        (gguf(KEYS, [WEIGHT], data=8), "tensor 'token_embd.weight' goes beyond its end"),
        (gguf(SIZES, [WEIGHT]), "has no key 'general.architecture'"),
        (
            gguf([KEYS[0], number(b"llama.block_count", 2**31), *SIZES[1:]], [WEIGHT]),
            "its key 'llama.block_count' is 2,147,483,648, but its tensors have 0",
        ),
        (gguf(KEYS, [tensor(b"token_embd.weight", 2, 4)]), "'llama.embedding_length' is 4, but its tensors have 2"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.gguf: .*{said}.*; write or download it again"):
        check_gguf(path)
