"""Reads the tensors of a model folder, and writes a safetensors file, one tensor at a time.

Memory use is a few tensors, whatever the size of the models: a file is opened again for each tensor, so that its mapped
pages are released immediately.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from accord.errors import UserError
from accord.io.atomic import replacing_file
from accord.models.hf_format import WEIGHTS, checked_tensors, read_index

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """The tensors of a model folder: file and layout of each, without their data."""

    folder: Path
    places: Mapping[str, Path]
    layouts: Mapping[str, Layout]

    def read(self, name: str) -> Tensor:
        """One tensor, in the file's dtype."""
        with safe_open(self.places[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def open_weights(folder: Path) -> ModelTensors:
    """The tensors in ``model.safetensors`` or in its shards.

    Raises UserError naming a file that is missing or damaged, or a tensor whose dtype cannot be merged (quantized).
    """
    shards = {} if (folder / WEIGHTS).exists() else read_index(folder)
    places: dict[str, Path] = {}
    layouts: dict[str, Layout] = {}
    for path in [folder / name for name in sorted(set(shards.values()))] or [folder / WEIGHTS]:
        for name, layout in _layouts(path).items():
            if shards.get(name, path.name) == path.name:
                places[name], layouts[name] = path, layout
    return ModelTensors(folder, places, layouts)


def _layouts(path: Path) -> dict[str, Layout]:
    found = {}
    with checked_tensors(path), safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  (a handle, not a dict)
            part = file.get_slice(name)
            kind = str(part.get_dtype())
            if kind not in DTYPES:
                raise UserError(f"{path}: tensor {name} is {kind}, which cannot be merged; merge before quantizing.")
            found[name] = Layout(tuple(part.get_shape()), DTYPES[kind])
    return found


def write_streamed(path: Path, layouts: Mapping[str, Layout], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes a safetensors file, header first, then each tensor as it is generated; flushed to disk.

    ``tensors`` have the order, shapes and dtypes of ``layouts``.  Raises OSError where the disk is full.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # required by transformers
    start = 0
    for name, layout in layouts.items():
        header[name] = {
            "dtype": NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [start, start + layout.size],
        }
        start += layout.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to eight bytes
    expected = iter(layouts.items())
    with replacing_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in tensors:
            wanted, layout = next(expected)
            assert (name, tuple(tensor.shape), tensor.dtype) == (wanted, layout.shape, layout.dtype), name
            if layout.size:
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        assert next(expected, None) is None


def in_file_order(layouts: Mapping[str, Layout]) -> dict[str, Layout]:
    """Sorted as safetensors does, by decreasing dtype size and then by name, so that every tensor is aligned."""
    return dict(sorted(layouts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
