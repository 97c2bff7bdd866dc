"""A check of a GGUF file's header and sizes, before a library reads it: counts and lengths are the file's own claims.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from accord.errors import UserError
from accord.io.readers import require_file, shorten

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
          10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
          16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
          23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
          34: (256, 54), 35: (256, 66)}  # fmt: skip
"""Values and bytes of a block, by the number of the tensor's type."""
MAX_KEY, MAX_NAME, MAX_TENSORS, MAX_KEYS = 65_535, 1024, 1_000_000, 100_000
SIZES = {"embedding_length": ("token_embd.weight", 0), "feed_forward_length": ("blk.0.ffn_up.weight", 1)}
"""Keys of sizes, without the architecture, and the tensor and dimension that have this size."""


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata and the shape of each tensor, the fastest dimension first."""

    values: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]


def check_gguf(path: Path) -> None:
    """Raises UserError naming the file, and the key or tensor, where the header is damaged or contradicts itself."""
    try:
        size = require_file(path)
        with path.open("rb") as file:
            header = _read(_Reader(file, size))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; give the path of a .gguf file") from None
    except (_Damaged, OSError) as error:
        raise UserError(f"{path}: not a readable GGUF file ({error}); write or download it again") from None
    if header.shapes and (words := _contradiction(header)) is not None:  # without tensors: a tokenizer alone
        raise UserError(f"{path}: {words}; write or download it again")


def shapes_of(path: Path) -> Mapping[str, tuple[int, ...]]:
    """The shape of each tensor.  Raises UserError for a damaged header, OSError where there is no such file."""
    try:
        size = require_file(path)
        with path.open("rb") as file:
            return _read(_Reader(file, size)).shapes
    except _Damaged as error:
        raise UserError(f"{path}: not a readable GGUF file ({error}); write or download it again") from None


class _Damaged(Exception):
    """What is wrong, in a few words."""


@dataclass(slots=True)
class _Reader:
    file: BinaryIO
    size: int

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.file.tell():
            raise _Damaged(f"{what} goes beyond its end")
        return self.file.read(count)

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def text(self, most: int, what: str) -> str:
        length = self.number("Q", what)
        if length > most:
            raise _Damaged(f"{what} has {length:,} bytes")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise _Damaged(f"{what} is not UTF-8") from None

    def value(self, kind: int, what: str) -> Any:
        """A value; of an array its length, since only lengths are compared."""
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            return self.text(self.size, what)
        if kind != ARRAY:
            raise _Damaged(f"{what} has the unknown type {kind}")
        inner, length = self.number("I", what), self.number("Q", what)
        if inner in SCALARS:
            width = struct.calcsize(SCALARS[inner])
            if length * width > self.size - self.file.tell():
                raise _Damaged(f"{what} claims {length:,} values, more than the file holds")
            self.file.seek(length * width, 1)
        elif inner == STRING:
            if length * 8 > self.size - self.file.tell():
                raise _Damaged(f"{what} claims {length:,} strings, more than the file holds")
            for place in range(length):
                self.text(self.size, f"{what}[{place}]")
        else:
            raise _Damaged(f"{what} is an array of the unknown type {inner}")
        return range(length)


def _read(reader: _Reader) -> Header:
    if reader.take(4, "the header") != b"GGUF":
        raise _Damaged("it does not begin with 'GGUF'")
    if (version := reader.number("I", "the header")) not in (2, 3):
        raise _Damaged(f"version {version} is not 2 or 3")
    tensors, keys = reader.number("Q", "the header"), reader.number("Q", "the header")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise _Damaged(f"its header claims {tensors:,} tensors and {keys:,} keys")
    values: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.text(MAX_KEY, "a key")
        what = f"the key {shorten(key, 80)!r}"
        if key in values:
            raise _Damaged(f"{what} occurs twice")
        values[key] = reader.value(reader.number("I", what), what)
    shapes, ends = dict[str, tuple[int, ...]](), dict[str, int]()
    for _ in range(tensors):
        name = reader.text(MAX_NAME, "a tensor's name")
        what = f"tensor {shorten(name, 80)!r}"
        count = reader.number("I", what)
        if not 1 <= count <= 4 or name in shapes:
            raise _Damaged(f"{what} occurs twice" if name in shapes else f"{what} has {count} dimensions")
        shapes[name] = tuple(reader.number("Q", what) for _ in range(count))
        kind, start = reader.number("I", what), reader.number("Q", what)
        ends[name] = start + _bytes(shapes[name], kind, what)
    alignment = values.get("general.alignment", 32)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise _Damaged("the key 'general.alignment' is not a size")
    data = -(-reader.file.tell() // alignment) * alignment
    for name, end in ends.items():
        if data + end > reader.size:
            raise _Damaged(f"tensor {shorten(name, 80)!r} goes beyond its end")
    return Header(values, shapes)


def _bytes(shape: tuple[int, ...], kind: int, what: str) -> int:
    if kind not in BLOCKS:
        raise _Damaged(f"{what} has the unknown type {kind}")
    block, width = BLOCKS[kind]
    count = 1
    for dimension in shape:
        count *= dimension
    if not count or shape[0] % block:
        raise _Damaged(f"{what} has the shape {shape}, which its type cannot have")
    return count // block * width


def _contradiction(header: Header) -> str | None:
    """Where the sizes in the metadata are not those of the tensors, in words."""
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        return "has no key 'general.architecture', so its family is unknown"
    blocks = {name.split(".")[1] for name in header.shapes if name.startswith("blk.")}
    wanted: dict[str, int | None] = {"block_count": len(blocks)}
    for key, (tensor, dimension) in SIZES.items():
        shape = header.shapes.get(tensor, ())
        wanted[key] = shape[dimension] if len(shape) > dimension else None
    for key, size in wanted.items():
        found = header.values.get(f"{architecture}.{key}")
        if isinstance(found, bool) or not isinstance(found, int):
            return f"its key '{architecture}.{key}' is not a whole number"
        if size is not None and found != size:
            return f"its key '{architecture}.{key}' is {found:,}, but its tensors have {size:,}"
    for key in ("attention.head_count", "attention.head_count_kv", "context_length", "attention.key_length"):
        found = header.values.get(f"{architecture}.{key}")
        if found is not None and (isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 1 << 31):
            return f"its key '{architecture}.{key}' is {shorten(found, 40)}, expected a positive whole number"
    tokens, embedding = header.values.get("tokenizer.ggml.tokens"), header.shapes.get("token_embd.weight", ())
    if isinstance(tokens, range) and len(embedding) > 1 and len(tokens) != embedding[1]:
        return f"it has {len(tokens):,} tokens, but 'token_embd.weight' has {embedding[1]:,}"
    return None
