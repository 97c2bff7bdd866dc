"""How many parameters a model on disk has, from its files' headers: no weight is read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.gguf_header import shapes_of

MAX_HEADER = 100 << 20


def parameters_of(path: str | Path) -> int | None:
    """The parameters of a folder of safetensors files or of a .gguf file; None where they cannot be counted.

    A file that is damaged is for those to report who open it.
    """
    source = Path(path)
    try:
        if source.is_dir():
            shapes: dict[str, Any] = {}
            for file in sorted(source.glob("*.safetensors")):
                shapes |= _safetensors_shapes(file)
        else:
            shapes = dict(shapes_of(source))
        return sum(math.prod(shape) for shape in shapes.values()) or None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error, RecursionError, UserError):
        return None


def _safetensors_shapes(file: Path) -> Mapping[str, Any]:
    """The shape of each tensor.  The format: eight bytes of length, then JSON (https://github.com/huggingface/safetensors)."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(opened.read(length))
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
